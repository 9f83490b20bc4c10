"""Local training of a cohort.

`LocalStep` says what one step is, as a pure function that also runs under `torch.func.vmap`. `LoopBackend` runs a
cohort with it, one client after another; batched backends give the same numbers.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.data import Data
from flgo_hydra.federated.optimizer import Optimizer, Slots, clip
from flgo_hydra.federated.randomness import Purpose, numpy_generator, seed_torch, torch_seed
from flgo_hydra.federated.schedule import batch_order, count_steps, resolve_batch_size


@dataclass(frozen=True)
class LocalStep:
    """One local step, from a gradient to the next parameters: correct, clip, optimize."""

    algorithm: Algorithm
    optimizer: Optimizer
    clip_grad: float = 0.0

    def start(self, params: Tensors) -> dict[str, Slots]:
        """The optimizer's state before a client's first step."""
        zeros = self.optimizer.num_slots
        return {name: tuple(torch.zeros_like(p) for _ in range(zeros)) for name, p in params.items()}

    def direction(self, params: Tensors, grads: Tensors, client: Client, hyper: Hyper) -> Tensors:
        """The algorithm's direction, its norm clipped."""
        grads = self.algorithm.correct(grads, params, client, hyper)
        return clip(grads, self.clip_grad) if self.clip_grad else grads

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
    """How much a client computes in a round, and the seed of its batch order."""

    batch_size: float
    num_epochs: int
    num_steps: int | None
    seed: int


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
    buffers = {name: b.detach().clone() for name, b in _buffers(model).items()}
    return ServerState(params, buffers, algorithm.init_server(params))


class LoopBackend:
    """Trains a cohort's clients one after another in one working model."""

    def __init__(self, model: nn.Module, data: Data, step: LocalStep, work: LocalWork) -> None:
        self._model = model
        self._data = data
        self._step = step
        self._work = work
        self._params: Tensors = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._param_list = list(self._params.values())
        self._buffers = _buffers(model)
        # What a plain FedAvg client does in place, without the general step's copies.
        self._corrects = type(step.algorithm).correct is not Algorithm.correct or step.clip_grad > 0
        self._has_own_loss = type(step.algorithm).loss is not Algorithm.loss

    def load(self, server: ServerState) -> nn.Module:
        """Puts the server's model into the working model, and returns it, to be evaluated."""
        with torch.no_grad():
            torch._foreach_copy_(self._param_list, list(server.params.values()))
            for name, buffer in self._buffers.items():
                buffer.copy_(server.buffers[name])
        return self._model

    def train(
        self, server: ServerState, clients: ClientStates, cohort: Cohort, hyper: Hyper, round_num: int
    ) -> ServerState:
        """Runs the round's cohort and returns the server's next state; `clients` keeps the clients' new states."""
        algorithm = self._step.algorithm
        message = _Mean()
        buffers = _Mean()
        buffer_weights = cohort.weights / cohort.weights.sum()
        for k, weight, buffer_weight in zip(cohort.clients.tolist(), cohort.weights, buffer_weights, strict=True):
            self.load(server)
            client = Client(server.params, server.state, clients.get(k))
            num_steps = self._train_client(k, client, hyper, round_num)
            with torch.no_grad():
                sent, kept = algorithm.finish(self._params, client, num_steps, hyper)
                message.add(sent, float(weight))
                clients.put(k, kept)
                if self._buffers:
                    buffers.add({"": self._buffers}, float(buffer_weight))
        with torch.no_grad():
            mean = message.value()
            if cohort.model_factor != 1.0:
                extra = cohort.model_factor - 1.0
                mean["update"] = {name: u + extra * server.params[name] for name, u in mean["update"].items()}
            params, state = algorithm.update_server(server.params, server.state, mean, cohort.participation, hyper)
            next_buffers = _like(server.buffers, buffers.value()[""]) if self._buffers else server.buffers
        return ServerState(params, next_buffers, state)

    def _train_client(self, k: int, client: Client, hyper: Hyper, round_num: int) -> int:
        """Takes the client's local steps in the working model; returns their number."""
        x, y = self._data.client(k)
        work = self._work
        size = resolve_batch_size(work.batch_size, len(x))
        num_steps = count_steps(len(x), size, work.num_epochs, work.num_steps)
        order = batch_order(len(x), size, num_steps, numpy_generator(work.seed, Purpose.BATCH_ORDER, round_num, k))
        seed_torch(torch_seed(work.seed, Purpose.LOCAL_NOISE, round_num, k), x.device)
        self._model.train()
        slots = self._step.start(self._params)
        for count, indices in enumerate(order, start=1):
            rows = torch.from_numpy(indices).to(x.device)
            grads = torch.autograd.grad(
                self._loss(x[rows], y[rows]), self._param_list, allow_unused=True, materialize_grads=True
            )
            with torch.no_grad():
                self._apply(grads, slots, count, client, hyper)
        return num_steps

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        outputs = self._model(x)
        if self._has_own_loss:
            return self._step.algorithm.loss(outputs, y, self._data.criterion).mean()
        return self._data.mean_criterion(outputs, y)

    def _apply(
        self, grads: tuple[Tensor, ...], slots: dict[str, Slots], count: int, client: Client, hyper: Hyper
    ) -> None:
        optimizer = self._step.optimizer
        if not optimizer.is_plain_sgd:
            by_name = dict(zip(self._params, grads, strict=True))
            next_params, next_slots = self._step(self._params, by_name, slots, count, client, hyper)
            torch._foreach_copy_(self._param_list, [next_params[name] for name in self._params])
            slots.update(next_slots)
            return
        if self._corrects:
            by_name = dict(zip(self._params, grads, strict=True))
            direction = self._step.direction(self._params, by_name, client, hyper)
            grads = tuple(direction[name] for name in self._params)
        if optimizer.weight_decay:
            grads = torch._foreach_add(grads, self._param_list, alpha=optimizer.weight_decay)
        torch._foreach_add_(self._param_list, grads, alpha=-hyper["lr"])


class _Mean:
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


def _buffers(model: nn.Module) -> Tensors:
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    return frozen | dict(model.named_buffers())


def _like(template: Tensors, tensors: Tensors) -> Tensors:
    """`tensors` in the dtypes of `template`, rounded where those are integers."""
    return {
        name: tensors[name] if t.is_floating_point() else tensors[name].round().to(t.dtype)
        for name, t in template.items()
    }
