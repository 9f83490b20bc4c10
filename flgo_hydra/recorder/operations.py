"""What a program needs to know of ATen operations: do they share memory, where can they write their result?"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flgo_hydra.recorder.tape import Op

_FILLS = (
    *("ones_like", "zeros_like", "full_like", "new_zeros", "new_ones", "new_full"),
    *("zeros", "ones", "full", "scalar_tensor"),
)


def storage(t: Tensor) -> int:
    """A number for the memory that a tensor looks at, while the tensor lives."""
    return int(t.untyped_storage()._cdata)


def geometry(t: Tensor) -> tuple[Any, ...]:
    """How a tensor lies in its memory."""
    return tuple(t.shape), t.stride(), t.storage_offset(), t.dtype


def is_view(op: Op) -> bool:
    """The operation only looks at its first input in another way."""
    first = next(op.inputs, None)
    if first is None or op.mutated:
        return False
    returned = op.function._schema.returns
    # By its schema, if its input was replaced by an equal one; by its memory, if its schema does not tell.
    says_so = all(r.alias_info is not None and not r.alias_info.is_write for r in returned) and len(returned) > 0
    return says_so or all(storage(t) == storage(first) for t in op.outputs)


def is_pointwise(op: Op) -> bool:
    return torch.Tag.pointwise in op.function.tags


def is_random(op: Op) -> bool:
    return torch.Tag.nondeterministic_seeded in op.function.tags


def is_times_one(op: Op) -> bool:
    """The result is the first input again, in memory of its own."""
    return short_name(op) == "mul" and isinstance(op.args[1], int | float) and op.args[1] == 1


def short_name(op: Op) -> str:
    """`mul` of `aten.mul.Tensor`."""
    return op.name.split(".")[1]


def is_fill(op: Op) -> bool:
    """The result depends on shapes alone: zeros, ones, a given number."""
    return short_name(op) in _FILLS


def fills_with_zeros(op: Op) -> bool:
    return short_name(op) in ("zeros_like", "new_zeros", "zeros")


@functools.cache
def out_form(function: Any) -> tuple[Callable[..., Any], tuple[str, ...]] | None:
    """The form of an ATen operation that writes into given tensors, with the names of those arguments.

    None where there is none, or where it was generated: those compute a new tensor and copy it.
    """
    if str(function) in ("aten.mul.Scalar", "aten.add.Scalar", "aten.sub.Scalar", "aten.div.Scalar"):
        return getattr(torch, str(function).split(".")[1]), ("out",)  # Python's binding takes numbers for tensors
    wanted = [(a.name, str(a.type)) for a in function._schema.arguments]
    packet = function.overloadpacket
    for name in packet.overloads():
        form = getattr(packet, name)
        arguments = form._schema.arguments
        outs = tuple(a.name for a in arguments if a.is_out)
        if not outs or torch.Tag.generated in form.tags:
            continue
        if [(a.name, str(a.type)) for a in arguments if not a.is_out] == wanted:
            # Python's own binding of an operation is called in half the time of the general one.
            binding = getattr(torch, str(packet).rpartition(".")[2], None) if outs == ("out",) else None
            return binding or plain_call(form), outs
    return None


def plain_call(function: Any) -> Callable[..., Any]:
    """An ATen operation without the Python frame around it."""
    call: Callable[..., Any] = getattr(function, "_op", function)
    return call


@functools.cache
def in_place_form(function: Any) -> Callable[..., Any] | None:
    """The form of a pointwise ATen operation that changes its first argument."""
    name = str(function.overloadpacket).rpartition(".")[2]
    return getattr(torch.Tensor, f"{name}_", None) if str(function).endswith((".default", ".Tensor")) else None
