"""The models that clients would use themselves, each on its own held-out samples.

Fairness over clients is told by the worst one and by the worst tenth, as in Mohri et al., Agnostic Federated
Learning, ICML 2019 (https://arxiv.org/abs/1902.00146), and Li et al., Fair Resource Allocation in Federated Learning,
ICLR 2020 (https://arxiv.org/abs/1905.10497).
"""

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flgo_hydra.federated.algorithm.base import Algorithm, State, Tensors
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.clients.own_buffers import OwnBuffers
from flgo_hydra.federated.data.on_device import Data, HeldOut
from flgo_hydra.federated.evaluation import Metrics
from flgo_hydra.federated.training import ServerState

_log = logging.getLogger(__name__)
_BYTES = 2**26
"""Of the models that are evaluated at once."""
_ROUNDING = 1e-3
"""Of what models at once have: more is something else than each has alone."""


class Personal:
    """Evaluates the clients' own models after each round, on their validation samples and, where they have some, on
    their own test samples. Where they have those, the server's model counts as everyone's that has none of its own.

    Args:
        model: gives the architecture; it is on the data's device.
    """

    def __init__(self, model: nn.Module, data: Data, algorithm: Algorithm) -> None:
        own_buffers = OwnBuffers(algorithm, model)
        has_servers = data.own_test is not None

        def own_model(server: ServerState, kept: State) -> Tensors | None:
            """Parameters and buffers; None: it is the server's, and nobody asks for that."""
            state, buffers = own_buffers.apart(kept)
            own: Tensors | None = algorithm.personal(server.params, state)
            if own is None and not buffers and not has_servers:
                return None
            return {**(server.params if own is None else own), **server.buffers, **buffers}

        self._model = model
        self._parts = {"valid": _Part(model, data, own_model, data.valid, data.valid_offsets)}
        if data.own_test is not None:
            self._parts["test"] = _Part(model, data, own_model, data.own_test, data.own_test_offsets)

    @torch.no_grad()
    def __call__(self, server: ServerState, clients: ClientStates) -> Metrics:
        """`personal_valid_loss` and what else is known; nothing where clients use the server's model.

        The mean over clients weighs them as `valid_loss` does; a client without samples of a part counts nowhere.
        """
        was_training = self._model.training
        self._model.eval()
        try:
            return {
                f"personal_{name}_{metric}": value
                for name, part in self._parts.items()
                for metric, value in part(server, clients).items()
            }
        finally:
            self._model.train(was_training)


class _Part:
    """The same of validation or of test samples.

    Args:
        own_model: of a client, from the server and from what it keeps.
        offsets: client k holds the samples offsets[k] to offsets[k + 1].
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        own_model: Callable[[ServerState, State], Tensors | None],
        samples: HeldOut,
        offsets: Sequence[int],
    ) -> None:
        self._model, self._data, self._own_model = model, data, own_model
        self._samples, self._offsets = samples, offsets
        sizes = [end - begin for begin, end in zip(offsets, offsets[1:], strict=False)]
        # Those of like sizes together, since smaller ones are filled up.
        self._clients = sorted((k for k, size in enumerate(sizes) if size), key=lambda k: (-sizes[k], k))
        self._sizes = sizes
        self._why_apart = ""
        self._is_tried = False

    def __call__(self, server: ServerState, clients: ClientStates) -> Metrics:
        """Loss and accuracy, over all clients, of the worst one and of the worst tenth."""
        if not self._clients or self._own_model(server, clients.get(self._clients[0])) is None:
            return {}
        return _named(self._all(server, clients), self._weights(), self._data.is_classification)

    def _weights(self) -> Tensor:
        """Of the clients, in the order in which they are evaluated: a sum of their samples' weights."""
        offsets, weights = self._offsets, self._samples.weights
        return torch.stack([weights[offsets[k] : offsets[k + 1]].sum() for k in self._clients]).cpu()

    def _all(self, server: ServerState, clients: ClientStates) -> Tensor:
        """Mean loss and accuracy of each client, (N, 2), on the host."""
        model_bytes = sum(p.numel() * p.element_size() for p in server.params.values())
        sample_bytes = self._samples.x[:1].numel() * self._samples.x.element_size()
        width = max(1, _BYTES // max(1, 2 * model_bytes + 8 * sample_bytes * self._sizes[self._clients[0]]))
        parts = []
        kept: State | None = None
        for begin in range(0, len(self._clients), width):
            some = self._clients[begin : begin + width]
            if not self._why_apart:
                kept = clients.get_many(some, kept)  # into the same memory: the first are the most
                parts.append(self._together(some, kept, server, clients))
            else:
                parts.append(None)
            if parts[-1] is None:
                parts[-1] = torch.stack([self._alone(k, server, clients.get(k)) for k in some])
        # One tensor, so that the device is waited for once.
        return torch.cat([part for part in parts if part is not None]).cpu()

    def _together(self, some: Sequence[int], kept: State, server: ServerState, clients: ClientStates) -> Tensor | None:
        """The same of these clients at once, (n, 2); None where a model does not take that.

        Args:
            kept: what they keep.
        """
        most = self._sizes[some[0]]
        rows = torch.tensor([[self._offsets[k] + min(i, self._sizes[k] - 1) for i in range(most)] for k in some])
        counts = torch.tensor(
            [[float(i < self._sizes[k]) / self._sizes[k] for i in range(most)] for k in some], dtype=torch.float64
        )
        rows, weights = rows.to(self._samples.x.device), counts.to(self._samples.weights)

        def one(state: State, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
            return self._sums(server, state, x, y, weights)

        try:
            found: Tensor = torch.vmap(one)(kept, self._samples.x[rows], self._samples.y[rows], weights)
            if not self._is_tried:
                for place in {0, len(some) - 1}:
                    alone = self._alone(some[place], server, clients.get(some[place]))
                    if not torch.allclose(alone, found[place], rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True):
                        raise ValueError(f"client {some[place]} has {found[place].tolist()}, alone {alone.tolist()}")
                self._is_tried = True
            return found
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # vmap refuses what it cannot batch with whatever exception fits
            self._why_apart = str(error)
            _log.info("the clients' own models are evaluated one by one: %s", error)
            return None

    def _alone(self, k: int, server: ServerState, state: State) -> Tensor:
        at = slice(self._offsets[k], self._offsets[k + 1])
        x, y = self._samples.x[at], self._samples.y[at]
        return self._sums(server, state, x.clone(), y, self._samples.weights.new_full((len(x),), 1 / len(x)))

    def _sums(self, server: ServerState, state: State, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        own = self._own_model(server, state)
        assert own is not None
        outputs = functional_call(self._model, own, (x,))
        loss = (self._data.criterion(outputs, y).to(weights.dtype) * weights).sum()
        if not self._data.is_classification:
            return torch.stack([loss, torch.full_like(loss, torch.nan)])
        return torch.stack([loss, (weights * (outputs.argmax(dim=-1) == y)).sum()])


def _named(found: Tensor, weights: Tensor, is_classification: bool) -> Metrics:
    weights = weights / weights.sum()
    metrics: Metrics = {}
    for name, values, is_more_better in (("loss", found[:, 0], False), ("accuracy", found[:, 1], True)):
        if name == "accuracy" and not is_classification:
            continue
        worst_first = values.sort(descending=not is_more_better).values
        tenth = worst_first[: math.ceil(len(values) / 10)]
        metrics[f"{name}"] = float((weights * values).sum())
        metrics[f"{name}_worst"] = float(worst_first[0])
        metrics[f"{name}_worst_tenth"] = float(tenth.mean())
    return metrics
