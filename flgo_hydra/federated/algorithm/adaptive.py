"""FedAdagrad, FedYogi and FedAdam: the server takes the clients' mean change for a gradient of an adaptive optimizer.

Reddi et al., Adaptive Federated Optimization, ICLR 2021, Algorithm 2. https://arxiv.org/abs/2003.00295

Symbols: x the server's model, Delta the mean of the clients' changes, m and v its moments, tau the adaptivity,
eta the server's step size. v is tau^2 before the first round, and no moment is corrected for its bias.
"""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from flgo_hydra.federated.algorithm.base import Algorithm, Hyper, State, Tensors, zeros_like


class Adaptive(Algorithm):
    """m <- beta1 m + (1 - beta1) Delta; x <- x + eta m / (sqrt(v) + tau); how v moves, each says."""

    @abstractmethod
    def second(self, v: Tensor, square: Tensor, hyper: Hyper) -> Tensor:
        """The next v, from Delta^2."""

    def init_server(self, params: Tensors) -> State:
        return {"m": zeros_like(params), "v": zeros_like(params)}

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        beta1, tau, delta = hyper["beta1"], hyper["tau"], message["update"]
        m = {name: beta1 * t + (1 - beta1) * delta[name] for name, t in server["m"].items()}
        # From tau^2 > 0, v comes to 0 with beta2=0 alone, which then forgets it.
        before = {name: torch.where(t == 0, tau**2, t) for name, t in server["v"].items()}
        v = {name: self.second(t, delta[name].square(), hyper) for name, t in before.items()}
        x = {name: p + hyper["eta"] * m[name] / (v[name].sqrt() + tau) for name, p in params.items()}
        return x, {"m": m, "v": v}


class FedAdagrad(Adaptive):
    """v <- v + Delta^2."""

    def second(self, v: Tensor, square: Tensor, hyper: Hyper) -> Tensor:
        return v + square


class FedYogi(Adaptive):
    """v <- v - (1 - beta2) Delta^2 sign(v - Delta^2)."""

    def second(self, v: Tensor, square: Tensor, hyper: Hyper) -> Tensor:
        found: Tensor = v - (1 - hyper["beta2"]) * square * torch.sign(v - square)
        return found


class FedAdam(Adaptive):
    """v <- beta2 v + (1 - beta2) Delta^2."""

    def second(self, v: Tensor, square: Tensor, hyper: Hyper) -> Tensor:
        found: Tensor = hyper["beta2"] * v + (1 - hyper["beta2"]) * square
        return found
