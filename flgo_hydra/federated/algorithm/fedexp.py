"""FedExP: the server goes further than the clients' mean where their changes differ.

Jhunjhunwala et al., FedExP: Speeding Up Federated Averaging via Extrapolation, ICLR 2023, Algorithm 1.
https://arxiv.org/abs/2301.09604

Symbols: w the server's iterate, Delta_i a client's change, p_i its weight (1/M in the paper's algorithm), eps a small
number. As in the paper, what is evaluated is the mean of the last two iterates; clients start from the last one.
"""

from collections.abc import Mapping
from typing import Any

import torch

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors


class FedExP(Algorithm):
    """w <- w + eta mean(Delta), eta = max(1, sum_i p_i ||Delta_i||^2 / (2 (||mean(Delta)||^2 + eps))).

    Args:
        average: the model is the mean of the last two iterates; else the last one.
    """

    def __init__(self, average: bool = True) -> None:
        self._average = average

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        if not option.aggregate.startswith("weighted"):
            return []
        return [
            f"FedExP with aggregate={option.aggregate}: eta compares the clients' changes with their mean, which this "
            "aggregate does not take. Use aggregate=other or uniform."
        ]

    def init_server(self, params: Tensors) -> State:
        return {"iterate": params}

    def begin(self, client: Client, hyper: Hyper) -> State:
        return {"model": client.server["iterate"]}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        w = client.server["iterate"]
        change = {name: p - w[name] for name, p in carry["model"].items()}
        return {"update": change, "norm": {"square": _square(change)}}, client.state

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        mean, before = message["update"], server["iterate"]
        eta = torch.clamp(message["norm"]["square"] / (2 * (_square(mean) + hyper["eps"])), min=1.0)
        w = {name: p + eta * mean[name] for name, p in before.items()}
        return {name: (p + before[name]) / 2 if self._average else p for name, p in w.items()}, {"iterate": w}


def _square(tensors: Tensors) -> torch.Tensor:
    """The square of the 2-norm of all of them."""
    return torch.stack([t.square().sum() for t in tensors.values()]).sum()
