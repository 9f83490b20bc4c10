"""Which of a recorded step's operations need to run."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flgo_hydra.recorder.operations import (
    fills_with_zeros,
    geometry,
    is_fill,
    is_random,
    is_times_one,
    storage,
)
from flgo_hydra.recorder.tape import Op


def mutated_by(ops: Sequence[Op]) -> set[int]:
    """The memory that the operations write into, besides their own results'."""
    return {storage(t) for op in ops for t in op.mutated}


def producers_of(ops: Sequence[Op]) -> dict[int, Op]:
    """The operation that made a tensor, by the tensor's id."""
    return {id(t): op for op in ops for t in op.outputs if all(t is not one for one in op.inputs)}


class Same(dict[int, Tensor]):
    """Which tensor one is again, by id."""

    # A method, not a function within a function that calls itself: such a circle would keep what was recorded alive.
    def of(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self.of(item) for item in value)
        while id(value) in self:
            value = self[id(value)]
        return value


def without_copies(ops: Sequence[Op]) -> tuple[list[Op], Same]:
    """Drops operations whose result is the same tensor again; says which one a dropped result was."""
    same = Same()
    kept = []
    made, mutated = producers_of(ops), mutated_by(ops)
    for op in ops:
        args, out = same.of(op.args), op.output
        first = args[0] if args else None
        if isinstance(first, Tensor) and isinstance(out, Tensor) and out is not first and not op.mutated:
            # Of what is given, which stays; an intermediate's memory may serve another one by then.
            is_copy = is_times_one(op) and id(first) not in made and not {storage(out), storage(first)} & mutated
            is_same = storage(out) == storage(first) or is_copy
            if is_same and geometry(out) == geometry(first):
                same[id(out)] = first
                continue
        kwargs = {key: same.of(value) for key, value in op.kwargs.items()}
        kept.append(Op(op.function, args, kwargs, out, same.of(op.mutated)))
    return kept, same


def needed(ops: Sequence[Op], wanted: Sequence[Tensor]) -> list[Op]:
    """The operations that the wanted tensors come from, and those that change something or draw numbers."""
    mutated = mutated_by(ops)
    needed = {id(t) for t in wanted}
    kept = []
    for op in reversed(ops):
        if op.mutated or is_random(op) or any(id(t) in needed for t in op.outputs):
            kept.append(op)
            # Only the shape is asked of what a tensor of ones is to be like.
            needed |= set() if is_constant(op, mutated) or fills_with_zeros(op) else {id(t) for t in op.inputs}
    return kept[::-1]


def is_constant(op: Op, mutated: set[int]) -> bool:
    """Whether the result is the same in every call."""
    return is_fill(op) and storage(op.output) not in mutated
