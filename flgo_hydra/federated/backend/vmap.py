"""A run's cohort side by side, as lanes of one batch (`lanes.py`).

A cohort may be larger than what is done at once: then its clients, sorted by their number of steps, go in chunks of
`lanes`. What cannot be a batch dimension trains in the loop, with the reason: a model that draws random numbers (each
client has its own generator), or one that mixes the samples of a batch, where batches differ in size.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from flgo_hydra.config.option import AUTO, EngineConf
from flgo_hydra.federated.algorithm.base import Hyper, State, Tensors, takes_all_messages
from flgo_hydra.federated.backend.cannot import Cannot
from flgo_hydra.federated.backend.extent import extent_of
from flgo_hydra.federated.backend.lane_tensors import Numbers
from flgo_hydra.federated.backend.lane_trial import find_lanes
from flgo_hydra.federated.backend.lanes import Lanes, Recipe
from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.randomness import Purpose, seed_all, torch_seed
from flgo_hydra.federated.schedule import Order
from flgo_hydra.federated.training import LocalStep, LocalWork, ServerState, combine, finish_round, weights_of

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
        engine: EngineConf = AUTO,
        visits: float = float("inf"),
        loop: LoopBackend | None = None,
        plans: bool | None = None,
    ) -> None:
        """
        Args:
            lanes: clients that are trained at once.
            engine, plans: as for `Lanes`.
            visits: as for the loop.
            loop: who trains what cannot be a batch dimension, if there is one already.
        """
        self._model, self._data, self._step, self._work = model, data, step, work
        self._engine = engine
        self._offsets = np.array(data.offsets)
        self._loop = loop or LoopBackend(model, data, step, work, engine, visits)
        recipe = Recipe(step.algorithm, step.optimizer.num_slots, lambda settings: step)
        self._extent = extent = extent_of(data, work, visits, lanes)
        self._num_lanes = lanes
        self._found: Lanes | None = None
        self.why_not = ""

        def make(model: nn.Module, data: Data, like: LocalSteps, runs: int, k: int, engine: EngineConf) -> Lanes:
            return Lanes(model, data, like, recipe, extent, runs, k, None, engine, plans)

        self._make = make

    @property
    def form(self) -> dict[str, Any]:
        """What decides how numbers are rounded, whatever a model then allows."""
        return {"backend": self.name, "clients_at_once": self._num_lanes}

    @property
    def note(self) -> dict[str, Any]:
        """What ran, for result.json."""
        if self.why_not:
            return {**self._loop.note, "why_not_vmap": self.why_not}
        lanes = self._found.note if self._found is not None else {}
        return {"backend": self.name, "clients_at_once": self._num_lanes, **lanes}

    def load(self, server: ServerState) -> nn.Module:
        return self._loop.load(server)

    def train(
        self, server: ServerState, clients: ClientStates, cohort: Cohort, hyper: Hyper, round_num: int
    ) -> ServerState:
        orders = self._orders(cohort, round_num)
        self.prepare(server, hyper)
        self.why_not = self.why_not or self._loop.why_plain_from(round_num)
        if self.why_not:
            return self._loop.train(server, clients, cohort, hyper, round_num)
        algorithm = self._step.algorithm
        asks_for_all = takes_all_messages(algorithm)
        message: State = {}
        all_sent: list[State] = []
        order: list[int] = []
        changes: Tensors = {}
        weights = weights_of(cohort)
        with torch.no_grad():
            for chosen in self._chunks(orders):
                ids = cohort.clients[chosen].tolist()
                own = [orders[i] for i in chosen]
                own += [own[0]] * (self._lanes.size - len(own))
                begun = clients.get_many(ids, self._lanes.kept)
                facts = {}
                if self._lanes.reads_facts:
                    facts = self._loop.facts_of_many(ids, server, begun, hyper, round_num)
                self._lanes.begin([server], [Numbers(hyper)], own, begun, facts, ids)
                self._lanes.run(own)
                counted = np.zeros((len(weights), self._lanes.size))
                counted[:, : len(chosen)] = weights[:, chosen]
                sent, theirs, kept = self._lanes.mean(counted, [len(order) for order in own])
                if kept:
                    clients.put_many(ids, {s: {n: t[: len(ids)] for n, t in ts.items()} for s, ts in kept.items()})
                if asks_for_all:
                    # Copies: what was kept or trained may be sent as it is, from where the next chunk will lie.
                    all_sent.append({s: {n: t[: len(ids)].clone() for n, t in ts.items()} for s, ts in sent.items()})
                    order += chosen
                for state, tensors in sent.items() if not asks_for_all else ():
                    _add(message.setdefault(state, {}), tensors)
                _add(changes, theirs)
            self._loop.require_unchanged(round_num)
            self._lanes.require_unchanged(round_num)
            seed_all(torch_seed(self._work.seed, Purpose.SERVER, round_num), self._data.x_train.device)
            if asks_for_all:
                message = combine(algorithm, _in_order(all_sent, order), cohort, hyper)
            return finish_round(server, algorithm, message, changes, cohort, hyper)

    def _orders(self, cohort: Cohort, round_num: int) -> list[Order]:
        return self._work.orders(self._offsets, cohort.clients, round_num)

    def _chunks(self, orders: list[Order]) -> list[list[int]]:
        """Numbers of the clients that are trained together, those with the most steps first."""
        longest_first = sorted(range(len(orders)), key=lambda i: (-len(orders[i]), i))
        return [longest_first[i : i + self._lanes.size] for i in range(0, len(orders), self._lanes.size)]

    def prepare(self, server: ServerState, hyper: Hyper) -> None:
        """Before the first round: makes ready every kind of step that the run can take, where that does what the loop
        does."""
        if self._found is None and not self.why_not:
            one = ([self._loop], [server], [Numbers(hyper)])
            try:
                self._found = find_lanes(self._make, self._extent, *one, self._num_lanes, self._engine)
            except Cannot as error:
                self.why_not = str(error)
                _log.info("clients train one after another: %s", error)
            self._loop.begin_to_watch()

    @property
    def _lanes(self) -> Lanes:
        assert self._found is not None
        return self._found


def count_lanes(cohort_size: int, bytes_per_lane: int, budget_bytes: int) -> int:
    """Clients to train at once: as many as the budget holds, the cohort in chunks of about one size."""
    most = max(1, min(cohort_size, budget_bytes // max(bytes_per_lane, 1)))
    return math.ceil(cohort_size / math.ceil(cohort_size / most))


def _in_order(parts: Sequence[State], order: Sequence[int]) -> State:
    """Messages in the order of the cohort.

    Args:
        order: the clients' numbers in the cohort, as the parts have them.
    """
    back = torch.from_numpy(np.argsort(order))
    return {
        entry: {name: torch.cat([part[entry][name] for part in parts])[back.to(t.device)] for name, t in ts.items()}
        for entry, ts in parts[0].items()
    }


def _add(sums: Tensors, of_one_run: Tensors) -> None:
    for name, tensor in of_one_run.items():
        sums[name] = sums[name] + tensor[0] if name in sums else tensor[0]
