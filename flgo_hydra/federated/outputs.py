"""What a model must return: one form for each kind of task, and one sentence where it returns another.

Cross-entropy and squared error would compute with other forms as well: they broadcast, and train on the result.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def hold_form(outputs: Any, targets: Tensor, num_outputs: int | None = None) -> None:
    """Raises ValueError unless a model's outputs fit the targets of its batch.

    Args:
        outputs: should be floating point; of a classification (batch, classes), more classes than the task has are
            fine; of a regression the targets' shape, (batch, num_outputs).
        targets: labels, int64 of shape (batch,), or floating-point targets of shape (batch, num_outputs).
        num_outputs: the task's classes, where they are known.
    """
    if isinstance(outputs, Tensor) and outputs.is_floating_point():
        if targets.is_floating_point():
            if outputs.shape == targets.shape:
                return
        elif outputs.dim() == 2 and len(outputs) == len(targets) and outputs.shape[1] >= (num_outputs or 1):
            return
    raise ValueError(_sentence(outputs, targets, num_outputs))


def _sentence(outputs: Any, targets: Tensor, num_outputs: int | None) -> str:
    num_samples = len(targets)
    is_regression = targets.is_floating_point()
    width = targets.shape[1] if is_regression else num_outputs or "classes"
    wanted = f"({num_samples}, {width})"
    what = "target values" if is_regression else "classes, a score each"
    return (
        f"The model must return a floating-point tensor of shape {wanted} for a batch of {num_samples} samples "
        f"(samples, {what}), but it returns {_described(outputs)}. {_advice(outputs, wanted, targets, width)}"
    )


def _described(outputs: Any) -> str:
    if isinstance(outputs, Tensor):
        return f"{str(outputs.dtype).removeprefix('torch.')} of shape {tuple(outputs.shape)}"
    if isinstance(outputs, Mapping):
        return f"a {type(outputs).__name__} with {', '.join(map(repr, list(outputs)[:4])) or 'nothing'}"
    if isinstance(outputs, tuple | list):
        return f"a {type(outputs).__name__} of {len(outputs)}"
    return "None" if outputs is None else f"a {type(outputs).__name__}"


def _advice(outputs: Any, wanted: str, targets: Tensor, width: int | str) -> str:
    if not isinstance(outputs, Tensor):
        return "Let its forward return the tensor alone."
    if outputs.is_complex():
        return "Return real numbers, `.real` or `.abs()` of these."
    if not outputs.is_floating_point():
        return "Return the numbers before they are rounded: no argmax, no `.long()`."
    if isinstance(width, int) and outputs.numel() == len(targets) * width:
        return f"Reshape them in its forward: `return outputs.reshape(len(x), {width})`."
    return f"Its last layer should have {width} outputs: a model is given them as `num_outputs` where it takes that."
