"""FedPer: each client has a head of its own; the layers below it are averaged.

Arivazhagan et al., Federated Learning with Personalization Layers, 2019, Algorithms 1 and 2.
https://arxiv.org/abs/1912.00818

Symbols: W_B the base layers, which travel; W_Pk client k's personalisation layers. Both are trained in every step.
"""

from torch import nn

from flgo_hydra.federated.algorithm.private import Partly, head_of


class FedPer(Partly):
    """FedAvg of W_B; W_Pk, the head, stays with client k.

    Args:
        head: the module's name in the model; None: the last linear layer.
    """

    def __init__(self, head: str | None = None) -> None:
        self._head = head

    def kept(self, model: nn.Module) -> list[str]:
        return head_of(model, self._head)
