"""Gives things that a copy of a model shares with it what they held before a trial."""

import array
import contextvars
import functools
import io
import operator
import random
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.users_code import is_users

_MOST_BYTES = 2**26
Undo = Callable[[], Any]


def undos_of(value: Any, content: Any) -> Iterator[Undo]:
    """What gives the thing its items, numbers, place and attributes of now.

    Args:
        content: a copy of a tensor's or array's numbers; None of one that is too large.
    """
    undo = _of_items(value, content)
    if undo is not None:
        yield undo
    undo = _of_attributes(value)
    if undo is not None:
        yield undo


def refill(value: Any, items: Any) -> None:
    """Gives a container these items and no others."""
    value.clear()
    if isinstance(value, list | deque):
        value.extend(items)
    else:
        value.update(items)


def refill_where_changed(value: MutableMapping[str, str], items: dict[str, str]) -> None:
    """The same for the environment, of which C hears."""
    if dict(value) != items:
        refill(value, items)


def drop_new(holder: Any, names: set[str]) -> None:
    """Takes away the attributes that a class has got since."""
    for name in [name for name in vars(holder) if name not in names]:
        delattr(holder, name)


def bytes_of(value: Any) -> bytes | None:
    """What a thing of bytes holds (an array, a number of C's, a view), or None of another thing."""
    try:
        view = memoryview(value)
        return bytes(view) if view.nbytes <= _MOST_BYTES else None
    except (TypeError, ValueError, NotImplementedError, BufferError):
        return None


def slots_of(value: Any) -> Iterator[str]:
    """Names of the attributes that lie in slots of a class of the user's own."""
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ()) if is_users(kind) else ()
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name


def _of_items(value: Any, content: Any) -> Undo | None:
    if isinstance(value, list | deque):
        return functools.partial(refill, value, list(value))
    if isinstance(value, set | dict):
        return functools.partial(refill, value, value.copy())
    if isinstance(value, Tensor):
        if content is None:
            return functools.partial(_refuse_change, value, value._version)
        return lambda: _copy_into(value, content)
    if isinstance(value, np.ndarray):
        return None if content is None else lambda: np.copyto(value, content) if value.flags.writeable else None
    if isinstance(value, torch.Generator):
        state = value.get_state()
        return lambda: value.set_state(state)
    if isinstance(value, random.Random):
        return functools.partial(value.setstate, value.getstate())
    if isinstance(value, np.random.BitGenerator):
        left = value.state
        return lambda: setattr(value, "state", left)
    if isinstance(value, np.random.SeedSequence):
        return functools.partial(_refuse_spawned, value, value.n_children_spawned)
    if isinstance(value, np.random.Generator):
        drawn = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", drawn)
    if isinstance(value, np.random.RandomState):
        return functools.partial(value.set_state, value.get_state(legacy=False))
    if isinstance(value, io.StringIO | io.BytesIO) and not value.closed:
        held_in_memory: Any = value
        return functools.partial(held_in_memory.__setstate__, held_in_memory.__getstate__())
    if isinstance(value, contextvars.ContextVar):
        return functools.partial(value.set, value.get()) if value.get(None) is not None else None
    if isinstance(value, functools._lru_cache_wrapper):
        return functools.partial(_forget_since, value, value.cache_info())
    if isinstance(value, BaseException):
        return functools.partial(setattr, value, "args", value.args)
    if isinstance(value, bytearray | array.array):
        return functools.partial(operator.setitem, value, slice(None), value[:])
    held = bytes_of(value)
    return None if held is None else lambda: _write(value, held)


def _of_attributes(value: Any) -> Undo | None:
    if isinstance(value, types.ModuleType | torch.nn.Module):
        return None
    slots = {name: getattr(value, name) for name in slots_of(value)}
    attributes = getattr(value, "__dict__", None)
    before = dict(attributes) if isinstance(attributes, dict) else None
    if not slots and before is None:
        return None

    def put_back() -> None:
        _put_back_slots(value, slots)
        if before is not None:
            refill(value.__dict__, before)

    return put_back


def _put_back_slots(value: Any, slots: Mapping[str, Any]) -> None:
    for name, part in slots.items():
        if getattr(value, name, None) is not part:
            setattr(value, name, part)


def _forget_since(cached: Any, info: Any) -> None:
    """What a trial computed may be a draw of the trial's: it is computed again."""
    if cached.cache_info().misses != info.misses:
        cached.cache_clear()


def _refuse_change(tensor: Tensor, version: int) -> None:
    if tensor._version != version:
        raise Refused(
            f"A tensor of shape {tuple(tensor.shape)} that is not the model's own (a global, or an attribute of a "
            "class) changes while it computes, and is too large to be put back after a trial. Make it an attribute of "
            "the model, or a buffer."
        )


def _refuse_spawned(seeds: np.random.SeedSequence, spawned: int) -> None:
    if seeds.n_children_spawned != spawned:
        raise Refused(
            "A `numpy.random.SeedSequence` that is not the model's own (a global, or an attribute of a class) spawns "
            "while it computes, and cannot be put back after a trial. Make it an attribute of the model."
        )


def _copy_into(tensor: Tensor, content: Tensor) -> None:
    with torch.no_grad():
        if not torch.equal(tensor.detach(), content):
            tensor.detach().copy_(content)


def _write(value: Any, held: bytes) -> None:
    if bytes_of(value) != held:
        np.frombuffer(value, np.uint8)[:] = np.frombuffer(held, np.uint8)
