"""APFL: each client uses a mixture of a model of its own and the global one.

Deng, Kamani and Mahdavi, Adaptive Personalized Federated Learning, 2020, Algorithm 1 and the update of alpha in section
4. https://arxiv.org/abs/2003.13461

Symbols: w a client's version of the global model, v its own model, alpha their mixture's share of v, f a client's loss.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.local import LocalBatch


class APFL(Algorithm):
    """The global model is FedAvg's. v follows the gradient of f(alpha v + (1 - alpha) w), on the same batches.

    A client uses the mixture with the server's model; one that has never taken part, the server's model.

    Args:
        adaptive: each client learns its alpha, too, with the same learning rate: it begins at the number, stays in
            [0, 1], and the client keeps it.
    """

    def __init__(self, adaptive: bool = False) -> None:
        self._adaptive = adaptive

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        if self._adaptive or numbers["alpha"] not in (0, 1):
            return []
        what = (
            "the clients' own models are of local training alone" if numbers["alpha"] else "clients use FedAvg's model"
        )
        return [f"APFL with alpha={numbers['alpha']:g}: {what}."]

    def init_client(self, params: Tensors) -> State:
        zero = next(iter(params.values())).new_zeros(())
        return {"own": params, "mixture": {"alpha": zero, "is_known": zero}}

    def begin(self, client: Client, hyper: Hyper) -> State:
        kept = client.state["mixture"]
        alpha = torch.where(kept["is_known"] > 0, kept["alpha"], hyper["alpha"]).to(kept["alpha"].dtype)
        return {"model": client.anchor, "own": client.state["own"], "mixture": {"alpha": alpha}}

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        w, v, alpha = carry["model"], carry["own"], carry["mixture"]["alpha"]
        next_w = at.descend("model", w, at.gradient(w))
        g = at.gradient(_mixed(v, w, alpha))
        next_v = at.descend("own", v, {name: alpha * t for name, t in g.items()})
        if self._adaptive:
            # The derivative by alpha.
            slope = torch.stack([((v[name] - w[name]) * t).sum() for name, t in g.items()]).sum()
            alpha = torch.clamp(alpha - hyper["lr"] * slope, 0.0, 1.0).to(alpha.dtype)
        return {"model": next_w, "own": next_v, "mixture": {"alpha": alpha}}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        sent, _ = self.finish(carry["model"], client, num_steps, hyper)
        alpha = carry["mixture"]["alpha"]
        return sent, {"own": carry["own"], "mixture": {"alpha": alpha, "is_known": torch.ones_like(alpha)}}

    def personal(self, params: Tensors, state: State) -> Tensors:
        return _mixed(state["own"], params, state["mixture"]["alpha"])


def _mixed(v: Tensors, w: Tensors, alpha: Tensor) -> Tensors:
    return {name: alpha * p + (1 - alpha) * w[name] for name, p in v.items()}
