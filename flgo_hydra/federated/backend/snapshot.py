"""What a thing is and holds at a moment, to be compared with what it is and holds later, or with another thing."""

import io
import pickle
import random
import sys
import types
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flgo_hydra import own_code
from flgo_hydra.federated.backend.putting_back import bytes_of

SMALL = 2**16
"""Numbers of a tensor that are compared one by one: of a larger one its version tells."""
SMALL_OUTSIDE = 2**24
"""Numbers of what a copy shares that are put back, and of an array that are compared."""
_MOST_BYTES = 2**24
"""Of what is pickled to be compared."""
PLAIN = (int, float, complex, str, bytes, bool, type(None), type(...), torch.dtype, torch.device, torch.Size, range)
"""What holds nothing that changes."""


class Identity:
    """Is equal where it is the same thing."""

    def __init__(self, value: Any) -> None:
        self.value = value  # which also keeps its id its own


class Noise:
    """A generator's state."""

    def __init__(self, state: Any) -> None:
        self.state = state


class Content:
    """What a tensor or array holds, and which one it is."""

    def __init__(self, value: Any, content: Any) -> None:
        self.value, self.content = value, content
        self.place: Any = None
        if isinstance(value, Tensor) and content is None:
            is_dense = value.layout == torch.strided and value.device.type != "meta"
            self.place = value._version, value.data_ptr() if is_dense else 0


class Items:
    """The items of a container, and which one it is."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.items = [*value, *value.values()] if isinstance(value, dict) else list(value)


def snapshot(value: Any, most: int = SMALL) -> Any:
    if isinstance(value, torch.Generator):
        return Noise(value.get_state().numpy().tobytes())
    if isinstance(value, random.Random):
        return Noise(value.getstate())
    if isinstance(value, np.random.Generator):
        return Noise(repr(value.bit_generator.state))
    if isinstance(value, np.random.RandomState):
        return Noise(repr(value.get_state(legacy=False)))
    if isinstance(value, np.random.BitGenerator | np.random.SeedSequence):
        return Noise(repr(value.state))
    if isinstance(value, Tensor):
        is_small = value.numel() <= most and value.layout == torch.strided and value.device.type != "meta"
        return Content(value, value.detach().clone() if is_small else None)
    if isinstance(value, np.ndarray):
        return Content(value, value.copy() if value.size <= SMALL_OUTSIDE else None)
    if isinstance(value, io.StringIO | io.BytesIO):
        return Noise(None if value.closed else (value.getvalue(), value.tell()))
    if isinstance(value, list | tuple | deque | set | frozenset | dict):
        return Items(value)
    held = bytes_of(value)
    if held is None and _shows_nothing(value):
        held = _pickled(value)
    return Identity(value) if held is None else Noise(held)


def _shows_nothing(value: Any) -> bool:
    """Whether it is a thing of a library without attributes to look at."""
    if callable(value) or getattr(value, "__dict__", None) or isinstance(value, types.CellType):
        return False
    file = getattr(sys.modules.get(type(value).__module__), "__file__", None)
    return own_code.is_installed(file or "")


def _pickled(value: Any) -> Any:
    """What a thing of a library holds that shows no attributes, as pickle would have it; None where it does not say."""
    buffers: list[pickle.PickleBuffer] = []
    try:
        text = pickle.dumps(value, 5, buffer_callback=buffers.append)
        parts = [buffer.raw() for buffer in buffers]
        return None if sum(part.nbytes for part in parts) > _MOST_BYTES else (text, *map(bytes, parts))
    except Exception:  # whatever a class raises that is not made for it
        return None


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Identity):
        return a.value is b.value
    if isinstance(a, Noise):
        return bool(a.state == b.state)
    if isinstance(a, Items):
        are_alike = len(a.items) == len(b.items) and all(
            x is y or (isinstance(x, PLAIN) and same(x, y)) for x, y in zip(a.items, b.items, strict=True)
        )
        # An equal tuple or list made anew is as good as the old one.
        return are_alike
    if isinstance(a, Content):
        if a.value is not b.value or (a.content is None) != (b.content is None) or a.place != b.place:
            return False
        if a.content is None or isinstance(a.content, np.ndarray):
            return a.content is None or bool(
                np.array_equal(a.content, b.content, equal_nan=a.content.dtype.kind == "f")
            )
        return a.content.shape == b.content.shape and torch.equal(a.content, b.content)
    return bool(a == b) or (a != a and b != b)


def alike(a: Any, b: Any) -> bool:
    """Whether two things are of one kind and hold the same, whichever they are."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Identity):
        return type(a.value) is type(b.value)
    if isinstance(a, Items):
        return len(a.items) == len(b.items)
    if isinstance(a, Content):
        if type(a.value) is not type(b.value) or a.value.shape != b.value.shape or a.value.dtype != b.value.dtype:
            return False
        if isinstance(a.value, Tensor):
            is_dense = a.value.layout == torch.strided and not a.value.is_quantized
            return torch.equal(a.value, b.value) if is_dense else a.value is b.value
        return bool(np.array_equal(a.value, b.value, equal_nan=a.value.dtype.kind == "f"))
    return same(a, b)
