"""A user's own metrics, computed at each evaluated round beside ours.

They are a function, or a class whose object is made once a run and called, named by `metrics=package.module.name`. It
is given, by name, what its signature takes of

    model     the server's model, in evaluation mode, on the run's device; its gradients are off
    task      the task (`federated/data/task.py`): arrays by client
    data      the task's samples as tensors on the device (`federated/data/on_device.py`)
    record    the evaluated rounds so far, the present one last, as dicts like the lines of rounds.jsonl

and returns numbers by name, which land in rounds.jsonl, in result.json, in the study and the tables. One of them may be
what the best round, early stop and tuning follow (`monitor`). For example the worst client, in `my_metrics.py`:

    def worst_client(model, data, task):
        losses = []
        for k in range(task.num_clients):
            x, y = data.client(k)
            losses.append(float(data.mean_criterion(model(x), y)))
        return {"worst_loss": max(losses)}

run by `python -m flgo_hydra metrics=my_metrics.worst_client monitor=worst_loss monitor_mode=min`.
"""

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flgo_hydra import reference
from flgo_hydra.federated.backend.python_state import PythonState, TooMuch
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.data.task import Task
from flgo_hydra.federated.refused import Refused
from flgo_hydra.objective import KNOWN

Values = dict[str, float]
_TAKEN = (*KNOWN, "round", "seconds")
"""what else stands in a line of rounds.jsonl; everywhere else metrics have a mapping of their own, or `@best(…)`"""
_MOST_CHARACTERS = 100


class OwnMetrics:
    """The metrics that a reference names, for one run."""

    def __init__(self, target: str, task: Task, data: Data) -> None:
        """Raises ValueError when the reference is wrong."""
        self._target = target
        found = reference.load(target, "metrics")
        offered = {"task": task, "data": data}
        self._function: Callable[..., Any] = found
        if inspect.isclass(found):
            self._function = reference.call(found, {}, offered, "metrics")
            if not callable(self._function):
                raise ValueError(f"`metrics={target}` is a class whose objects must be callable: give it a `__call__`.")
        self._offered = offered
        self._before = _kept_by(self._function)
        self.keeps = ""
        """the name of what it keeps from call to call, which no checkpoint has"""
        self.shares = ""
        """the same of what other runs of the process would find changed"""

    def look(self) -> None:
        """After the first call: what has it changed?"""
        if self._before is not None:
            before, self._before = self._before, None
            after = _kept_by(self._function)
            if after is not None:
                self.keeps, self.shares = (one.changed(other) for one, other in zip(before, after, strict=True))

    @torch.no_grad()
    def __call__(self, model: nn.Module, record: Sequence[Mapping[str, float]]) -> Values:
        """Returns the numbers of a round, by name.

        Raises:
            ValueError: what came back is no numbers by name, or takes a name of ours.
        """
        was_training = model.training
        model.eval()
        try:
            offered = {**self._offered, "model": model, "record": [dict(line) for line in record]}
            returned = reference.call(self._function, {}, offered, "metrics")
        finally:
            model.train(was_training)
        if not isinstance(returned, Mapping):
            raise ValueError(
                f"`metrics={self._target}` must return numbers by name, {{'worst_loss': 0.5}}, but got {returned!r}."
            )
        return {self._name(name): self._number(name, value) for name, value in returned.items()}

    def _name(self, name: object) -> str:
        if not isinstance(name, str) or name in _TAKEN:
            raise ValueError(
                f"`metrics={self._target}` must name its numbers by texts other than {', '.join(_TAKEN)}, but it "
                f"names one {name!r}."
            )
        if not (name.isprintable() and name.strip() == name and 1 <= len(name) <= _MOST_CHARACTERS):
            raise ValueError(
                f"`metrics={self._target}` must name its numbers by 1 to {_MOST_CHARACTERS} printable characters in "
                f"one line, without spaces around them, but it names one {name[:_MOST_CHARACTERS]!r}."
            )
        return name

    def _number(self, name: object, value: object) -> float:
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, numbers.Real) or (hasattr(value, "item") and getattr(value, "size", 0) == 1):
            return float(value)  # type: ignore[arg-type]
        raise ValueError(f"`metrics={self._target}` must return numbers, but {name!r} is {value!r}.")


def _kept_by(function: Callable[..., Any]) -> tuple[PythonState, PythonState] | None:
    """What a metric keeps now, and of that what is not its object's own; None where it cannot be looked at."""
    code = function if inspect.isfunction(function) else type(function).__call__
    try:
        return PythonState(metrics=function), PythonState(metrics=code)
    except (TooMuch, Refused):
        return None


def monitored(name: str, values: Mapping[str, float], round_num: int) -> float:
    """The metric that the run follows.

    Raises:
        ValueError: it was not computed.
    """
    if name not in values:
        raise ValueError(
            f"`monitor={name}` is not among the metrics of round {round_num}: {', '.join(values)}. Choose one of them, "
            "or have `metrics` return it."
        )
    return values[name]
