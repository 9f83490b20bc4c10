"""A model's linear head: which it is, for methods that look at its inputs or put another one in its place."""

from torch import Tensor, nn
from torch.nn import functional

from flgo_hydra.federated.algorithm.base import Client, Tensors
from flgo_hydra.federated.algorithm.private import head_of
from flgo_hydra.federated.refused import Refused


class LinearHead:
    """A `torch.nn.Linear` of the model whose outputs are the model's. C classes, d features, B samples.

    Args:
        name: in the model; None: the last one.
    """

    def __init__(self, name: str | None) -> None:
        self.module = name
        self.names: list[str] = []
        """of its parameters in the model"""
        self.shape = (0, 0)
        """(C, d)"""

    def find(self, model: nn.Module) -> None:
        """Looks for it.

        Raises:
            Refused: the model has no such layer, or it is all that it trains.
        """
        self.names = head_of(model, self.module)
        self.module = self.names[0].rpartition(".")[0]
        layer = model.get_submodule(self.module)
        if not isinstance(layer, nn.Linear) or len(self.names) != len(dict(layer.named_parameters())):
            what = type(layer).__name__ if not isinstance(layer, nn.Linear) else "only partly trained"
            raise Refused(f"The head must be a `torch.nn.Linear` that is trained, but `{self.module}` is {what}.")
        self.shape = (layer.out_features, layer.in_features)

    def __call__(self, params: Tensors, z: Tensor) -> Tensor:
        """Its outputs, (B, C), for inputs of shape (B, d), with these parameters."""
        bias = params.get(f"{self.module}.bias")
        return functional.linear(z, params[f"{self.module}.weight"], bias)

    def counts(self, client: Client) -> Tensor:
        """The client's training samples of each class, (C,).

        Raises:
            Refused: the task has no classes, or others than the head has outputs.
        """
        counts = client.facts.get("label_counts")
        if counts is None or counts.shape[-1] != self.shape[0]:
            what = "the task has none" if counts is None else f"the task has {counts.shape[-1]}"
            raise Refused(
                f"The method is for classes, one for each of the {self.shape[0]} outputs of the head `{self.module}`, "
                f"but {what}."
            )
        return counts
