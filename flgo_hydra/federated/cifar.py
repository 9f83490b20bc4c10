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

_MOST_DIMENSIONS = 4


class _Dtype:
    """A dtype of plain numbers, from the arguments and the state that NumPy pickles."""

    __slots__ = ("name", "order")

    def __init__(self, name: str | bytes, align: int = 0, copy: int = 0) -> None:
        text = name.decode("ascii") if isinstance(name, bytes) else name
        if not isinstance(text, str) or not re.fullmatch("b1|[iu][1248]|f[248]", text):
            raise pickle.UnpicklingError(f"it has an array of {name!r:.40}, which is no plain number")
        self.name, self.order = text, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, *rest = state
        order = order.decode("ascii") if isinstance(order, bytes) else order
        if order not in ("|", "<", ">", "=") or not all(one is None or type(one) is int for one in rest):
            raise pickle.UnpicklingError("it has an array whose dtype is of parts")
        self.order = order

    def make(self) -> np.dtype[Any]:
        return np.dtype(self.name if self.order == "|" else self.order + self.name)


class _Array:
    """An array, from the state that NumPy pickles."""

    __slots__ = ("shape", "dtype", "is_fortran", "content")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        is_shape = type(shape) is tuple and len(shape) <= _MOST_DIMENSIONS
        if not is_shape or not all(type(n) is int and n >= 0 for n in shape):
            raise pickle.UnpicklingError(f"it has an array of shape {shape!r:.80}")
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


class _ArrayUnpickler(pickle._Unpickler):
    dispatch = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]  # it takes memory for as long as a file says it is
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return _STAND_INS[module, name]


def read(path: Path, labels_key: str, num_classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns a batch's images, shape (n, 3, 32, 32), and labels, shape (n,), each in 0..num_classes-1.

    Args:
        labels_key: `labels`, `fine_labels` or `coarse_labels`.
    Raises:
        ValueError: the file is no such batch.
    """
    try:
        content = path.read_bytes()
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except OSError:
        raise
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
