"""What a source returns, checked: the laws that every array of samples must obey before it becomes a task.

Every entry of every array is there: masked arrays, None, NaN and pandas' NA are refused with the index of the first.
"""

import sys
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
        x_train, x_test: uint8 (intensities, still 0..255), int64 (ids and counts) or float32, shape (n, *input_shape).
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
    arrays = {key: whole_array(value, f"{where}: `{key}`") for key, value in returned.items() if value is not None}
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
    inputs = [key for key in ("x_train", "x_test") if key in arrays]
    are_integers = all(arrays[key].dtype.kind in "iu" for key in inputs)
    for key in inputs:
        arrays[key] = _inputs(arrays[key], f"{where}: `{key}`", are_integers)
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


def whole_array(value: Any, name: str) -> Array:
    """Returns what a user handed over as an array, in which nothing is missing.

    Args:
        name: of the value, for the error.
    Raises:
        ValueError: an entry is masked or missing, at the index that is told; or it is no array at all.
    """
    masked = _first_masked(value)
    if masked is not None:
        raise ValueError(
            f"{name} must have no masked entries, but at index {masked} it has one. Fill them with numbers of your "
            "choice (`.filled(0)`), or leave those samples out."
        )
    value = _without_tensors(value, name)
    if hasattr(value, "toarray") and not hasattr(value, "__array__"):  # scipy's
        raise ValueError(f"{name} must be a dense array, but it is a sparse {type(value).__name__}. Take `.toarray()`.")
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists, whatever has an `__array__` of its own
        _refuse_ragged(value, name)
        raise ValueError(f"{name} must be an array, but numpy cannot make one of it: {error}") from error
    if array.dtype.kind == "O" and array.ndim:
        _refuse_ragged(value, name)
        found = _first_missing(array)
        if found is not None:
            index, what = found
            raise ValueError(
                f"{name} must have no missing entries, but at index {index} it is {what!r}. Fill them, or leave those "
                "samples out."
            )
    return array


def _without_tensors(value: Any, name: str) -> Any:
    """Torch's tensors, also in a list, as numpy takes them: without a gradient, of a type that numpy has."""
    torch = sys.modules.get("torch")
    if torch is None:
        return value
    if isinstance(value, list | tuple) and any(isinstance(item, torch.Tensor) for item in value):
        return [_without_tensors(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_nested:
        raise ValueError(f"{name} must have samples of one shape, but it is a nested tensor. Pad or crop them.")
    if value.layout is not torch.strided:
        layout = str(value.layout).removeprefix("torch.")
        raise ValueError(f"{name} must be a dense tensor, but its layout is {layout}. Take `.to_dense()`.")
    if value.is_meta:
        raise ValueError(f"{name} must hold numbers, but it is a tensor on the device meta, which has none.")
    if value.is_quantized:
        raise ValueError(f"{name} must hold numbers, but it is quantized ({value.dtype}). Take `.dequantize()`.")
    plain = value.detach().resolve_conj().resolve_neg().cpu()
    try:
        return plain.numpy()
    except TypeError:  # bfloat16 and narrower: float32 has all of their numbers
        return plain.float().numpy()


def _refuse_ragged(value: Any, name: str) -> None:
    """Refuses samples of several shapes."""
    try:
        shapes = [np.shape(item) for item in value]
    except Exception:  # the samples themselves are ragged, or cannot be gone through
        return
    other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise ValueError(
            f"{name} must have samples of one shape, but at index 0 it is {shapes[0]}, and at index {other} "
            f"{shapes[other]}. Pad or crop them."
        )


def _first_masked(value: Any) -> tuple[int, ...] | None:
    """The index of the first masked entry, also where a list holds the masked arrays."""
    if "numpy.ma" not in sys.modules:  # numpy imports it when it is asked for
        return None
    if isinstance(value, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(value)
        if mask.dtype.names:  # of a table, by column
            mask = np.asarray(mask.view(bool).reshape(*mask.shape, -1).any(axis=-1))
        return tuple(map(int, np.unravel_index(np.argmax(mask), mask.shape))) if mask.any() else None
    if isinstance(value, list | tuple) and any(isinstance(item, np.ma.MaskedArray | list | tuple) for item in value):
        for i, item in enumerate(value):
            inside = _first_masked(item)
            if inside is not None:
                return i, *inside
    return None


def _first_missing(array: Array) -> tuple[tuple[int, ...], Any] | None:
    """The index of the first None, NaN or NA in an array of objects, and what it is."""
    for number, item in enumerate(array.flat):
        # NaN and NaT are not equal to themselves, and pandas' NA to nothing that has a truth value.
        if item is None or type(item).__name__ == "NAType" or (isinstance(item, float | np.generic) and item != item):
            return tuple(map(int, np.unravel_index(number, array.shape))), item
    return None


def _inputs(array: Array, name: str, are_integers: bool) -> Array:
    if array.ndim < 2 or 0 in array.shape or array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} must be numbers of shape (samples, features) or (samples, channels, height, width), "
            f"but it is {array.dtype} of shape {array.shape}."
        )
    shape = array.shape[1:]
    is_last = len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) > 4
    if is_last and (array.dtype == np.uint8 or shape[0] == shape[1]):
        raise ValueError(
            f"{name} must be images of shape (samples, channels, height, width), but its shape is {array.shape}: the "
            "channels seem to come last. Put them first: `x.transpose(0, 3, 1, 2)`."
        )
    if array.dtype == np.uint8:
        return array
    return _int64(array, name) if are_integers else _float32(array, name)


def _targets(array: Array, name: str) -> Array:
    if array.dtype.kind == "f" and array.ndim in (1, 2) and 0 not in array.shape:
        if array.ndim == 1:
            _refuse_float_labels(array, name)
        return _float32(array, name).reshape(len(array), -1)
    if array.dtype.kind in "biu" and array.ndim == 1:
        return _int64(array, name)
    if array.dtype.kind in "biu" and array.ndim == 2:
        form = "`y[:, 0]`" if array.shape[1] == 1 else "`y.argmax(1)`, if each row is the one-hot code of a class"
        advice = f" For labels take {form}; for targets, `y.astype(float)`."
    elif array.dtype.kind in "SUO" and array.ndim == 1:
        advice = " Number the classes, train and test together: `np.unique(labels, return_inverse=True)[1]`."
    else:
        advice = ""
    raise ValueError(
        f"{name} must be integer labels of shape (samples,), or floating-point targets of shape (samples,) or "
        f"(samples, outputs), but it is {array.dtype} of shape {array.shape}.{advice}"
    )


def _refuse_float_labels(array: Array, name: str) -> None:
    """Refuses floats that look like class labels: 0, 1, … up to some class, each there, two samples a class or more.

    They would be trained on as numbers, without a word.
    """
    high = array.max()
    if not (array.min() == 0 and 1 <= high <= len(array) / 2 - 1 and (array == np.floor(array)).all()):
        return
    if len(np.unique(array)) == high + 1:
        raise ValueError(
            f"{name} must be integers if it is class labels, but it is {array.dtype} with the numbers 0 to {high:.0f}, "
            "which would be a regression's targets. For classes take `y.astype(int)`; for a regression give it the "
            "shape (samples, 1): `y[:, None]`."
        )


def _int64(array: Array, name: str) -> NDArray[np.int64]:
    if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        where = np.unravel_index(np.argmax(array), array.shape)
        raise ValueError(
            f"{name} must be integers below 2**63, but at index {tuple(map(int, where))} it is {array[where]}."
        )
    return np.ascontiguousarray(array, np.int64)


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
            "samples. Renumber them, train and test together: `np.unique(labels, return_inverse=True)[1]`."
        )
    there = np.unique(np.concatenate([np.unique(y) for y in labels]))
    if len(there) < (high + 1) / 2:
        some = ", ".join(map(str, there[:5])) + (", …" if len(there) > 5 else "")
        raise ValueError(
            f"{where}: labels must be classes 0, 1, ..., but of {high + 1} classes up to {high} only {len(there)} "
            f"occur ({some}), and a model would have an output for each. Renumber them, train and test together: "
            "`np.unique(labels, return_inverse=True)[1]`."
        )
