"""What local training is, whichever backend runs it.

`LocalStep` says what one step is, as a pure function that also runs under `torch.vmap`; `LocalWork` how many steps a
client takes on which samples; `ServerState` what goes into a round and comes out. The backends (`backend/`) give the
same numbers.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from flgo_hydra.federated.algorithm.base import (
    Algorithm,
    Client,
    Hyper,
    State,
    Tensors,
)
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.optimizer import Number, Optimizer, Slots, StepCounts, clip, is_zero
from flgo_hydra.federated.randomness import Purpose, generators_kept, permutations
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.schedule import Order, batch_sizes, count_steps, resolve_batch_size
from flgo_hydra.federated.users_code import is_users


@dataclass(frozen=True)
class LocalStep:
    """One local step, from a gradient to the next parameters: correct, clip, optimize."""

    algorithm: Algorithm
    optimizer: Optimizer
    clip_grad: Number = 0.0

    def start(self, params: Tensors) -> dict[str, Slots]:
        """The optimizer's state before a client's first step."""
        zeros = self.optimizer.num_slots
        return {name: tuple(torch.zeros_like(p) for _ in range(zeros)) for name, p in params.items()}

    def direction(self, params: Tensors, grads: Tensors, client: Client, hyper: Hyper) -> Tensors:
        """The algorithm's direction, its norm clipped."""
        try:
            grads = self.algorithm.correct(grads, params, client, hyper)
        except KeyError as error:
            name = error.args[0] if error.args else None
            if name not in params or name in grads:
                raise
            raise Refused(
                f"`correct` of {type(self.algorithm).__name__} reads the gradient of {name!r}, but the loss of this "
                "batch does not depend on that parameter, and such are not among `grads`. Go through `grads.items()` "
                "to leave them alone, or take `grads.get(name, 0.0)`."
            ) from error
        if is_users(type(self.algorithm)):
            _require_direction(grads, params, type(self.algorithm).__name__)
        return grads if is_zero(self.clip_grad) else clip(grads, self.clip_grad)

    def __call__(
        self,
        params: Tensors,
        grads: Tensors,
        slots: dict[str, Slots],
        count: Any,
        client: Client,
        hyper: Hyper,
    ) -> tuple[Tensors, dict[str, Slots]]:
        """Returns parameters and optimizer state after a step, of the parameters that have a direction.

        The others stay as they are, as those whose `grad` is None do in `torch.optim`: no momentum, no weight decay.

        Args:
            grads: of the parameters that the loss depends on.
            count: the step's number, from 1, or who counts the steps of each parameter; for optimizers that ask.
        """
        next_params: Tensors = {}
        next_slots: dict[str, Slots] = {}
        direction = self.direction(params, grads, client, hyper)
        numbers = count.next(direction) if isinstance(count, StepCounts) else dict.fromkeys(direction, count)
        for name, g in direction.items():
            next_params[name], next_slots[name] = self.optimizer.step(
                params[name], g, slots[name], hyper["lr"], numbers[name]
            )
        return next_params, next_slots


@dataclass(frozen=True)
class LocalWork:
    """How much a client computes in a round, and the seed of its batch order and of what it draws."""

    batch_size: float
    num_epochs: int
    num_steps: int | None
    seed: int
    has_users_code: bool = True
    """a model or algorithm of the user's computes, and may draw from any generator of the process"""

    def size(self, num_samples: int) -> tuple[int, int]:
        """Samples of a full step, and the number of steps, of a client with `num_samples`."""
        size = resolve_batch_size(self.batch_size, num_samples)
        return size, count_steps(num_samples, size, self.num_epochs, self.num_steps)

    def orders(self, offsets: np.ndarray, clients: np.ndarray, round_num: int) -> list[Order]:
        """Which samples these clients take in each step of a round: a new permutation of a client's in each epoch.

        Args:
            offsets: client k holds the training samples `offsets[k]` to `offsets[k + 1]`.
        """
        found: dict[int, Order] = {}
        sizes = offsets[clients + 1] - offsets[clients]
        for n in np.unique(sizes).tolist():
            own = clients[sizes == n]
            steps = batch_sizes(n, *self.size(n))
            total = sum(steps)
            order = permutations(self.seed, Purpose.BATCH_ORDER, round_num, own, -(-total // n), n)
            rows = order.reshape(len(own), -1)[:, :total] + offsets[own, np.newaxis]
            for k, begin, mine in zip(own.tolist(), offsets[own].tolist(), rows, strict=True):
                found[k] = Order(mine, steps, (begin, begin + n - 1) if total >= n else None)
        return [found[k] for k in clients.tolist()]


@dataclass
class ServerState:
    """What the server holds after a round."""

    params: Tensors
    """trainable parameters by name"""
    buffers: Tensors
    """the rest of the model's state: running statistics, frozen parameters"""
    state: State = field(default_factory=dict)
    """what the algorithm keeps"""


def states_of_copy(algorithm: Algorithm, params: Tensors) -> tuple[State, State]:
    """What the algorithm's server and a client keep at first, asked of a copy.

    The algorithm itself is asked once, for the run: what it draws or keeps then is the run's.
    """
    try:
        asked = copy.deepcopy(algorithm)
    except Exception:  # whatever it holds that cannot be copied
        asked = algorithm
    own = {name: p.detach().clone() for name, p in params.items()}
    with generators_kept():
        return asked.init_server(own), asked.init_client(own)


def kept_at_trial(algorithm: Algorithm, params: Tensors) -> State:
    """What a client keeps in a trial; zeros would hide what is done with it."""
    kept = states_of_copy(algorithm, params)[1]
    return {
        key: {name: t + 1e-2 if t.is_floating_point() else t for name, t in tensors.items()}
        for key, tensors in kept.items()
    }


def _require_direction(found: Any, params: Tensors, algorithm: str) -> None:
    """Raises `Refused` for what is no direction of the parameters; those that it leaves out stay where they are."""
    what = ""
    if not isinstance(found, Mapping):
        what = f"but it returns {type(found).__name__}"
    else:
        for name, direction in found.items():
            if name not in params:
                what = f"but it returns {name!r}, which is none of them"
            elif not isinstance(direction, Tensor) or direction.shape != params[name].shape:
                form = f"shape {tuple(direction.shape)}" if isinstance(direction, Tensor) else type(direction).__name__
                what = f"but for {name!r} it returns {form}"
    if what:
        raise Refused(
            f"`correct` of {algorithm} must return a tensor for each gradient, by the parameter's name and of its "
            f"shape, {what}: return `grads` where they are changed in place."
        )


def server_state(model: nn.Module, algorithm: Algorithm) -> ServerState:
    """The untrained model, copied out of `model`, with the algorithm's first state."""
    params = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    buffers = {name: b.detach().clone() for name, b in buffers_of(model).items()}
    return ServerState(params, buffers, algorithm.init_server(params))


class Backend(Protocol):
    """Who trains a cohort."""

    def load(self, server: ServerState) -> nn.Module:
        """Puts the server's model into a working model, and returns it, to be evaluated."""

    def train(
        self, server: ServerState, clients: ClientStates, cohort: Cohort, hyper: Hyper, round_num: int
    ) -> ServerState:
        """Runs the round's cohort and returns the server's next state; `clients` keeps the clients' new states."""


def finish_round(
    server: ServerState, algorithm: Algorithm, message: State, changes: Tensors, cohort: Cohort, hyper: Hyper
) -> ServerState:
    """The server's next state.

    Args:
        message: the weighted sum of what the cohort sent, each entry's by its row of `weights_of`.
        changes: the mean of what the clients changed in the rest of the model's state, by `cohort.mean_weights`.
    """
    check_message(message, cohort)
    if cohort.model_factor != 1.0:
        extra = cohort.model_factor - 1.0
        message["update"] = {name: u + extra * server.params[name] for name, u in message["update"].items()}
    params, state = algorithm.update_server(server.params, server.state, message, cohort.participation, hyper)
    return ServerState(params, with_changes(server.buffers, changes), state)


UPDATE, MEAN, EVEN = 0, 1, 2
"""Rows of `weights_of`."""


def weights_of(cohort: Cohort) -> np.ndarray:
    """What the entries of each client's message count, float64 of shape (3, size), a row for each kind of entry."""
    return np.stack([cohort.weights, cohort.mean_weights, cohort.even_weights])


def row_of(entry: str, algorithm: Algorithm) -> int:
    """The row of `weights_of` by which an entry of the message is summed (see `Algorithm.finish`)."""
    return UPDATE if entry == "update" else EVEN if entry in algorithm.even else MEAN


def check_message(message: State, cohort: Cohort) -> None:
    """Raises `Refused` where the aggregate is about an update that the algorithm does not send."""
    if "update" not in message and abs(float(cohort.weights.sum()) - 1.0) > 1e-9:
        raise Refused(
            "`aggregate=weighted_com` and `weighted_scale` weigh the entry `update` of what clients send, but this "
            f"algorithm sends {', '.join(map(repr, message)) or 'nothing'}. Take aggregate=other or uniform."
        )


class Mean:
    """A weighted sum of states, one client at a time: a cohort of messages may not fit in memory."""

    def __init__(self) -> None:
        self._sum: State = {}

    def add(self, state: State, weight: float) -> None:
        for name, tensors in state.items():
            if name not in self._sum:
                self._sum[name] = {key: to_sum(t) * weight for key, t in tensors.items()}
            else:
                mine = self._sum[name]
                for key, t in tensors.items():
                    mine[key].add_(to_sum(t), alpha=weight)

    def value(self) -> State:
        return self._sum


class Stack:
    """The messages of a cohort, one client at a time, for an algorithm that asks for all of them."""

    def __init__(self, algorithm: Algorithm, cohort: Cohort, hyper: Hyper) -> None:
        self._algorithm, self._cohort, self._hyper = algorithm, cohort, hyper
        self._sent: dict[str, list[Tensors]] = {}

    def add(self, state: State, weight: float) -> None:
        for entry, tensors in state.items():
            self._sent.setdefault(entry, []).append({name: t.clone() for name, t in tensors.items()})

    def value(self) -> State:
        stacked = {
            entry: {name: torch.stack([one[name] for one in every]) for name in every[0]}
            for entry, every in self._sent.items()
        }
        return combine(self._algorithm, stacked, self._cohort, self._hyper)


def combine(algorithm: Algorithm, messages: State, cohort: Cohort, hyper: Hyper) -> State:
    """What the algorithm makes of all messages of a cohort.

    Args:
        messages: stacked in the order of the cohort's clients.
    """
    rows = weights_of(cohort)
    device = next((t.device for tensors in messages.values() for t in tensors.values()), torch.device("cpu"))
    exact = torch.float32 if device.type == "mps" else torch.float64
    weights = {entry: torch.from_numpy(rows[row_of(entry, algorithm)]).to(exact).to(device) for entry in messages}
    return algorithm.combine(messages, weights, hyper)


def to_sum(t: Tensor) -> Tensor:
    """What is summed: of counts (integers) their float64, of numbers in less than 32 bits their float32."""
    if t.is_complex():
        return t if t.itemsize >= 8 else t.to(torch.complex64)
    if not t.is_floating_point():
        return t.double()
    return t if t.itemsize >= 4 else t.float()


def buffers_of(model: nn.Module) -> Tensors:
    """The model's state that is not trained: running statistics, frozen parameters."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    return frozen | dict(model.named_buffers())


def changes_of(tensors: Tensors, start: Tensors) -> Tensors:
    """What clients changed in the state that is not trained, as numbers that can be averaged.

    It is exactly 0 where nothing changed: frozen parameters, and buffers that a model only reads, stay what they are,
    bit for bit, through any number of rounds. Where `start` is not finite (an observer's first minimum, a mask), the
    change is the new value. That of counters (integers) and of flags is in float64.
    """
    found = {}
    for name, s in start.items():
        t = tensors[name]
        if s.is_floating_point() or s.is_complex():
            found[name] = t - _finite(s)
        else:
            found[name] = (t.long() - s.long()).double()
    return found


def with_changes(start: Tensors, changes: Tensors) -> Tensors:
    """`start` with the means of `changes_of`, rounded where it holds integers; what is not among them as it is."""
    found = dict(start)
    for name, change in changes.items():
        s = start[name]
        if s.is_floating_point() or s.is_complex():
            found[name] = torch.where(change == 0, s, _finite(s) + change)
        else:
            found[name] = (s.long() + change.round().long()).to(s.dtype)
    return found


def _finite(t: Tensor) -> Tensor:
    return torch.where(torch.isfinite(t), t, torch.zeros((), dtype=t.dtype, device=t.device))
