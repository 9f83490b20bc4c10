"""Reads the pickled batches of CIFAR-10 and CIFAR-100 without running what a pickle may ask for.

A pickle is a program that names functions and calls them. `_ArrayUnpickler` knows the three names that a NumPy array
needs and refuses every other one, so a batch can hold numbers, text, lists, dictionaries and arrays, and do nothing.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# NumPy's function that rebuilds an array; its address has changed with NumPy 2, and old files hold the old one.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return _ADMITTED[module, name]


def read(path: Path, labels_key: str, num_classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Returns a batch's images, shape (n, 3, 32, 32), and labels, shape (n,), each in 0..num_classes-1.

    Args:
        labels_key: `labels`, `fine_labels` or `coarse_labels`.
    Raises:
        ValueError: the file is no such batch.
    """
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
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
    if not isinstance(value, np.ndarray | list):
        raise ValueError(f"{path} must have an array or a list `{key}`, but got {type(value).__name__}.")
    try:
        return np.asarray(value)
    except ValueError as error:  # a list of lists of different lengths
        raise ValueError(f"{path}: `{key}` must be an array: {error}.") from error
