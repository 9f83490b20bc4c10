"""Which numbers follow from which, found out operation by operation.

What a function computes from some numbers is no proof of what it would make of others: a threshold may never have been
passed. So each operation on the way is looked at by itself. It is done again on inputs in which the numbers that follow
from the marked ones are replaced by others, near and far; where its outputs then differ, they follow from them too. So
a comparison with a mean is found to follow from what the mean is taken over, whatever the threshold and the numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flgo_hydra.recorder.operations import is_view
from flgo_hydra.recorder.tape import Op, changed_by, tensors_in

_SIZES = (1e-3, 1.0, 30.0, 1e4, 1e12)
"""Of the numbers that stand in for others: e^1e4 is not finite, which is another number too."""
_BY_POSITION = ("index", "gather", "scatter", "embedding", "nll_loss", "take")
"""Operations that are given positions: others than there are would be an error, which CUDA does not forgive."""
_SHARE = {torch.float64: 1e-9}
"""Of the largest number: a difference up to this is rounding."""


class Marks:
    """Which numbers follow from those that are marked, wherever in memory they lie: a mark for each byte."""

    def __init__(self) -> None:
        self._by_storage: dict[int, Tensor] = {}
        self._kept: list[Tensor] = []

    def mark(self, tensor: Tensor, mask: Tensor) -> None:
        """Marks the numbers of a tensor where the mask, which has its shape, is true, and no others of its."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._by_storage:
            if not bool(mask.any()):
                return
            marks = torch.zeros(storage.nbytes(), dtype=torch.bool, device=tensor.device)
            self._by_storage[storage.data_ptr()] = marks
            self._kept.append(tensor)  # so that nothing else comes to lie there
        view = self._view(tensor)
        view.copy_(mask.unsqueeze(-1) if tensor.is_complex() else mask)

    def of(self, tensor: Tensor) -> Tensor | None:
        """The marks of a tensor's numbers, or None where it has none."""
        if tensor.layout != torch.strided or tensor.untyped_storage().data_ptr() not in self._by_storage:
            return None
        found = self._view(tensor)
        found = found.any(-1) if tensor.is_complex() else found.clone()
        return found if bool(found.any()) else None

    def _view(self, tensor: Tensor) -> Tensor:
        """The marks of each number's first byte; of complex numbers, (…, 2), those of both parts."""
        marks = self._by_storage[tensor.untyped_storage().data_ptr()]
        size, strides = tensor.element_size(), [stride * tensor.element_size() for stride in tensor.stride()]
        shape, offset = list(tensor.shape), tensor.storage_offset() * size
        if tensor.is_complex():
            return marks.as_strided([*shape, 2], [*strides, size // 2], offset)
        return marks.as_strided(shape, strides, offset)


class Following(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open, what operations compute from marked numbers is marked. Gradients are to be off."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.marks = Marks()
        self._random = torch.Generator().manual_seed(0)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import torch's compiler, a second, to keep it away from us

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors_in((args, list(kwargs.values()))))
        masks = {id(t): mask for t in inputs if (mask := self.marks.of(t)) is not None}
        before = {id(t): t.clone() for t in inputs} if masks else {}
        op = Op(func, tuple(args), kwargs, func(*args, **kwargs))
        op.mutated = tuple(changed_by(op))
        if is_view(op):
            return op.output
        ends = [*op.outputs, *op.mutated]
        if not masks:
            for end in ends:
                self.marks.mark(end, torch.zeros(end.shape, dtype=torch.bool, device=end.device))
            return op.output
        found: list[Tensor | None] = [None] * len(ends)
        has_other = False
        for stand_ins in self._others(inputs, masks, before, any(part in str(func) for part in _BY_POSITION)):
            try:
                others = _ends_with(op, stand_ins)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # an operation may refuse such numbers
                continue
            has_other = True
            for i, (end, other) in enumerate(zip(ends, others, strict=True)):
                differs = _differs(end, other)
                known = found[i]
                found[i] = differs if known is None else known | differs
        for end, mask in zip(ends, found, strict=True):
            everywhere = torch.ones(end.shape, dtype=torch.bool, device=end.device)
            self.marks.mark(end, mask if mask is not None and has_other else everywhere)
        return op.output

    def _others(
        self, inputs: Sequence[Tensor], masks: dict[int, Tensor], before: dict[int, Tensor], are_positions: bool
    ) -> Iterator[dict[int, Tensor]]:
        """The operation's inputs, by id, with other numbers where they are marked."""
        for size in _SIZES:
            for sign in (1, -1):
                yield {
                    id(t): before[id(t)].clone()
                    if id(t) not in masks
                    else torch.where(masks[id(t)], self._like(before[id(t)], size, sign, are_positions), before[id(t)])
                    for t in inputs
                }

    def _like(self, tensor: Tensor, size: float, sign: int, are_positions: bool) -> Tensor:
        """Other numbers of the same kind; where whole ones are positions, some that are there."""
        if tensor.dtype == torch.bool:
            return ~tensor if size < 1 else torch.full_like(tensor, sign > 0)
        if tensor.is_floating_point() or tensor.is_complex():
            share = torch.rand(tensor.shape, generator=self._random, dtype=torch.float64)
            return (sign * size * (0.5 + share)).to(tensor.device, tensor.dtype)
        if tensor.numel() == 0:
            return tensor
        least, most = tensor.amin(), tensor.amax()
        if size >= 1 and not are_positions:
            return tensor + sign * min(int(size), torch.iinfo(tensor.dtype).max // 2)
        if size > 1:
            return torch.zeros_like(tensor) + (most if sign > 0 else least)
        return least + most - tensor if sign > 0 else tensor.flatten().roll(1).view(tensor.shape)


def _ends_with(op: Op, inputs: dict[int, Tensor]) -> list[Tensor]:
    """What an operation computes and changes, given other inputs."""

    def other(value: Any) -> Any:
        if isinstance(value, Tensor):
            return inputs[id(value)]
        return type(value)(map(other, value)) if type(value) in (list, tuple) else value

    args, kwargs = other(op.args), {name: other(value) for name, value in op.kwargs.items()}
    done = Op(op.function, args, kwargs, op.function(*args, **kwargs))
    return [*done.outputs, *changed_by(done)]


def _differs(a: Tensor, b: Tensor) -> Tensor:
    """Where two outputs of one operation are different numbers."""
    if a.shape != b.shape:
        return torch.ones(a.shape, dtype=torch.bool, device=a.device)
    if not (a.is_floating_point() or a.is_complex()):
        return a != b
    finite = torch.where(torch.isfinite(a), a.abs(), 0)
    allowed = _SHARE.get(a.dtype, 1e-5) * (finite.max() if a.numel() else 0)
    is_same = ((a - b).abs() <= allowed) | (a == b) | (torch.isnan(a) & torch.isnan(b))
    return ~is_same


def follows(function: Callable[[], Tensor], marked: Sequence[tuple[Tensor, Tensor]], ends: Sequence[Tensor]) -> Any:
    """Calls the function, and says which numbers follow from the marked ones.

    Args:
        marked: tensors that the function reads, each with a mask of its shape.
        ends: tensors that the function may change.
    Returns:
        the marks of what it returns, and those of `ends`; None where there are none.
    """
    with torch.no_grad(), Following() as following:
        for tensor, mask in marked:
            following.marks.mark(tensor, mask)
        returned = function()
        return following.marks.of(returned), [following.marks.of(end) for end in ends]
