"""Whether a sample's loss depends on what else is in its batch, which a masked step fills up.

A mean over the batch shows at once. A threshold, a median, a maximum or a sort may do nothing to the samples that are
tried, and something later, when weights and losses are others. So what fills a batch up goes to the ends of what can
come: every feature at its largest and smallest, weights several times as large, outputs far from all others, many and
few of them. It takes forward passes only, and none of our own models and algorithms, which do not mix.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.backend.fillings import LEAST, filled_batches
from flgo_hydra.federated.backend.masked_norm import MaskedBatchNorm
from flgo_hydra.federated.backend.trial import few, is_wide, widened
from flgo_hydra.federated.training import ServerState

if TYPE_CHECKING:
    from flgo_hydra.federated.backend.loop import LoopBackend

_SCALES = (1.0, 3.0)
"""Of the weights: those of a trained model are larger, and so are its losses."""
_FAR = 100.0
"""Outputs far from others: e^100 is finite, and so are their losses."""
_CORNERS = 4
_MOST_VALUES = 512
_WIDTH = 16
"""Of the batches: what mixes so many samples mixes more, and a trial is cheap."""
_SHARE = {torch.float64: 1e-9}
"""Of the largest loss: a difference up to this is rounding."""


def why_mixed(plain: "LoopBackend", server: ServerState, sizes: Collection[int], width: int, least: int) -> str:
    """How much the loss of a batch's own samples depends on what fills it up, or nothing.

    Args:
        plain: plain steps on a copy of the model.
        sizes: of the batches that are filled up.
        width, least: samples of the largest and of the smallest batch.
    """
    if not sizes or not plain.has_users_code:
        return ""
    if width > _WIDTH:
        try:
            return _why_mixed(plain, server, {min(size, _WIDTH - 1) for size in sizes}, _WIDTH, min(least, _WIDTH - 1))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a model may take batches of some sizes only: those of the run
            pass
    return _why_mixed(plain, server, sizes, width, least)


def _why_mixed(plain: "LoopBackend", server: ServerState, sizes: Collection[int], width: int, least: int) -> str:
    loop, server = _in_float64(plain, server, width)
    batches: dict[int, list[Tensor]] = {}
    for size, rows in filled_batches(loop, server, sizes, width):
        batches.setdefault(size, []).append(torch.from_numpy(rows).to(loop.data.x_train.device))
    values = _values(plain.data.y_train)
    for scale in _SCALES:
        scaled = replace(server, params={name: p * scale for name, p in server.params.items()})
        for size, own in batches.items():
            if difference := _Batch(loop, scaled, size, own, values, width, least).difference():
                of_those = f"a batch of {size} that is filled up to {width}"
                return f"a sample's loss depends on what else is in its batch: in {of_those} it differs by {difference}"
    return ""


def _in_float64(plain: "LoopBackend", server: ServerState, width: int) -> tuple["LoopBackend", ServerState]:
    """Where the model computes so; what mixes a little is no rounding there."""
    try:
        data = few(plain.data, max(LEAST, 2 * width))
        wide = plain.copy(data, torch.float64)
        wide.model.train()
        if is_wide(wide.model, data.x_train[:2]):
            return wide, widened(server)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model does not take in another dtype
        pass
    return plain, server


def _beyond_rounding(own: Tensor, found: Tensor) -> str:
    size = float((found - own).abs().max())
    return "" if size <= _SHARE.get(own.dtype, 1e-5) * float(own.abs().max()) else f"{size:.1e}"


def _values(y: Tensor) -> Tensor:
    """Targets that samples have: all classes, however rare, or of numbers both ends and some between."""
    found: Tensor = torch.unique(y)
    return found if len(found) <= _MOST_VALUES else found[torch.linspace(0, len(found) - 1, _MOST_VALUES).long()]


class _Batch:
    """A batch of so many samples, and what may fill it up.

    Args:
        rows: of the training samples, the batch's own first, each filled up otherwise, by its own first sample first.
        values: that targets have.
    """

    def __init__(
        self,
        loop: "LoopBackend",
        server: ServerState,
        size: int,
        rows: list[Tensor],
        values: Tensor,
        width: int,
        least: int,
    ) -> None:
        self._loop, self._server, self._size, self._rows, self._least = loop, server, size, rows, least
        self._values = values
        self._x, self._y = loop.data.x_train[rows[0]], loop.data.y_train[rows[0]]
        weights = torch.zeros(width, dtype=next(iter(server.params.values())).dtype, device=self._x.device)
        weights[:size] = 1 / size
        self._weights = weights

    def difference(self) -> str:
        """The first difference that is no rounding, or nothing."""
        with torch.no_grad():
            outputs = self._outputs(self._x)
            own = self._own_losses(outputs, self._y)
            if not bool(torch.isfinite(own).all()):
                return ""
            for filled, y in self._fillings(outputs):
                if found := _beyond_rounding(own, self._own_losses(filled, y)):
                    return found
            return self._of_rare_targets(outputs)

    def _of_rare_targets(self, outputs: Any) -> str:
        """The first difference that what fills a batch up makes by its targets, each of which the batch has, too."""
        if not self._has_own_loss:
            return ""
        for value, other in zip(self._values, self._values.roll(1), strict=True):
            y = self._y.clone()
            y[0], y[self._size :] = value, value
            own = self._own_losses(outputs, y)
            y[self._size :] = other
            if found := _beyond_rounding(own, self._own_losses(outputs, y)):
                return found
        return ""

    @property
    def _has_own_loss(self) -> bool:
        return type(self._loop.step.algorithm).loss is not Algorithm.loss

    def _outputs(self, x: Tensor) -> Any:
        self._loop.load(self._server)
        self._loop.model.train()
        with MaskedBatchNorm(self._weights, self._least):
            return self._loop.model(x.clone())

    def _own_losses(self, outputs: Any, y: Tensor) -> Tensor:
        losses: Tensor = self._loop.step.algorithm.loss(outputs, y, self._loop.data.criterion)
        return losses[: self._size] if losses.dim() else losses

    def _fillings(self, outputs: Any) -> Iterator[tuple[Any, Tensor]]:
        """Outputs and targets of the batch, otherwise filled up."""
        data = self._loop.data
        for rows in self._rows[1:]:
            yield self._outputs(data.x_train[rows]), data.y_train[rows]
        y = data.y_train[self._rows[-1]]
        for x in self._corners():
            try:
                found = self._outputs(x)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # no sample is like this one, and a model may refuse it
                continue
            yield found, y
        if self._has_own_loss and isinstance(outputs, Tensor) and outputs.is_floating_point():
            if outputs.shape[:1] == self._y.shape[:1]:
                yield from ((far, targets) for far in self._far(outputs) for targets in (self._y, y))

    def _corners(self) -> Iterator[Tensor]:
        """Every feature as large or as small as it is in some sample, so that numbers of words stay such."""
        some = self._loop.data.x_train[torch.unique(torch.cat(self._rows))]
        least, most = some.amin(0), some.amax(0)
        fill = self._x[self._size :]
        signs = torch.Generator().manual_seed(0)
        yield torch.cat([self._x[: self._size], most.expand_as(fill)])
        yield torch.cat([self._x[: self._size], least.expand_as(fill)])
        for _ in range(_CORNERS):
            is_most = (torch.rand(fill.shape, generator=signs) < 0.5).to(fill.device)
            yield torch.cat([self._x[: self._size], torch.where(is_most, most, least)])

    def _far(self, outputs: Tensor) -> Iterator[Tensor]:
        """Outputs of what fills the batch up, of one and of all, that are far from all others in one number or all."""
        for end in (self._size + 1, len(outputs)):
            for column in (slice(None), slice(0, 1), slice(1, None)):
                for value in (-_FAR, 0.0, _FAR):
                    far = outputs.clone()
                    far[self._size : end].view(end - self._size, -1)[:, column] = value
                    yield far
