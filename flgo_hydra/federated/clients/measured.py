"""What clients measure on all of their training samples, before and after their local steps.

It is taken one client after another, in batches, with the model in evaluation mode, whoever trains: the backends bring
it to where they bring what else is known of a client (`Client.facts`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.local import Batch
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.evaluation import CHUNK
from flgo_hydra.federated.refused import Refused


class Measured:
    """An algorithm's `measure_before` and `measure_after`.

    Args:
        model: gives the architecture and what is not trained of it.
    """

    def __init__(self, algorithm: Algorithm, model: nn.Module, data: Data) -> None:
        self._algorithm, self._model, self._data = algorithm, model, data
        self._name = type(algorithm).__name__
        self.is_before = type(algorithm).measure_before is not Algorithm.measure_before
        self.is_after = type(algorithm).measure_after is not Algorithm.measure_after
        self._forms: dict[str, dict[str, torch.Size]] = {}

    def before(self, k: int, client: Client, hyper: Hyper, buffers: Tensors) -> Tensors:
        """Of client k, by name; nothing where nothing is measured.

        Args:
            buffers: that the client starts from, frozen parameters too.
        """
        if not self.is_before:
            return {}
        return self._mean("measure_before", k, client, buffers, self._algorithm.measure_before, client, hyper)

    def after(self, k: int, carry: State, client: Client, hyper: Hyper, buffers: Tensors) -> Tensors:
        """The same after its steps.

        Args:
            buffers: that the client has come to.
        """
        if not self.is_after:
            return {}

        def measure(at: Batch) -> Any:
            return self._algorithm.measure_after(carry, at, client, hyper)

        return self._mean("measure_after", k, client, buffers, measure)

    def _mean(
        self, by: str, k: int, client: Client, buffers: Tensors, measure: Callable[..., Any], *given: Any
    ) -> Tensors:
        x, y = self._data.client(k)
        size = CHUNK[x.device.type]
        was_training = self._model.training
        self._model.eval()
        found: Tensors = {}
        try:
            for begin in range(0, len(x), size):
                at = Batch(
                    x[begin : begin + size].clone(),  # a model may change its inputs in place
                    y[begin : begin + size],
                    None,
                    buffers,
                    _loss=self._algorithm.loss,
                    _model=self._model,
                    _criterion=self._data.criterion,
                    _fixed={},
                )
                with torch.no_grad():
                    part = self._read(by, measure(at, *given), client)
                share = len(at.x) / len(x)
                found = {name: t * share + found[name] if begin else t * share for name, t in part.items()}
        finally:
            self._model.train(was_training)
        return found

    def _read(self, by: str, returned: Any, client: Client) -> Tensors:
        what = ""
        if not isinstance(returned, dict) or not returned:
            what = f"it returns {returned!r:.60}"
        else:
            for name, t in returned.items():
                if not isinstance(name, str) or not isinstance(t, Tensor) or not t.is_floating_point():
                    what = f"`{name}` is {t!r:.60}"
                elif name in client.facts:
                    what = f"`{name}` is among the client's `facts` already"
        if not what:
            form = {name: t.shape for name, t in returned.items()}
            if self._forms.setdefault(by, form) != form:
                what = "names or shapes differ from batch to batch"
        if what:
            raise Refused(
                f"`{by}` of {self._name} must return means over the batch's samples by name, of the same shapes for "
                f"each batch, as in {{'loss': at.mean(at.losses(client.anchor))}}, but {what}."
            )
        return {name: t.detach() for name, t in returned.items()}


def stacked(of_clients: Sequence[Tensors]) -> Tensors:
    """What was measured of several clients, (n, …)."""
    return {name: torch.stack([one[name] for one in of_clients]) for name in of_clients[0]} if of_clients else {}
