"""A small random federation, and what an implementation written from a paper needs of it.

The order of batches, the cohorts and their weights are no part of a method: references take them from here, and compute
everything else themselves, one client after another, with `torch.autograd` alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flgo_hydra.config.option import AUTO, PLAIN
from flgo_hydra.federated.backend.fused import FusedBackend, Member
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort, sample_cohort
from flgo_hydra.federated.data.on_device import Data, to_data
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.rounds import RoundWork
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

from ...conftest import ragged_task

BACKENDS = ("loop", "recorded", "vmap", "fused")
Params = dict[str, Tensor]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


@dataclass(frozen=True)
class Visit:
    """A client in a round of a reference."""

    k: int
    weight: float
    """in the mean of models: its share of the cohort's samples, or 1 / size for an algorithm of even weights"""
    batches: list[tuple[Tensor, Tensor]]
    """of each local step, in order"""


@dataclass(frozen=True)
class Federation:
    """Clients with 5 features and 3 classes, a small model, and how it is trained; float64."""

    seed: int = 0
    sizes: tuple[int, ...] = (7, 3, 12, 2)
    model: Callable[[], nn.Module] = mlp
    num_rounds: int = 3
    proportion: float = 0.5
    batch_size: int = 4
    num_epochs: int = 2
    num_steps: int | None = None
    lr: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    aggregate: str = "other"
    order: tuple[int, ...] | None = None
    """the clients in another order; of a law"""
    data: Data = field(init=False, compare=False)

    def __post_init__(self) -> None:
        data = to_data(ragged_task(self.sizes, seed=self.seed), torch.device("cpu"), torch.float64)
        object.__setattr__(self, "data", data)

    @property
    def work(self) -> LocalWork:
        return LocalWork(self.batch_size, self.num_epochs, self.num_steps, self.seed)

    def built(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return self.model().double()

    # For references.

    @property
    def start(self) -> Params:
        """The untrained model's parameters."""
        return {name: p.detach().clone() for name, p in self.built().named_parameters()}

    def client(self, k: int) -> tuple[Tensor, Tensor]:
        """All training samples of a client."""
        return self.data.client(k)

    @property
    def num_clients(self) -> int:
        return len(self.sizes)

    def rounds(self, weighting: str = "samples") -> Iterator[list[Visit]]:
        """The visits of each round."""
        offsets = np.array(self.data.offsets)
        for r in range(1, self.num_rounds + 1):
            cohort = self.cohort(r, weighting)
            found = []
            for k, weight, order in zip(
                cohort.clients.tolist(), cohort.weights, self.work.orders(offsets, cohort.clients, r), strict=True
            ):
                batches = [(self.data.x_train[rows], self.data.y_train[rows]) for rows in order.batches()]
                found.append(Visit(k, float(weight), batches))
            yield found

    def cohort(self, r: int, weighting: str) -> Cohort:
        sample = "full" if self.proportion == 1.0 else "uniform"
        rng = np.random.default_rng([self.seed, r])
        return sample_cohort(np.diff(self.data.offsets), self.proportion, sample, self.aggregate, weighting, rng)

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        return functional_call(self.built(), params, (x,))

    def loss(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return nn.functional.cross_entropy(self.outputs(params, x), y)

    def gradient(self, params: Params, loss: Callable[[Params], Tensor]) -> Params:
        """Of a loss of parameters, at these."""
        own = {name: p.detach().clone().requires_grad_() for name, p in params.items()}
        grads = torch.autograd.grad(loss(own), list(own.values()), allow_unused=True)
        return {
            name: torch.zeros_like(p) if g is None else g.detach()
            for (name, p), g in zip(own.items(), grads, strict=True)
        }


@dataclass(frozen=True)
class Trained:
    """What a method has come to."""

    servers: list[Params]
    """the server's model after each round"""
    states: list[dict[str, dict[str, Tensor]]]
    """what each client keeps, at the end"""
    personal: list[Params | None]
    """the model that each client would use, at the end"""
    server: dict[str, dict[str, Tensor]]
    """what the server keeps, at the end"""


def train(made: Callable[[], Any], numbers: dict[str, float], federation: Federation, backend: str = "loop") -> Trained:
    """Trains by one of `BACKENDS`. Fused: beside another run with half the learning rate and another seed."""
    f, data = federation, federation.data
    algorithm, model = made(), federation.built()
    optimizer = build_optimizer(f.optimizer, f.momentum, f.weight_decay)
    loop = LoopBackend(model, data, LocalStep(algorithm, optimizer), f.work, AUTO if backend == "recorded" else PLAIN)
    server = server_state(model, algorithm)
    clients = ClientStates(loop.own_buffers.first(algorithm.init_client(server.params), server.buffers), f.num_clients)
    hyper = {"lr": f.lr, **numbers}
    step = loop.train
    if backend == "vmap":
        lanes = max(1, len(f.cohort(1, algorithm.weighting).clients) - 1)
        side_by_side = VmapBackend(model, data, LocalStep(algorithm, optimizer), f.work, lanes=lanes, loop=loop)
        step = side_by_side.train
    elif backend == "fused":
        step = _fused(made, f, loop, algorithm, model)
    servers = []
    for r in range(1, f.num_rounds + 1):
        server = step(server, clients, f.cohort(r, algorithm.weighting), hyper, r)
        servers.append({name: p.detach().clone() for name, p in server.params.items()})
    if backend == "recorded":
        assert loop.note["compiled_batch_sizes"], loop.note
    elif backend == "vmap":
        assert side_by_side.note["backend"] == "vmap", side_by_side.note
    states = [clients.get(k) for k in range(f.num_clients)]
    personal = [algorithm.personal(server.params, loop.own_buffers.apart(s)[0]) for s in states]
    return Trained(servers, states, personal, server.state)


def _fused(made: Callable[[], Any], f: Federation, loop: LoopBackend, algorithm: Any, model: nn.Module) -> Any:
    other_algorithm, other_model = made(), f.built()
    with torch.no_grad():
        for p in other_model.parameters():
            p.mul_(0.9)
    settings = (f.optimizer, f.momentum, f.weight_decay, 0.0)
    step = LocalStep(other_algorithm, build_optimizer(*settings[:3]))
    work = LocalWork(f.batch_size, f.num_epochs, f.num_steps, f.seed + 7)
    beside = LoopBackend(other_model, f.data, step, work, engine=PLAIN)
    members = {
        0: Member(algorithm, *settings, f.work, loop),
        1: Member(other_algorithm, *settings, work, beside),
    }
    fused = FusedBackend(model, f.data, members, 2)
    servers = {1: server_state(other_model, other_algorithm)}
    kept = beside.own_buffers.first(other_algorithm.init_client(servers[1].params), servers[1].buffers)
    clients_of_other = ClientStates(kept, f.num_clients)

    def train_both(server: Any, clients: ClientStates, cohort: Cohort, hyper: Any, r: int) -> Any:
        sizes = np.diff(f.data.offsets)
        other = sample_cohort(
            sizes, f.proportion, "uniform", f.aggregate, algorithm.weighting, np.random.default_rng(99 + r)
        )
        done = fused.train(
            {
                0: RoundWork(server, clients, cohort, hyper, r),
                1: RoundWork(servers[1], clients_of_other, other, {**hyper, "lr": f.lr / 2}, r),
            }
        )
        servers[1] = done[1]
        return done[0]

    return train_both
