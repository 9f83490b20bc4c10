"""q-FedAvg: clients of larger loss count more, for accuracy that is spread more evenly over the clients.

Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, Algorithm 2. https://arxiv.org/abs/1905.10497

Symbols: F_k(w) the loss of the server's model on all of client k's training samples, w_k the model it comes to,
L = 1 / lr. Clients minimise F_k; the server descends on sum_k F_k(w)^(q+1) / (q+1). The paper draws clients by volume
(sample=md) and sums them evenly.
"""

from collections.abc import Mapping
from typing import Any

import torch

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.local import Batch

LEAST = 1e-10
"""of a loss that is raised to a power, which may be negative"""


class QFedAvg(Algorithm):
    """w - sum_k Delta_k / sum_k h_k, Delta_k = F_k^q d_k, h_k = q F_k^(q-1) ||d_k||^2 + L F_k^q, d_k = L (w - w_k)."""

    weighting = "uniform"

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        found = ["q-FedAvg with q=0 is FedAvg with aggregate=uniform."] if numbers["q"] == 0 else []
        if option.aggregate in ("weighted_com", "weighted_scale"):
            found.append(
                f"q-FedAvg with aggregate={option.aggregate}: its step is a ratio of even means over the cohort, and "
                "does not follow that. Use aggregate=other."
            )
        return found

    def measure_before(self, at: Batch, client: Client, hyper: Hyper) -> Tensors:
        return {"loss": at.mean(at.losses(client.anchor))}

    def finish(self, params: Tensors, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        q, lipschitz = hyper["q"], 1.0 / hyper["lr"]
        loss = torch.clamp(client.facts["loss"], min=LEAST)
        d = {name: lipschitz * (w - params[name]) for name, w in client.anchor.items()}
        square = torch.stack([t.square().sum() for t in d.values()]).sum()
        delta = {name: loss**q * t for name, t in d.items()}
        return {"delta": delta, "h": {"h": q * loss ** (q - 1) * square + lipschitz * loss**q}}, client.state

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        return {name: w - message["delta"][name] / message["h"]["h"] for name, w in params.items()}, server
