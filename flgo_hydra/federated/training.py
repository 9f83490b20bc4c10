"""What local training is, whichever backend runs it.

`LocalStep` says what one step is, as a pure function that also runs under `torch.vmap`; `LocalWork` how many steps a
client takes on which samples; `ServerState` what goes into a round and comes out. The backends (`backend/`) give the
same numbers.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import nn

from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.optimizer import Number, Optimizer, Slots, clip, is_zero
from flgo_hydra.federated.randomness import Purpose, permutations
from flgo_hydra.federated.schedule import Order, batch_sizes, count_steps, resolve_batch_size


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
        grads = self.algorithm.correct(grads, params, client, hyper)
        return grads if is_zero(self.clip_grad) else clip(grads, self.clip_grad)

    def __call__(
        self, params: Tensors, grads: Tensors, slots: dict[str, Slots], count: int, client: Client, hyper: Hyper
    ) -> tuple[Tensors, dict[str, Slots]]:
        """Returns parameters and optimizer state after step number `count`, from 1."""
        next_params: Tensors = {}
        next_slots: dict[str, Slots] = {}
        for name, g in self.direction(params, grads, client, hyper).items():
            next_params[name], next_slots[name] = self.optimizer.step(params[name], g, slots[name], hyper["lr"], count)
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
    server: ServerState, algorithm: Algorithm, message: State, buffers: Tensors, cohort: Cohort, hyper: Hyper
) -> ServerState:
    """The server's next state.

    Args:
        message: the weighted sum of what the cohort sent, `cohort.weights` its weights.
        buffers: the cohort's buffers, their mean by the same weights scaled to sum to 1.
    """
    if cohort.model_factor != 1.0:
        extra = cohort.model_factor - 1.0
        message["update"] = {name: u + extra * server.params[name] for name, u in message["update"].items()}
    params, state = algorithm.update_server(server.params, server.state, message, cohort.participation, hyper)
    return ServerState(params, like(server.buffers, buffers) if server.buffers else server.buffers, state)


class Mean:
    """A weighted sum of states, one client at a time: a cohort of messages may not fit in memory."""

    def __init__(self) -> None:
        self._sum: State = {}

    def add(self, state: State, weight: float) -> None:
        for name, tensors in state.items():
            if name not in self._sum:
                # Sums of counters (integer buffers) are made in float64 and rounded at the end.
                self._sum[name] = {
                    key: (t if t.is_floating_point() else t.double()) * weight for key, t in tensors.items()
                }
            else:
                mine = self._sum[name]
                for key, t in tensors.items():
                    mine[key].add_(t, alpha=weight)

    def value(self) -> State:
        return self._sum


def buffers_of(model: nn.Module) -> Tensors:
    """The model's state that is not trained: running statistics, frozen parameters."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    return frozen | dict(model.named_buffers())


def like(template: Tensors, tensors: Tensors) -> Tensors:
    """`tensors` in the dtypes of `template`, rounded where those are integers."""
    return {
        name: tensors[name] if t.is_floating_point() else tensors[name].round().to(t.dtype)
        for name, t in template.items()
    }
