"""Reads the pickled batches of CIFAR-10 and CIFAR-100 without running what a pickle may ask for.

A pickle is a program that names functions, calls them and hands states to what they made. NumPy's own arrays and
dtypes believe any state, addresses included, so they take no part: `_ArrayUnpickler` puts stand-ins in their places,
which accept plain numbers and bytes of the right length, and makes the arrays afterwards. It is Python's own unpickler
over bytes in memory, so what a file claims to be long costs no more memory than the file has.
"""

import io
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flgo_hydra.record.schema import Defect, read_bytes

_MOST_DIMENSIONS = 4
_MOST_LENGTH = 2**40
_MOST_STATE = 9
_PLAIN_KEYS = (str, bytes, int)


class _Dtype:
    """A dtype of plain numbers, from the arguments and the state that NumPy pickles."""

    __slots__ = ("name", "order")

    def __init__(self, name: str | bytes, align: int = 0, copy: int = 0) -> None:
        text = name.decode("ascii") if isinstance(name, bytes) else name
        # Nothing of another kind is shown: tuples that share their parts have texts of any length.
        if type(text) is not str or not re.fullmatch("b1|[iu][1248]|f[248]", text):
            shown = repr(text[:40]) if type(text) is str else type(text).__name__
            raise pickle.UnpicklingError(f"it has an array of {shown}, which is no plain number")
        self.name, self.order = text, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if type(state) is not tuple or not 2 <= len(state) <= _MOST_STATE:
            raise pickle.UnpicklingError("it has an array whose dtype is of parts")
        _, order, *rest = state
        order = order.decode("ascii") if isinstance(order, bytes) else order
        is_plain = type(order) is str and order in ("|", "<", ">", "=")
        if not is_plain or not all(one is None or type(one) is int for one in rest):
            raise pickle.UnpicklingError("it has an array whose dtype is of parts")
        self.order = order

    def make(self) -> np.dtype[Any]:
        return np.dtype(self.name if self.order == "|" else self.order + self.name)


class _Array:
    """An array, from the state that NumPy pickles."""

    __slots__ = ("shape", "dtype", "is_fortran", "content")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise pickle.UnpicklingError("it has an array that is no block of plain numbers")
        _, shape, dtype, is_fortran, content = state
        is_shape = type(shape) is tuple and len(shape) <= _MOST_DIMENSIONS
        if not is_shape or not all(type(n) is int and 0 <= n < _MOST_LENGTH for n in shape):
            raise pickle.UnpicklingError("it has an array whose shape is not a few lengths")
        if type(dtype) is not _Dtype or type(content) is not bytes:
            raise pickle.UnpicklingError("it has an array that is no block of plain numbers")
        if math.prod(shape) * dtype.make().itemsize != len(content):
            raise pickle.UnpicklingError(f"it has an array of shape {shape} in {len(content)} bytes")
        self.shape, self.dtype, self.is_fortran, self.content = shape, dtype, bool(is_fortran), content

    def make(self) -> NDArray[Any]:
        if not hasattr(self, "content"):
            raise ValueError("it has an array without content")
        flat = np.frombuffer(self.content, self.dtype.make())
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")


class _Reconstruct:
    """NumPy's function that makes an empty array, to be given its state; a pickle can set nothing on it."""

    __slots__ = ()

    def __call__(self, kind: Any, shape: Any, code: Any) -> _Array:
        if kind is not _Array:
            raise pickle.UnpicklingError("it rebuilds something that is no array")
        return _Array()


# The address of NumPy's function has changed with NumPy 2, and old files hold the old one.
_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


# The first takes memory for as long as a file says it is. To look a tuple up in a set or a dictionary takes 2**n steps
# where n of them share their parts; a batch has a dictionary by texts, whose keys are looked at before.
_REFUSED = (pickle.BYTEARRAY8[0], pickle.EMPTY_SET[0], pickle.ADDITEMS[0], pickle.FROZENSET[0])


class _ArrayUnpickler(pickle._Unpickler):
    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if code not in _REFUSED}

    stack: list[Any]
    metastack: list[list[Any]]

    def load_setitem(self) -> None:
        _require_plain_keys(self.stack[-2:-1])
        pickle._Unpickler.load_setitem(self)  # type: ignore[attr-defined]

    def load_setitems(self) -> None:
        _require_plain_keys(self.stack[::2])
        pickle._Unpickler.load_setitems(self)  # type: ignore[attr-defined]

    def load_dict(self) -> None:
        _require_plain_keys(self.stack[::2])
        pickle._Unpickler.load_dict(self)  # type: ignore[attr-defined]

    _looked_at: dict[int, Any] = {
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
    }
    dispatch |= _looked_at

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return _STAND_INS[module, name]


def _require_plain_keys(keys: list[Any]) -> None:
    if not all(type(key) in _PLAIN_KEYS for key in keys):
        raise pickle.UnpicklingError("it has a dictionary whose keys are no texts")


def read(path: Path, labels_key: str, num_classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns a batch's images, shape (n, 3, 32, 32), and labels, shape (n,), each in 0..num_classes-1.

    Args:
        labels_key: `labels`, `fine_labels` or `coarse_labels`.
    Raises:
        ValueError: the file is no such batch.
    """
    try:
        content = read_bytes(path)
        if content is None:
            raise Defect(path, "is not there")
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Defect as defect:
        raise ValueError(f"{path} must be a batch of CIFAR's Python version, but it {defect.why}.") from None
    except Exception as error:  # a damaged pickle fails in any way
        raise ValueError(
            f"{path} must be a batch of CIFAR's Python version, but it cannot be read: {error}. Fetch it again."
        ) from error
    if not isinstance(batch, dict):
        raise ValueError(f"{path} must hold a dictionary, but it holds {type(batch).__name__}.")
    images, labels = (_entry(batch, key, path) for key in ("data", labels_key))
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3 * 32 * 32:
        raise ValueError(
            f"{path}: `data` must be uint8 of shape (n, 3072), but it is {images.dtype} of shape {images.shape}."
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{path}: `{labels_key}` must be {len(images)} integers, one an image, "
            f"but it is {labels.dtype} of shape {labels.shape}."
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"{path}: `{labels_key}` must be in 0..{num_classes - 1}, but got {labels.min()}..{labels.max()}."
        )
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _entry(batch: dict[Any, Any], key: str, path: Path) -> NDArray[Any]:
    # Python 2 wrote the published files, and its strings arrive as bytes.
    value = batch.get(key.encode(), batch.get(key))
    if type(value) is _Array:
        try:
            return value.make()
        except ValueError as error:
            raise ValueError(f"{path}: `{key}` must be an array: {error}.") from error
    if type(value) is not list:
        raise ValueError(f"{path} must have an array or a list `{key}`, but got {type(value).__name__.strip('_')}.")
    if not all(type(one) is int and abs(one) < 2**63 for one in value):
        raise ValueError(f"{path}: `{key}` must be an array, or a list of integers.")
    return np.array(value, dtype=np.int64)
