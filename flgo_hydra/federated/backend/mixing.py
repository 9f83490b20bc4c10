"""Whether a sample's loss depends on what else is in its batch, which a masked step fills up.

A mean over the batch shows at once. A threshold, a median, a maximum or a sort may do nothing to the samples that are
tried, and something later, when weights and losses are others. So it is followed from operation to operation whether
what fills a batch up comes to the losses of the batch's own samples (`dependence.py`). What asks for the size of its
batch shows on each size. It takes some forward passes, and none of our own models and algorithms, which do not mix.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.backend.masked_norm import MaskedBatchNorm
from flgo_hydra.federated.training import ServerState
from flgo_hydra.recorder.dependence import follows
from flgo_hydra.recorder.tape import tensors_in

_WIDTH = 16
"""Of the batches that are followed: what mixes so many samples mixes more, and it is cheap."""
_MOST_SIZES = 64
_MOST_VALUES = 512
_SHARE = {torch.float64: 1e-9}
"""Of the largest loss: a difference up to this is rounding."""


def why_mixed(plain: LocalSteps, server: ServerState, sizes: Collection[int], width: int, least: int) -> str:
    """What of a batch's own samples depends on what fills it up, or nothing.

    Args:
        plain: plain steps on a copy of the model.
        sizes: of the batches that are filled up.
        width, least: samples of the largest and of the smallest batch.
    """
    if not sizes or not plain.has_users_code:
        return ""
    with torch.no_grad():
        return _why_mixed(plain, server, sizes, width, least) or _why_sized(plain, server, sizes, width, least)


def _why_mixed(plain: LocalSteps, server: ServerState, sizes: Collection[int], width: int, least: int) -> str:
    if width > _WIDTH:
        small = {min(size, _WIDTH - 1) for size in sizes}
        try:
            return next((why for size in _some(small, 3) if (why := _follow(plain, server, size, _WIDTH, least))), "")
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a model may take batches of some sizes only: those of the run
            pass
    return next((why for size in _some(sizes, 3) if (why := _follow(plain, server, size, width, least))), "")


def _follow(plain: LocalSteps, server: ServerState, size: int, width: int, least: int) -> str:
    """What in a batch of so many samples follows from those that fill it up, or nothing."""
    rows = _rows(plain, width)
    x, y = plain.data.x_train[rows].clone(), plain.data.y_train[rows].clone()
    of_batch = f"in a batch of {size} that is filled up to {width}"
    plain.load(server)
    ends = plain.buffers
    found, of_ends = follows(
        lambda: _losses_of(plain, _outputs(plain, x, size, min(least, size)), y),
        [_filling(t, size) for t in (x, y)],
        list(ends.values()),
    )
    if _is_own(found, size):
        return f"a sample's loss depends on what else is in its batch, {of_batch}"
    name = next((name for name, mask in zip(ends, of_ends, strict=True) if mask is not None), "")
    if name:
        return f"the buffer `{name}` depends on what else is in its batch, {of_batch}"
    if type(plain.step.algorithm).loss is Algorithm.loss:
        return ""
    outputs = _outputs(plain, x, size, min(least, size))
    # A loss may treat one class among many otherwise, and there may be none of it among these samples.
    for values in torch.split(_values(plain.data.y_train), size):
        y[: len(values)] = values.view(-1, *[1] * (y.dim() - 1))
        of_outputs = [_filling(t, size) for t in tensors_in(outputs) if t.shape[:1] == y.shape[:1]]
        found, _ = follows(lambda: _losses_of(plain, outputs, y), [*of_outputs, _filling(y, size)], [])
        if _is_own(found, size):
            return f"a sample's loss depends on what else is in its batch, {of_batch}"
    return ""


def _filling(tensor: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A tensor of a batch, with a mask of what fills it up."""
    mask = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
    mask[size:] = True
    return tensor, mask


def _is_own(found: Tensor | None, size: int) -> bool:
    """Whether losses of a batch's own samples are among those that are marked."""
    return found is not None and bool(found[:size].any() if found.dim() else found.any())


def _values(y: Tensor) -> Tensor:
    """Targets that samples have: all classes, however rare, or of numbers both ends and some between."""
    found: Tensor = torch.unique(y)
    return found if len(found) <= _MOST_VALUES else found[torch.linspace(0, len(found) - 1, _MOST_VALUES).long()]


def _why_sized(plain: LocalSteps, server: ServerState, sizes: Collection[int], width: int, least: int) -> str:
    """How a sample's loss depends on the size of its batch, or nothing."""
    rows = _rows(plain, width)
    for size in _some(sizes, _MOST_SIZES):
        filled = torch.cat([rows[:size], rows[:1].expand(width - size)])
        try:
            own = _losses(plain, server, plain.data.x_train[rows[:size]], plain.data.y_train[rows[:size]], None, least)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the plain step will raise it again
            continue
        x, y = plain.data.x_train[filled], plain.data.y_train[filled]
        found = _losses(plain, server, x, y, size, least)[:size]
        if own.shape != found.shape or not bool(torch.isfinite(own).all()):
            continue  # steps will show
        difference = float((found - own).abs().max())
        if not difference <= _SHARE.get(own.dtype, 1e-4) * float(own.abs().max()):
            return (
                "a sample's loss depends on what else is in its batch: in a batch of "
                f"{size} that is filled up to {width} it differs by {difference:.1e}"
            )
    return ""


def _losses(plain: LocalSteps, server: ServerState, x: Tensor, y: Tensor, size: int | None, least: int) -> Tensor:
    """Of each sample; `size` of them count, or all."""
    plain.load(server)
    return _losses_of(plain, _outputs(plain, x, size, least), y)


def _outputs(plain: LocalSteps, x: Tensor, size: int | None, least: int) -> Any:
    plain.model.train()
    if size is None:
        return plain.model(x.clone())
    weights = torch.zeros(len(x), dtype=next(iter(plain.params.values())).dtype, device=x.device)
    weights[:size] = 1 / size
    with MaskedBatchNorm(weights, least):
        return plain.model(x.clone())


def _losses_of(plain: LocalSteps, outputs: Any, y: Tensor) -> Tensor:
    losses: Tensor = plain.step.algorithm.loss(outputs, y, plain.data.criterion)
    return losses


def _some(sizes: Collection[int], most: int) -> list[int]:
    """At most so many of them, both ends among them."""
    ascending = sorted(set(sizes))
    picked = np.unique(np.linspace(0, len(ascending) - 1, min(most, len(ascending))).round().astype(int))
    return [ascending[i] for i in picked]


def _rows(plain: LocalSteps, width: int) -> Tensor:
    """Of the training samples, from all over."""
    n = len(plain.data.x_train)
    return torch.arange(width, device=plain.data.x_train.device) * max(1, n // width) % n
