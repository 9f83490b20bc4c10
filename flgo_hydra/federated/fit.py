"""Whether a model fits its task, found out before a run begins: a copy of it is tried on the task's own samples.

The copy is given the smallest and the largest batch that clients train on, and the last ones that are evaluated; what
it returns must have the task's form (`outputs.py`). It also shows whether the model takes integers, and whether it
makes parts of itself in its first forward pass, which are then made with its initial weights (`model.make_model`). The
model and the process's generators are as they were afterwards.
"""

import contextlib
import contextvars
import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flgo_hydra.federated.backend.beyond import nothing_changed_beyond
from flgo_hydra.federated.backend.python_state import outside_kept
from flgo_hydra.federated.data.task import Task
from flgo_hydra.federated.evaluation import CHUNK
from flgo_hydra.federated.model import make_model, require_weights
from flgo_hydra.federated.outputs import hold_form
from flgo_hydra.federated.randomness import Purpose, generators_kept, seed_all, torch_seed
from flgo_hydra.federated.training import LocalWork

_OURS = "flgo_hydra.federated.model."
"""Models that fit every task that they can be built for: they need no trial, which takes as long as a few steps."""
_WANTS_INTEGERS = re.compile(r"\bindices\b|\bLong\b|\bInt\b|integer|int64")
"""in what torch says of a float where it looks something up"""


@dataclass(frozen=True)
class FittingModel:
    """A model that fits its task."""

    model: nn.Module
    takes_integers: bool
    """the task's inputs are integers, and it wants them so"""


def build_fitting_model(
    parameters: Mapping[str, Any],
    task: Task,
    work: LocalWork,
    dtype: torch.dtype,
    device: torch.device,
    has_own_loss: bool = False,
) -> FittingModel:
    """Builds the model on the CPU, with initial weights that `work.seed` decides, and tries a copy on the device.

    Args:
        has_own_loss: an algorithm's own loss makes what it likes of what the model returns while it trains.
    Raises:
        ValueError: it does not fit the task.
        Exception: what its forward pass raises, with a note of what it was given.
    """

    def build(first_batch: Tensor | None = None) -> nn.Module:
        return make_model(parameters, task.input_shape, task.num_outputs, work.seed, dtype, first_batch)

    model = build()
    if str(parameters["_target_"]).startswith(_OURS):
        require_weights(model, parameters)
        return FittingModel(model, False)
    before = _names(model)
    sizes = _batch_sizes(task, work)

    def try_copies(copies: bool = True) -> tuple[bool, nn.Module]:
        trial = _Trial(task, dtype, device, build, copies)
        seed_all(torch_seed(work.seed, Purpose.EVALUATION), device)
        takes_integers = trial.takes_integers(model, sizes[0])
        tried = trial.copy_of(model)
        trial.evaluate(tried, takes_integers)
        require_weights(tried, parameters)
        trial.train(tried, sizes, takes_integers, has_own_loss)
        return takes_integers, tried

    # As it is where a trial is ended because it would change a file or the like: then the first round will show.
    takes_integers, tried = task.x_train.dtype.kind == "i", model
    with generators_kept(), outside_kept(model=model), nothing_changed_beyond():
        in_context = contextvars.copy_context().run
        try:
            takes_integers, tried = in_context(try_copies)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a copy may lack what Python does not copy (slots); what is built anew lacks nothing
            takes_integers, tried = in_context(try_copies, False)
    if before != _names(tried):  # parts that are made in the first forward pass: now, with the seed of the weights
        x = torch.from_numpy(np.array(task.x_train[: sizes[-1]]))
        model = build(x if takes_integers else x.float())
    return FittingModel(model, takes_integers)


class _Trial:
    """Tries copies of a model on samples of a task.

    Args:
        build: makes the model again, for one that cannot be copied.
        copies: False: makes each copy so.
    """

    def __init__(
        self,
        task: Task,
        dtype: torch.dtype,
        device: torch.device,
        build: Callable[[], nn.Module],
        copies: bool,
    ) -> None:
        self._task, self._dtype, self._device, self._build, self._copies = task, dtype, device, build, copies

    def copy_of(self, model: nn.Module) -> nn.Module:
        copied = None
        if self._copies:
            with contextlib.suppress(Exception):  # torch copies no tensor that was computed, which a model may keep
                copied = copy.deepcopy(model)
        return (self._build() if copied is None else copied).to(self._device)

    def takes_integers(self, model: nn.Module, size: int) -> bool:
        """Whether the task's inputs are integers and the model computes with them; else it is given floats.

        Raises:
            ValueError: it wants integers, but the task has none.
        """
        x = self._task.x_train[:size]
        whole = _failure(self.copy_of(model), self._inputs(x, True)) if x.dtype.kind == "i" else None
        if x.dtype.kind == "i" and whole is None:
            return True
        with_floats = _failure(self.copy_of(model), self._inputs(x, False)) if whole is not None else None
        if whole is not None and with_floats is not None:
            if _WANTS_INTEGERS.search(str(with_floats)):
                raise whole
            with_floats.add_note(f"(on integers it fails too: {type(whole).__name__}: {whole})")
            raise with_floats
        return False

    def evaluate(self, model: nn.Module, takes_integers: bool) -> None:
        """On the last chunks of the validation and the test samples."""
        task, chunk = self._task, CHUNK[self._device.type]
        for x, y in ((task.x_valid, task.y_valid), (task.x_test, task.y_test)):
            begin = (len(x) - 1) // chunk * chunk
            model.eval()  # a statement: a user's own need not return the model
            with torch.no_grad():
                outputs = self._outputs(model, self._inputs(x[begin:], takes_integers))
            hold_form(outputs, self._targets(y[begin:]), self._num_classes)

    def train(self, model: nn.Module, sizes: Sequence[int], takes_integers: bool, has_own_loss: bool) -> None:
        """On batches of these sizes."""
        for size in sizes:
            model.train()
            with torch.enable_grad():
                outputs = self._outputs(model, self._inputs(self._task.x_train[:size], takes_integers))
            if has_own_loss:
                continue
            hold_form(outputs, self._targets(self._task.y_train[:size]), self._num_classes)
            if not outputs.requires_grad:
                raise ValueError(
                    "What the model returns must depend on its trainable parameters, but no gradient leads to them. "
                    "Look for `.detach()`, `.data`, `torch.no_grad` or numpy in its forward."
                )

    @property
    def _num_classes(self) -> int | None:
        return self._task.num_classes

    def _inputs(self, x: NDArray[Any], are_integers: bool) -> Tensor:
        # A copy: a model may change its inputs.
        return torch.tensor(np.asarray(x), dtype=torch.int64 if are_integers else self._dtype, device=self._device)

    def _targets(self, y: NDArray[Any]) -> Tensor:
        dtype = torch.int64 if self._task.num_classes is not None else self._dtype
        return torch.tensor(np.asarray(y), dtype=dtype, device=self._device)

    def _outputs(self, model: nn.Module, x: Tensor) -> Any:
        try:
            return model(x)
        except Exception as error:
            self._explain(error, x, model.training)
            mode = "training" if model.training else "evaluation"
            error.add_note(f"(the model was tried in {mode} mode on {_form(x)})")
            raise

    def _explain(self, error: Exception, x: Tensor, is_training: bool) -> None:
        """Raises what torch's error means for the user, where that is known."""
        if is_training and len(x) == 1 and "more than 1 value per channel" in str(error):
            raise ValueError(
                f"{error}. A client's last batch has a single sample, which batch normalisation cannot train on: "
                "set another `batch_size` (-1: all samples at once), or a model with group normalisation."
            ) from error
        if x.is_floating_point() and _failure(self.copy_of(self._build()), x.long()) is None:
            raise ValueError(
                f"The model takes integers, but the task gives it {_form(x)}. Let the source return x_train and x_test "
                "as int64: floating-point x stays so, and uint8 is read as intensities."
            ) from error


def _failure(model: nn.Module, x: Tensor) -> Exception | None:
    """What the model raises on these inputs."""
    try:
        model.eval()
        with torch.no_grad():
            model(x)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return error
    return None


def _batch_sizes(task: Task, work: LocalWork) -> list[int]:
    """The smallest and the largest batch that a client may train on."""
    sizes = set()
    for n in np.unique(task.train_sizes).tolist():
        size, num_steps = work.size(n)
        last = n % size if num_steps >= -(-n // size) else 0  # of an epoch that is taken whole
        sizes |= {size, last or size}
    return sorted({min(sizes), max(sizes)})


def _names(model: nn.Module) -> list[tuple[str, bool]]:
    """Parameters and buffers, with whether they are still to be made."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(name, nn.parameter.is_lazy(tensor)) for name, tensor in named]


def _form(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} inputs of shape {tuple(x.shape)}"
