"""What a client runs whose algorithm does more than correct one model's gradient (`Algorithm.begin`, `step`, `end`).

A step is a pure function of one client, from what is carried, the optimizer's slots and the model's buffers to the next
ones: plain, recorded, and under `torch.vmap`. What is carried is flat here, one tensor by one name.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.local import LocalBatch
from flgo_hydra.federated.optimizer import Slots
from flgo_hydra.federated.randomness import generators_kept
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.training import LocalStep


def flat(carry: State) -> Tensors:
    """By one name for each tensor: `model.name`."""
    return {f"{model}.{name}": t for model, tensors in carry.items() for name, t in tensors.items()}


def unflat(tensors: Tensors) -> State:
    """The opposite of `flat`."""
    found: State = {}
    for key, t in tensors.items():
        model, _, name = key.partition(".")
        found.setdefault(model, {})[name] = t
    return found


def apart(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """The same pairs of a tensor and its next value, to be copied one after another: none is read once changed."""
    states = {state.untyped_storage().data_ptr() for state, _ in pairs}
    return [
        (state, value.clone() if value is not state and value.untyped_storage().data_ptr() in states else value)
        for state, value in pairs
    ]


@dataclass(frozen=True)
class StepInputs:
    """What a step is given beside what changes. B samples."""

    x: Tensor
    y: Tensor
    weights: Tensor | None
    """of the samples in the batch's mean, (B,), where it is filled up"""
    count: Any
    """the step's number, from 1"""
    num_steps: Any
    client: Client
    hyper: Hyper


class ClientProgram:
    """The program of an algorithm's clients.

    Args:
        model: gives the architecture.
        criterion: the task's loss of each sample.
    """

    def __init__(self, algorithm: Algorithm, model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._algorithm, self._model, self._criterion = algorithm, model, criterion
        self._name = type(algorithm).__name__
        self.slots: dict[str, Slots] = {}
        """what the optimizer keeps, zeros"""

    def find_form(self, step: LocalStep, given: StepInputs, buffers: Tensors, fixed: Tensors) -> Tensors:
        """Takes a step, to find out what it descends on; returns what is carried at first, in tensors of its own."""
        with torch.no_grad(), generators_kept():
            carried = {key: t.detach().clone() for key, t in self.begin(given.client, given.hyper).items()}
            at = self._at(step, given, {}, buffers, fixed, nullcontext)
            self._step(carried, at, given)
        self.slots = {key: tuple(torch.zeros_like(slot) for slot in slots) for key, slots in at.slots.items()}
        return carried

    def take_form(self, other: "ClientProgram") -> None:
        """Takes over what another one has found."""
        self.slots = other.slots

    def begin(self, client: Client, hyper: Hyper) -> Tensors:
        """What is carried at first."""
        carry = self._algorithm.begin(client, hyper)
        self._require_carry("begin", carry)
        return flat(carry)

    def next(
        self,
        step: LocalStep,
        given: StepInputs,
        carried: Tensors,
        slots: Mapping[str, Slots],
        buffers: Tensors,
        fixed: Tensors,
        passing: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> tuple[Tensors, dict[str, Slots], Tensors]:
        """What a step makes of what is carried, of the optimizer's slots, and of the buffers, if it changes them.

        Args:
            fixed: the model's parameters that are not trained.
            passing: open around each forward pass.
        """
        at = self._at(step, given, slots, buffers, fixed, passing)
        found = self._step(carried, at, given)
        return found, at.slots, at.next_buffers or {}

    def _at(
        self,
        step: LocalStep,
        given: StepInputs,
        slots: Mapping[str, Slots],
        buffers: Tensors,
        fixed: Tensors,
        passing: Callable[[], AbstractContextManager[Any]],
    ) -> LocalBatch:
        return LocalBatch(
            given.x,
            given.y,
            given.weights,
            buffers,
            count=given.count,
            num_steps=given.num_steps,
            slots=dict(slots),
            _loss=self._algorithm.loss,
            _model=self._model,
            _criterion=self._criterion,
            _fixed=fixed,
            _passing=passing,
            _optimizer=step.optimizer,
            _clip_grad=step.clip_grad,
            _lr=given.hyper["lr"],
        )

    def _step(self, carried: Tensors, at: LocalBatch, given: StepInputs) -> Tensors:
        carry = self._algorithm.step(unflat(carried), at, given.client, given.hyper)
        self._require_carry("step", carry)
        found = flat(carry)
        for key in dict.fromkeys((*carried, *found)):
            mine, theirs = carried.get(key), found.get(key)
            if mine is None or theirs is None or mine.shape != theirs.shape:
                what = "is new" if mine is None else "is missing"
                if mine is not None and theirs is not None:
                    what = f"has shape {tuple(theirs.shape)}, not {tuple(mine.shape)}"
                raise Refused(
                    f"`step` of {self._name} must return what it carries, with the names and shapes that `begin` gave "
                    f"it, but `{key}` {what}."
                )
        return found

    def _require_carry(self, by: str, carry: Any) -> None:
        what = ""
        if not isinstance(carry, Mapping) or not carry:
            what = f"{carry!r:.60}"
        else:
            for model, tensors in carry.items():
                if "." in str(model):
                    what = f"the name `{model}`, which has a dot"
                elif not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
                    what = f"{tensors!r:.60} for `{model}`"
        if what:
            raise Refused(
                f"`{by}` of {self._name} must return tensors by name and by a name for them all, as in "
                f"{{'model': client.anchor}}, but got {what}."
            )
