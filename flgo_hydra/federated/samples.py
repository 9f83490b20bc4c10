"""What a source returns, checked: the laws that every array of samples must obey before it becomes a task."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
KEYS = ("x_train", "y_train", "x_test", "y_test", "client", "valid")


@dataclass(frozen=True, eq=False)
class Samples:
    """A source's samples, with nothing split yet.

    Attributes:
        x_train, x_test: uint8 (intensities, still 0..255) or float32, shape (n, *input_shape).
        y_train, y_test: int64 labels, shape (n,), or float32 targets, shape (n, outputs).
        client: an id a training sample, shape (n,).
        valid: whether a training sample belongs to its client's validation part, bool, shape (n,).
        x_test and y_test are None together; client and valid are None where the source has none.
    """

    x_train: Array
    y_train: Array
    x_test: Array | None = None
    y_test: Array | None = None
    client: Array | None = None
    valid: Array | None = None


def check(returned: object, where: str) -> Samples:
    """Returns what a source returned as `Samples`.

    Args:
        where: a file, or what names the source, for the errors.
    Raises:
        ValueError: a key is missing or unknown, or an array has a wrong type, shape, length or value.
    """
    if not isinstance(returned, Mapping):
        raise ValueError(f"{where} must be arrays by key ({', '.join(KEYS)}), but it is {type(returned).__name__}.")
    unknown = sorted(set(returned) - set(KEYS), key=str)
    if unknown:
        raise ValueError(f"{where}: there is no key `{unknown[0]}`. Keys are {', '.join(KEYS)}.")
    # A key that is None is as good as absent, so that a function can return what it has.
    arrays = {key: np.asarray(value) for key, value in returned.items() if value is not None}
    for key in ("x_train", "y_train", *(("x_test", "y_test") if {"x_test", "y_test"} & arrays.keys() else ())):
        if key not in arrays:
            raise ValueError(f"{where} must have the key `{key}`, but it has {', '.join(sorted(arrays)) or 'none'}.")
    for key, array in arrays.items():
        if array.ndim == 0 or len(array) == 0:
            raise ValueError(f"{where}: `{key}` must hold samples, but its shape is {array.shape}.")
        split = "test" if key.endswith("test") else "train"
        if len(array) != len(arrays[f"x_{split}"]):
            raise ValueError(
                f"{where}: `{key}` must have an entry for each of the {len(arrays[f'x_{split}'])} samples in "
                f"`x_{split}`, but it has {len(array)}."
            )
    for key in ("x_train", "x_test"):
        if key in arrays:
            arrays[key] = _inputs(arrays[key], f"{where}: `{key}`")
    for key in ("y_train", "y_test"):
        if key in arrays:
            arrays[key] = _targets(arrays[key], f"{where}: `{key}`")
    for one, other in (("x_train", "x_test"), ("y_train", "y_test")):
        if other in arrays and _form(arrays[one]) != _form(arrays[other]):
            raise ValueError(
                f"{where}: `{one}` and `{other}` must be alike but for their lengths, but a sample has shape "
                f"{arrays[one].shape[1:]} of {arrays[one].dtype} in one and {arrays[other].shape[1:]} of "
                f"{arrays[other].dtype} in the other."
            )
    _check_labels([arrays[key] for key in ("y_train", "y_test") if key in arrays], where)
    for key, kinds, what in (("client", "iuSU", "integers or strings"), ("valid", "b", "booleans")):
        if key in arrays and (arrays[key].ndim != 1 or arrays[key].dtype.kind not in kinds):
            array = arrays[key]
            raise ValueError(
                f"{where}: `{key}` must be {what} of shape ({len(array)},), but it is {array.dtype} of shape "
                f"{array.shape}."
            )
    return Samples(**arrays)


def _inputs(array: Array, name: str) -> Array:
    if array.ndim < 2 or 0 in array.shape or array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} must be numbers of shape (samples, features) or (samples, channels, height, width), "
            f"but it is {array.dtype} of shape {array.shape}."
        )
    return array if array.dtype == np.uint8 else _float32(array, name)


def _targets(array: Array, name: str) -> Array:
    if array.dtype.kind == "f" and array.ndim in (1, 2) and 0 not in array.shape:
        return _float32(array, name).reshape(len(array), -1)
    if array.dtype.kind in "biu" and array.ndim == 1:
        return array.astype(np.int64)
    raise ValueError(
        f"{name} must be integer labels of shape (samples,), or floating-point targets of shape (samples,) or "
        f"(samples, outputs), but it is {array.dtype} of shape {array.shape}."
    )


def _float32(array: Array, name: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # told below, with the name
        array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        where = np.unravel_index(np.argmin(np.isfinite(array)), array.shape)
        raise ValueError(
            f"{name} must be finite in float32, but at index {tuple(map(int, where))} it is {array[where]}."
        )
    return array


def _form(array: Array) -> tuple[object, ...]:
    return array.dtype, array.shape[1:]


def _check_labels(labels: list[Array], where: str) -> None:
    if labels[0].dtype.kind != "i":
        return
    low, high = min(int(y.min()) for y in labels), max(int(y.max()) for y in labels)
    # More classes than samples: these are ids or years, and a model with an output for each would be nonsense.
    if low < 0 or high >= sum(map(len, labels)):
        raise ValueError(
            f"{where}: labels must be classes 0, 1, ..., but they go from {low} to {high} in {sum(map(len, labels))} "
            "samples. Renumber them, train and test together: np.unique(labels, return_inverse=True)[1]."
        )
