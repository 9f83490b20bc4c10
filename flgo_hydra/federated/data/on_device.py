"""A task's samples as tensors: on the device once, in the run's dtype; ids stay integers for a model of ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from flgo_hydra.federated.data.task import Task
from flgo_hydra.federated.outputs import hold_form


@dataclass(frozen=True)
class HeldOut:
    """Validation or test samples, with the weight each has in the mean that is reported. n samples."""

    x: Tensor  # (n, *input_shape)
    y: Tensor  # (n,) int64, or (n, num_outputs) for regression
    weights: Tensor  # (n,) float64, sums to 1


@dataclass(frozen=True)
class Data:
    """The training samples, clients one after another, and what is evaluated."""

    x_train: Tensor
    y_train: Tensor
    offsets: list[int]  # client k holds training samples offsets[k] to offsets[k + 1]
    valid: HeldOut
    test: HeldOut
    is_classification: bool
    num_classes: int | None = None
    valid_offsets: Sequence[int] = ()
    """client k holds validation samples valid_offsets[k] to valid_offsets[k + 1]; empty: nobody knows whose they are"""
    own_test: HeldOut | None = None
    """the clients' own test samples, with weights as those for validation; None: there are none"""
    own_test_offsets: Sequence[int] = ()

    def client(self, k: int) -> tuple[Tensor, Tensor]:
        """Training samples of client k, shapes (n_k, *input_shape) and (n_k, …)."""
        begin, end = self.offsets[k], self.offsets[k + 1]
        return self.x_train[begin:end], self.y_train[begin:end]

    @property
    def versions(self) -> tuple[int, ...]:
        """How often each tensor has been changed in place."""
        held_out = [samples for samples in (self.valid, self.test, self.own_test) if samples is not None]
        tensors = (self.x_train, self.y_train, *(t for s in held_out for t in (s.x, s.y, s.weights)))
        return tuple(t._version for t in tensors)

    def num_samples(self, k: int) -> int:
        """Training samples of client k."""
        return self.offsets[k + 1] - self.offsets[k]

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each sample, shape (batch,): cross-entropy, or the mean squared error over the outputs.

        Raises:
            ValueError: the outputs have another form than the task's (`outputs.py`).
        """
        hold_form(outputs, targets)
        if self.is_classification:
            return functional.cross_entropy(outputs, targets, reduction="none")
        return functional.mse_loss(outputs, targets, reduction="none").mean(dim=-1)

    def mean_criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean of `criterion` over the batch, in one operation."""
        hold_form(outputs, targets)
        if self.is_classification:
            return functional.cross_entropy(outputs, targets)
        return functional.mse_loss(outputs, targets)


def to_data(task: Task, device: torch.device, dtype: torch.dtype, keeps_integers: bool = False) -> Data:
    """Puts a task's arrays on the device. On the CPU in float32 the memory-mapped arrays are used as they are.

    Args:
        keeps_integers: inputs that are integers stay int64, as the model takes them (`fit.py`).
    """
    x_dtype = torch.int64 if keeps_integers and task.x_train.dtype.kind == "i" else dtype

    def x_tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device=device, dtype=x_dtype)

    def y_tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device=device, dtype=None if task.num_classes is not None else dtype)

    def samples(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> HeldOut:
        return HeldOut(x_tensor(x), y_tensor(y), torch.from_numpy(weights).to(_weight_dtype(device)).to(device))

    num_test = len(task.y_test)
    own_test: dict[str, Any] = {}
    if task.x_own_test is not None and task.y_own_test is not None and task.own_test_offsets is not None:
        weights = valid_weights(task.train_sizes, np.diff(task.own_test_offsets))
        own_test["own_test"] = samples(task.x_own_test, task.y_own_test, weights)
        own_test["own_test_offsets"] = task.own_test_offsets.tolist()
    return Data(
        x_tensor(task.x_train),
        y_tensor(task.y_train),
        task.train_offsets.tolist(),
        samples(task.x_valid, task.y_valid, valid_weights(task.train_sizes, task.valid_sizes)),
        samples(task.x_test, task.y_test, np.full(num_test, 1 / num_test)),
        is_classification=task.num_classes is not None,
        num_classes=task.num_classes,
        valid_offsets=task.valid_offsets.tolist(),
        **own_test,
    )


def valid_weights(train_sizes: np.ndarray, valid_sizes: np.ndarray) -> np.ndarray:
    """The weight of each validation sample in the FL objective on held-out data.

    The objective is the mean over clients of a client's mean, weighted by its number of training samples n_k; clients
    without validation samples are left out of both sums. So a sample of client k weighs n_k / (v_k * sum of n).
    (FLGo zips all n_k with the metrics of the clients that have some, which misaligns them.)

    Returns:
        float64 array of shape (number of validation samples,), which sums to 1.
    """
    has_samples = valid_sizes > 0
    total = train_sizes[has_samples].sum()
    per_client = train_sizes[has_samples] / (valid_sizes[has_samples] * total)
    return np.repeat(per_client, valid_sizes[has_samples])


def _weight_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
