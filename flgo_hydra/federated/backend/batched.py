"""A run's cohort side by side, as lanes of one batch (`lanes.py`).

A cohort may be larger than what is done at once: then its clients, sorted by their number of steps, go in chunks of
`lanes`. What cannot be a batch dimension trains in the loop, with the reason: a model that draws random numbers (each
client has its own generator), or one that mixes the samples of a batch, where batches differ in size.
"""

import logging
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from flgo_hydra.federated.algorithm.base import Hyper, State, Tensors
from flgo_hydra.federated.backend.lanes import Extent, Lanes, Recipe
from flgo_hydra.federated.backend.loop import LoopBackend, paying_sizes
from flgo_hydra.federated.backend.timing import seconds_of
from flgo_hydra.federated.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.data import Data
from flgo_hydra.federated.randomness import Purpose, seed_all, torch_seed
from flgo_hydra.federated.schedule import Order
from flgo_hydra.federated.training import LocalStep, LocalWork, ServerState, finish_round

_log = logging.getLogger(__name__)


class VmapBackend:
    """Trains a cohort's clients side by side, as lanes of one batch."""

    name = "vmap"

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        step: LocalStep,
        work: LocalWork,
        lanes: int,
        compiles: bool = True,
        visits: float = float("inf"),
        loop: LoopBackend | None = None,
        dual: bool = True,
        graphs: bool = True,
        plans: bool | None = None,
    ) -> None:
        """
        Args:
            lanes: clients that are trained at once.
            compiles, visits: as for the loop.
            loop: who trains what cannot be a batch dimension, if there is one already.
            dual, graphs, plans: as for `Lanes`.
        """
        self._model, self._data, self._step, self._work = model, data, step, work
        self._compiles = compiles
        self._offsets = np.array(data.offsets)
        self._loop = loop or LoopBackend(model, data, step, work, compiles, visits)
        recipe = Recipe(step.algorithm, step.optimizer.num_slots, lambda numbers: step)
        extent = extent_of(data, work, visits / lanes)
        self._lanes = Lanes(model, data, self._loop, recipe, extent, 1, lanes, (), compiles, dual, graphs, plans)
        self.why_not = ""

    @property
    def note(self) -> dict[str, Any]:
        """What ran, for result.json."""
        if self.why_not:
            return {**self._loop.note, "why_not_vmap": self.why_not}
        return {"backend": self.name, "clients_at_once": self._lanes.size, **self._lanes.note}

    def load(self, server: ServerState) -> nn.Module:
        return self._loop.load(server)

    def train(
        self, server: ServerState, clients: ClientStates, cohort: Cohort, hyper: Hyper, round_num: int
    ) -> ServerState:
        orders = self._orders(cohort, round_num)
        if not self.why_not:
            self._prepare(server, orders, hyper)
        if self.why_not:
            return self._loop.train(server, clients, cohort, hyper, round_num)
        message: State = {}
        buffers: Tensors = {}
        weights = np.stack([cohort.weights, cohort.weights / cohort.weights.sum()])
        with torch.no_grad():
            for chosen in self._chunks(orders):
                ids = cohort.clients[chosen].tolist()
                own = [orders[i] for i in chosen]
                own += [own[0]] * (self._lanes.size - len(own))
                self._lanes.begin([server], [hyper], own, clients.get_many(ids))
                self._lanes.run(own)
                counted = np.zeros((2, self._lanes.size))
                counted[:, : len(chosen)] = weights[:, chosen]
                sent, theirs, kept = self._lanes.mean(counted, [len(order) for order in own])
                if kept:
                    clients.put_many(ids, {s: {n: t[: len(ids)] for n, t in ts.items()} for s, ts in kept.items()})
                for state, tensors in sent.items():
                    _add(message.setdefault(state, {}), tensors)
                _add(buffers, theirs)
            frozen = {name: b for name, b in server.buffers.items() if name not in buffers}
            seed_all(torch_seed(self._work.seed, Purpose.SERVER, round_num), self._data.x_train.device)
            return finish_round(server, self._step.algorithm, message, {**buffers, **frozen}, cohort, hyper)

    def signature(self, cohort: Cohort) -> tuple[Any, ...]:
        """What decides how fast a cohort is trained."""
        kind, optimizer = type(self._step.algorithm), self._step.optimizer
        forms = tuple((name, tuple(p.shape), p.dtype) for name, p in self._loop.params.items())
        sizes = tuple(self._work.size(self._data.num_samples(k)) for k in cohort.clients.tolist())
        x = self._data.x_train
        device = torch.cuda.get_device_name(x.device) if x.device.type == "cuda" else x.device.type
        step = (kind, optimizer.num_slots, optimizer.is_plain_sgd, self._step.clip_grad > 0)
        return device, type(self._model), forms, x.shape[1:], *step, self._compiles, self._lanes.size, sizes

    def estimate(self, server: ServerState, cohort: Cohort, hyper: Hyper, round_num: int) -> float | None:
        """Seconds that the cohort would take, from a few steps of each kind; None if it cannot be trained so."""
        orders = self._orders(cohort, round_num)
        self._prepare(server, orders, hyper)
        if self.why_not:
            return None
        template = self._step.algorithm.init_client(self._loop.params)
        kept = {s: {n: torch.zeros_like(t).unsqueeze(0) for n, t in ts.items()} for s, ts in template.items()}
        weights = np.ones((2, self._lanes.size)) / self._lanes.size
        seconds = 0.0
        with torch.no_grad():
            for chosen in self._chunks(orders):
                own = [orders[i] for i in chosen]
                own += [own[0]] * (self._lanes.size - len(own))
                num_steps = [len(order) for order in own]

                def begin(own: list[Order] = own) -> None:
                    self._lanes.begin([server], [hyper], own, kept)

                def mean(num_steps: list[int] = num_steps) -> None:
                    self._lanes.mean(weights, num_steps)

                device = self._data.x_train.device
                seconds += seconds_of(begin, device, 2) + self._lanes.estimate(own) + seconds_of(mean, device, 2)
        return seconds

    def _orders(self, cohort: Cohort, round_num: int) -> list[Order]:
        return self._work.orders(self._offsets, cohort.clients, round_num)

    def _chunks(self, orders: list[Order]) -> list[list[int]]:
        """Numbers of the clients that are trained together, those with the most steps first."""
        longest_first = sorted(range(len(orders)), key=lambda i: (-len(orders[i]), i))
        return [longest_first[i : i + self._lanes.size] for i in range(0, len(orders), self._lanes.size)]

    def _prepare(self, server: ServerState, orders: list[Order], hyper: Hyper) -> None:
        """Makes ready each kind of step that this cohort takes and that is new."""
        kinds = {kind for chosen in self._chunks(orders) for kind in self._lanes.kinds_of([orders[i] for i in chosen])}
        self._model.train()
        self.why_not = self._lanes.prepare(kinds, [server], [hyper], [self._loop])
        if self.why_not:
            _log.info("clients train one after another: %s", self.why_not)


def extent_of(data: Data, work: LocalWork, visits: float) -> Extent:
    """How much the clients of a task compute at most.

    Args:
        visits: rounds of the run in which a client is expected to take part, over the clients trained at once.
    """
    sizes = np.diff(data.offsets)
    by_client = [(int(n), *work.size(int(n))) for n in np.unique(sizes)]
    last = [n % size or size for n, size, num_steps in by_client if num_steps >= math.ceil(n / size)]
    return Extent(
        width=max(size for _, size, _ in by_client),
        least=min([*last, *(size for _, size, _ in by_client)]),
        most_steps=max(num_steps for *_, num_steps in by_client),
        most_samples=max(min(n, size * num_steps) for n, size, num_steps in by_client),
        sizes=paying_sizes(sizes, work, visits),
    )


def count_lanes(cohort_size: int, bytes_per_lane: int, budget_bytes: int) -> int:
    """Clients to train at once: as many as the budget holds, the cohort in chunks of about one size."""
    most = max(1, min(cohort_size, budget_bytes // max(bytes_per_lane, 1)))
    return math.ceil(cohort_size / math.ceil(cohort_size / most))


def _add(sums: Tensors, of_one_run: Tensors) -> None:
    for name, tensor in of_one_run.items():
        sums[name] = sums[name] + tensor[0] if name in sums else tensor[0]
