"""Every ATen operation that a function calls, in order, on the tensors it really used.

PyTorch's own tracer (`make_fx`) does this with stand-ins for tensors, and importing it takes 1.1 s. One step is cheap
enough to take for real: recording one takes as long as a few steps, and needs no import. What autograd does in the
backward pass is recorded too, because the recorder sits below autograd; so are the operations that `torch.vmap` makes
of others.
"""

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class CannotRecord(Exception):
    """Replaying the operations would not be what the function does; the message says why."""


class ReadsNumbers(CannotRecord):
    """Numbers leave torch, for Python to look at."""


class MayRaise(CannotRecord):
    """An operation is an error for some numbers, which Python may go on from."""


_RAISING = ("_linalg_check_errors", "_assert_async", "_assert_scalar")
_OF_SHAPES = ("_pack_padded_sequence", "repeat_interleave.Tensor")
"""Operations whose outputs' shapes depend on numbers, though torch does not mark them."""


@dataclass(eq=False)
class Op:
    """One call of an ATen operation. Tensors in `args`, `kwargs` and `outputs` are the values, told apart by `is`."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    mutated: tuple[Tensor, ...] = ()
    """inputs that the call changed"""

    @property
    def inputs(self) -> Iterator[Tensor]:
        """Every tensor among the arguments."""
        yield from tensors_in((self.args, list(self.kwargs.values())))

    @property
    def outputs(self) -> list[Tensor]:
        return list(tensors_in(self.output))

    @property
    def name(self) -> str:
        return str(self.function)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Tensors in nested lists and tuples, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


_READERS = ("numpy", "__array__", "tolist", "__dlpack__", "__repr__")
"""Methods by which a tensor's numbers leave torch, unseen by what is below."""


@contextlib.contextmanager
def readers_noticed(notice: Callable[[str], None]) -> Iterator[None]:
    """Tells of calls of a tensor's methods that read its numbers, in hooks of the backward pass too."""
    kept = {name: Tensor.__dict__.get(name) for name in _READERS}

    def noticing(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def called(*args: Any, **kwargs: Any) -> Any:
            notice(name)
            return method(*args, **kwargs)

        return called

    for name in kept:
        setattr(Tensor, name, noticing(name, getattr(Tensor, name)))
    try:
        yield
    finally:
        for name, method in kept.items():
            if method is None:  # it was inherited
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, method)


def record(function: Callable[[], Any]) -> tuple[list[Op], Any]:
    """Calls the function; returns the operations of the call, and what it returned.

    Raises:
        CannotRecord: the function reads a number from a tensor or uses Python's or numpy's random numbers, which
            another call may answer differently.
    """
    noise = _python_noise()
    read: list[str] = []
    with readers_noticed(read.append), _Recorder() as recorder:
        returned = function()
    if recorder.raised:
        raise MayRaise(f"it may raise an error, by its numbers ({recorder.raised})")
    if read:
        raise ReadsNumbers(f"it reads numbers from tensors ({read[0]})")
    if _python_noise() != noise:
        raise CannotRecord("it draws random numbers from Python or numpy")
    for op in recorder.ops:
        if any(isinstance(part, torch.Generator) for part in (*op.args, *op.kwargs.values())):
            raise CannotRecord(f"it draws from a generator of its own ({op.name})")
        if torch.Tag.data_dependent_output in op.function.tags:
            raise ReadsNumbers(f"it reads numbers from tensors ({op.name})")
        if any(name in op.name for name in _RAISING):
            raise MayRaise(f"it may raise an error, by its numbers ({op.name})")
        is_of_shapes = any(name in op.name and "backward" not in op.name for name in _OF_SHAPES)
        if is_of_shapes or (torch.Tag.dynamic_output_shape in op.function.tags and not _picks_by_position(op)):
            raise CannotRecord(f"shapes depend on numbers ({op.name})")
    return recorder.ops, returned


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self.raised = ""
        """an operation that was an error, which Python has gone on from"""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import torch's compiler, a second, to keep it away from us

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            output = func(*args, **(kwargs or {}))
        except Exception:
            self.raised = str(func)
            raise
        op = Op(func, tuple(args), kwargs or {}, output)
        op.mutated = tuple(changed_by(op))
        self.ops.append(op)
        return op.output


def changed_by(op: Op) -> Iterator[Tensor]:
    """Inputs that a call of the operation changes."""
    for i, argument in enumerate(op.function._schema.arguments):
        # Batch norms change their running statistics without saying so.
        is_silent = argument.name in ("running_mean", "running_var") and "backward" not in op.name
        if is_silent or (argument.alias_info is not None and argument.alias_info.is_write):
            yield from tensors_in(op.args[i] if i < len(op.args) else op.kwargs.get(argument.name))


def _picks_by_position(op: Op) -> bool:
    """True for `x[rows]`, which is marked as `x[mask]` is."""
    is_index = op.name.startswith("aten.index.Tensor")
    return is_index and all(t.dtype not in (torch.bool, torch.uint8) for t in tensors_in(op.args[1]))


def _python_noise() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(keys).tobytes(), tuple(rest)
