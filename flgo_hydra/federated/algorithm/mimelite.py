"""MimeLite: clients take steps with the server's momentum, which their full gradients move once a round.

Karimireddy et al., Breaking the Centralized Barrier for Cross-Device Federated Learning (Mime), NeurIPS 2021,
Algorithm 1 (MimeLite) with SGD with momentum of Table 1. https://arxiv.org/abs/2008.03606

Symbols: x the server's model, y_i a client's, f_i its objective, m the momentum.
"""

from collections.abc import Mapping
from typing import Any

import torch

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors, zeros_like
from flgo_hydra.federated.algorithm.local import Batch


class MimeLite(Algorithm):
    """Local steps follow (1 - beta) g + beta m, m fixed in a round; then m <- (1 - beta) mean(grad f_i(x)) + beta m."""

    weighting = "uniform"

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        found = ["MimeLite with beta=0 is FedAvg of even weights."] if numbers["beta"] == 0 else []
        if option.optimizer != "sgd" or option.momentum:
            what = f"optimizer={option.optimizer}" + (f" momentum={option.momentum}" if option.momentum else "")
            found.append(
                f"MimeLite with `{what}`: a client's steps then have a memory of its own beside the server's, which "
                "the method is to avoid. Use optimizer=sgd momentum=0."
            )
        return found

    def init_server(self, params: Tensors) -> State:
        return {"m": zeros_like(params)}

    def measure_before(self, at: Batch, client: Client, hyper: Hyper) -> Tensors:
        g = at.gradient(client.anchor)
        return {_key(name): g[name] if name in g else torch.zeros_like(p) for name, p in client.anchor.items()}

    def correct(self, grads: Tensors, params: Tensors, client: Client, hyper: Hyper) -> Tensors:
        beta = hyper["beta"]
        return {name: (1 - beta) * grads.get(name, 0.0) + beta * m for name, m in client.server["m"].items()}

    def finish(self, params: Tensors, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        sent, kept = super().finish(params, client, num_steps, hyper)
        return {**sent, "gradient": {name: client.facts[_key(name)] for name in client.anchor}}, kept

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        beta, g = hyper["beta"], message["gradient"]
        x, _ = super().update_server(params, server, message, participation, hyper)
        return x, {"m": {name: (1 - beta) * g[name] + beta * m for name, m in server["m"].items()}}


def _key(name: str) -> str:
    """Of a parameter's full gradient, among what is known of a client."""
    return f"gradient of {name}"
