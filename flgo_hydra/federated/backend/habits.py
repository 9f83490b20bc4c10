"""What a model and an algorithm do beside computing, found out by a small round on copies of them.

Plain steps run whatever Python can say. A faster form does not: a recording repeats tensor operations only, and
clients side by side make one call of many. So before the first round a copy of the model takes a step on the largest
batch and one on the smallest, sends a message to a copy of the server, and is evaluated, and what has changed on the
way is looked at. What no backend can honour is refused here, in a sentence.
"""

import contextvars
import random
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flgo_hydra.federated.algorithm.base import Client, Hyper, State, Tensors, takes_all_messages
from flgo_hydra.federated.backend.beyond import nothing_changed_beyond
from flgo_hydra.federated.backend.calls import Calls
from flgo_hydra.federated.backend.cannot import one_line
from flgo_hydra.federated.backend.hooks import refuse_hooks
from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.backend.noticed import noticed
from flgo_hydra.federated.backend.python_state import PythonState
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.data.on_device import Data, HeldOut
from flgo_hydra.federated.evaluation import evaluate
from flgo_hydra.federated.randomness import generators_kept
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.training import Mean, ServerState, Stack, finish_round

TRIAL_LR = 0.01
"""The learning rate of all trials: what runs shall not depend on a run's own."""


@dataclass(frozen=True)
class Habits:
    """What was found."""

    why_plain: str = ""
    """why only plain steps do what the model and the algorithm do"""
    why_apart: str = ""
    """why clients side by side do not"""
    why_not_fused: str = ""
    """why the servers of several runs do not"""
    keeps: str = ""
    """what Python keeps from step to step, which no checkpoint has"""


def look(loop: LocalSteps, sizes: list[int], server: ServerState, hyper: Hyper) -> Habits:
    """Finds out what the loop's model and algorithm do, and leaves no trace in them.

    Args:
        sizes: of the batches that the run takes.
    Raises:
        Refused: something that no backend can honour.
    """
    trial = _Trial(loop, sizes, server, hyper)
    found = Habits()
    with generators_kept(), nothing_changed_beyond() as beyond:
        try:
            found = contextvars.copy_context().run(trial.look)
        except Refused:
            raise
        except Exception as error:  # whatever it is, the first round will raise it again
            found = _plain(f"a trial step fails: {one_line(error)}")
    return _plain(str(beyond), found) if beyond else found


_REENTRANT = (
    "`torch.utils.checkpoint` with `use_reentrant=True` works with `.backward()` only, but gradients are taken with "
    "`torch.autograd.grad` here: set `use_reentrant=False`, which PyTorch recommends."
)


class _Trial:
    def __init__(self, loop: LocalSteps, sizes: list[int], server: ServerState, hyper: Hyper) -> None:
        self._original = loop
        self._sizes = sizes
        self._given = server
        self._noticed: list[str] = []
        self._decided: list[str] = []
        self._hyper: Hyper = {
            # Parts have no say in steps, and runs with parts are never fused: they may do what they like with theirs.
            name: value if name.startswith("parts.") else noticed(value, name, self._noticed, self._decided)
            for name, value in {**hyper, "lr": TRIAL_LR}.items()
        }
        self._found = Habits()

    def look(self) -> Habits:
        model, algorithm = self._original.model, self._original.step.algorithm
        own = PythonState.of_originals(model=model, algorithm=algorithm)
        if own.holds_a_part:
            return _plain(f"{own.holds_a_part} holds a part of the model, and they cannot be copied apart")
        if own.opaque:
            return _plain(f"`{own.opaque}` is shared with threads or processes")
        if own.peeks:
            return _plain(f"it asks for what Python alone knows (`{own.peeks}`)")
        if PythonState(algorithm=algorithm).asks_types:
            return _plain("it asks whether numbers are Python's")
        if self._original.has_users_code:
            refuse_hooks(model)
        if any(p._backward_hooks for p in model.parameters()):
            return _plain("the model's parameters have hooks")
        try:
            loop = self._original.copy()
        except Exception as error:
            return replace(_plain(f"the model cannot be copied: {one_line(error)}"), keeps=own.generator)
        before = PythonState(model=loop.model, algorithm=loop.step.algorithm)
        if other := own.differs(before, without="_hooks["):  # of which torch makes new ones
            return replace(_plain(f"a copy of it has another `{other}`"), keeps=own.generator)
        noise, torch_noise = python_noise(), _TorchNoise(loop.data.x_train.device)
        keeps_draws = False
        try:
            self._try(loop)
            keeps_draws = own.has_filled_a_cache and torch_noise.has_moved
            changed = before.changed(PythonState(model=loop.model, algorithm=loop.step.algorithm))
        finally:
            own.put_back_outside()
        if keeps_draws:
            return _plain("a function's cache may keep what it has drawn", self._found)
        if python_noise() != noise:
            return _plain("it draws random numbers from Python or numpy", self._found)
        if changed:
            return replace(_plain(f"`{changed}` changes while it computes", self._found), keeps=changed)
        return self._found

    def _try(self, loop: LocalSteps) -> None:
        server = copied(self._given)
        loop.load(server)
        flags = dict.fromkeys(loop.params, True)
        loop.model.train()
        _refuse_other_flags(loop.model, flags, "its `train()`")
        client = loop.client_at_trial(server, 0, self._hyper)
        before = {key: _cloned(tensors) for key, tensors in client.state.items()}
        loop.find_program(server, self._hyper)
        largest, smallest = max(self._sizes), min(self._sizes)
        calls = Calls()
        with calls:
            self._pass(loop, _rows(loop.data, largest))
            loop.train_client([_rows(loop.data, largest)], client, self._hyper)
        if smallest < largest:
            try:
                loop.train_client([_rows(loop.data, smallest)], client, self._hyper)
            except Exception as error:  # a batch normalisation of one sample, say: the plain step will raise it again
                self._found = _plain(f"a step on {smallest} of its samples fails: {one_line(error)}", self._found)
        with Calls() as of_finish:
            sent, kept = self._finish(loop, client)
        by = "`correct` or `finish`" if loop.program is None else "`begin`, `step` or `end`"
        _refuse_changes(self._given, server, before, client.state, by)
        del kept
        with Calls() as of_server:
            self._update_server(loop, server, sent)
        self._evaluate(loop)
        if self._noticed:
            self._found = _plain(
                f"it looks numbers up, compares, rounds or writes them (`hyper[{self._noticed[0]!r}]`)", self._found
            )
        if calls.reader:
            self._found = _plain(f"it reads numbers from tensors ({calls.reader})", self._found)
        scalar = calls.scalar or of_finish.scalar
        if why := calls.look_up or (
            f"it reads a number from a tensor (`{scalar}`), each client's own" if scalar else ""
        ):
            self._found = replace(self._found, why_apart=self._found.why_apart or why)
        if why := self._why_not_fused(of_server):
            self._found = replace(self._found, why_not_fused=self._found.why_not_fused or why)

    def _why_not_fused(self, of_server: Calls) -> str:
        if self._decided:
            return f"it decides by `hyper[{self._decided[0]!r}]`, each run's own"
        return f"`update_server` reads a number from a tensor (`{of_server.scalar}`)" if of_server.scalar else ""

    def _pass(self, loop: LocalSteps, rows: Tensor) -> None:
        """A forward pass, and what became of what it should not change."""
        x, y = loop.data.x_train[rows], loop.data.y_train[rows]
        params: Tensors = dict(loop.model.named_parameters())
        flags = _flags(loop.model)
        buffers = set(dict(loop.model.named_buffers()))
        values = _cloned(params)
        noise = _TorchNoise(x.device)
        with torch.enable_grad():
            loss = loop.loss(x, y)
        if any(node.name() == "CheckpointFunctionBackward" for node in _nodes(loss)):
            raise Refused(_REENTRANT)
        if noise.has_moved:
            why = "the model draws random numbers, each client's from a generator of its own"
            self._found = replace(self._found, why_apart=why)
        _refuse_new_parts(loop.model, params, buffers, flags)
        loop.check_buffers()
        changed = next((name for name, p in params.items() if not _equal(p.detach(), values[name])), "")
        if changed:
            self._found = _plain(f"the model changes its parameter `{changed}` in its forward pass", self._found)

    def _finish(self, loop: LocalSteps, client: Client) -> tuple[State, State]:
        noise = _TorchNoise(loop.data.x_train.device)
        with torch.no_grad():
            sent, kept = loop.end(0, loop.carry, client, 2, self._hyper, loop.buffers)
        if noise.has_moved:
            why = "`finish` draws random numbers, each client's from a generator of its own"
            self._found = replace(self._found, why_apart=why)
        return sent, kept

    def _update_server(self, loop: LocalSteps, server: ServerState, sent: State) -> None:
        cohort = Cohort(np.zeros(1, np.int64), np.ones(1), 1.0, 1.0, 1)
        algorithm = loop.step.algorithm
        message = Stack(algorithm, cohort, self._hyper) if takes_all_messages(algorithm) else Mean()
        message.add(sent, 1.0)
        noise = _TorchNoise(loop.data.x_train.device)
        with torch.no_grad():
            after = finish_round(server, loop.step.algorithm, message.value(), {}, cohort, self._hyper)
        if noise.has_moved:
            self._found = replace(self._found, why_not_fused="`update_server` draws random numbers, each run's own")
        name = type(loop.step.algorithm).__name__
        _refuse_another_form(name, "model", {"params": self._given.params}, {"params": after.params})
        _refuse_another_form(name, "state of the server", self._given.state, after.state)

    def _evaluate(self, loop: LocalSteps) -> None:
        some = loop.data.valid if len(loop.data.valid.x) else loop.data.test
        evaluate(loop.model, loop.data, HeldOut(some.x[:2].clone(), some.y[:2].clone(), some.weights[:2].clone()))


def _plain(why: str, found: Habits | None = None) -> Habits:
    """Only plain steps will do."""
    found = found or Habits()
    return replace(found, why_plain=found.why_plain or why, why_apart=found.why_plain or why)


def _nodes(loss: Tensor) -> set[Any]:
    """Of the graph that the gradients are taken from."""
    found: set[Any] = set()
    to_see = [loss.grad_fn]
    while to_see:
        node = to_see.pop()
        if node is not None and node not in found:
            found.add(node)
            to_see.extend(before for before, _ in node.next_functions)
    return found


def _rows(data: Data, size: int) -> Tensor:
    """A batch from all over the training samples."""
    n = len(data.x_train)
    return (torch.arange(size, device=data.x_train.device) * max(1, n // size)) % n


def _flags(model: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


def _refuse_new_parts(model: nn.Module, params: Tensors, buffers: set[str], flags: dict[str, bool]) -> None:
    now = dict(model.named_parameters())
    for name in sorted({*params, *now}):
        if now.get(name) is not params.get(name):
            raise Refused(
                f"The model must make its parameters before it trains, but its forward pass makes or drops `{name}`: "
                "make it in `__init__`."
            )
    _refuse_other_flags(model, flags, "its forward pass")
    for name in sorted(buffers ^ set(dict(model.named_buffers()))):
        raise Refused(
            f"The model must register its buffers before it trains, since the clients' are averaged, but its forward "
            f"pass makes or drops `{name}`: give it its shape in `__init__`, or keep it as a plain attribute."
        )


def _refuse_other_flags(model: nn.Module, flags: dict[str, bool], by: str) -> None:
    now = _flags(model)
    for name, flag in flags.items():
        if now[name] != flag:
            raise Refused(
                f"Which parameters are trained must be fixed before training, but the model sets `requires_grad` of "
                f"`{name}` in {by}: set it in `__init__`."
            )


def _refuse_changes(given: ServerState, server: ServerState, kept: State, state: State, by: str) -> None:
    parts = [("client.anchor", given.params, server.params)]
    parts += [(f"client.server['{key}']", ts, server.state[key]) for key, ts in given.state.items()]
    parts += [(f"client.state['{key}']", ts, state[key]) for key, ts in kept.items()]
    for what, before, after in parts:
        for name, tensor in before.items():
            if not _equal(tensor, after[name]):
                raise Refused(
                    f"The algorithm must not change what a client is given, which others are given too, but {by} "
                    f"changes `{what}` (`{name}`) in place: compute a new tensor and return it."
                )


def _refuse_another_form(algorithm: str, what: str, before: State, after: Any) -> None:
    for key, tensors in before.items():
        for name, tensor in tensors.items():
            got = after.get(key, {}).get(name) if isinstance(after, dict) else None
            if not isinstance(got, Tensor) or got.shape != tensor.shape:
                found = f"shape {tuple(got.shape)}" if isinstance(got, Tensor) else repr(got)
                raise Refused(
                    f"`update_server` of {algorithm} must return the next {what} with the same names and shapes: "
                    f"`{name}` has shape {tuple(tensor.shape)}, but got {found}."
                )


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))


def _cloned(tensors: Tensors) -> Tensors:
    return {name: t.detach().clone() for name, t in tensors.items()}


def copied(server: ServerState) -> ServerState:
    """The same numbers in tensors of their own."""
    state = {key: _cloned(tensors) for key, tensors in server.state.items()}
    return ServerState(_cloned(server.params), _cloned(server.buffers), state)


class _TorchNoise:
    """Where torch's generators stand."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states = self._now()

    def _now(self) -> list[Tensor]:
        of_device = [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else []
        return [torch.default_generator.get_state(), *of_device]

    @property
    def has_moved(self) -> bool:
        """Whether something has been drawn since."""
        return not all(torch.equal(a, b) for a, b in zip(self._states, self._now(), strict=True))


def python_noise() -> tuple[Any, ...]:
    """The state of Python's and numpy's generators."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(keys).tobytes(), tuple(rest)
