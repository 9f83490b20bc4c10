"""LG-FedAvg: representations are each client's own, and the head on them is averaged: FedPer the other way round.

Liang et al., Think Locally, Act Globally: Federated Learning with Local and Global Representations, 2020, Algorithm 1.
https://arxiv.org/abs/2001.01523

Symbols: theta_l client m's local parameters, theta_g the global ones. Both are trained in every step.
"""

from torch import nn

from flgo_hydra.federated.algorithm.fedper import FedPer
from flgo_hydra.federated.algorithm.private import all_of, head_of


class LGFedAvg(FedPer):
    """FedAvg of the head; whatever is below it stays with the clients, batch statistics too."""

    def kept(self, model: nn.Module) -> list[str]:
        head = head_of(model, self._head)
        return [name for name in all_of(model) if name not in head]
