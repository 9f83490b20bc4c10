"""FedSpeed: a proximal term whose bias is taken back, and gradients from a little uphill.

Sun et al., FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization Accuracy, ICLR 2023,
Algorithm 1. https://arxiv.org/abs/2302.10429

Symbols: x the server's model, x_i a client's, ghat_i its prox-correction (0 at first), lambda = lam, g_1 the gradient
at x_i, g_2 the one at x_i + rho g_1 / ||g_1||.
"""

from collections.abc import Mapping
from typing import Any

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors, zeros_like
from flgo_hydra.federated.algorithm.fedsam import uphill
from flgo_hydra.federated.algorithm.local import LocalBatch


class FedSpeed(Algorithm):
    """Local steps follow (1 - alpha) g_1 + alpha g_2 - ghat_i + (x_i - x) / lambda.

    With full participation and rho=0 it is FedDyn with its alpha = 1 / lambda.
    """

    weighting = "uniform"

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        zero = next((name for name in ("rho", "alpha") if numbers[name] == 0), None)
        return [f"FedSpeed with {zero}=0: its gradients are plain ones, not from uphill."] if zero else []

    def init_client(self, params: Tensors) -> State:
        return {"correction": zeros_like(params)}

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        alpha, lam, ghat = hyper["alpha"], hyper["lam"], client.state["correction"]
        x_i = carry["model"]
        g_1 = at.gradient(x_i)
        g_2 = at.gradient(uphill(x_i, g_1, hyper["rho"]))
        g = {name: (1 - alpha) * g_1.get(name, 0.0) + alpha * g_2.get(name, 0.0) for name in x_i}
        pulled = {name: g[name] - ghat[name] + (p - client.anchor[name]) / lam for name, p in x_i.items()}
        return {"model": at.descend("model", x_i, pulled)}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        """ghat_i <- ghat_i - (x_i - x) / lambda; x_i - lambda ghat_i is sent."""
        lam, x = hyper["lam"], client.anchor
        change = {name: p - x[name] for name, p in carry["model"].items()}
        ghat = {name: g - change[name] / lam for name, g in client.state["correction"].items()}
        return {"update": {name: u - lam * ghat[name] for name, u in change.items()}}, {"correction": ghat}
