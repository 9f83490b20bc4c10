"""Several runs as one program: the clients of all their cohorts are lanes of one batch (`lanes.py`).

The runs differ in values only: learning rate, momentum, weight decay, an algorithm's numbers, seeds. So each lane has
its own server model to start from, its own server state and its own numbers, and one operation does the step of all.
Cohorts, batch orders and aggregation are each run's own, from the same generators as when it runs alone: a run's
numbers do not depend on the others but for rounding (float64: 1e-12). No two lanes are ever summed but those of one
run: one whose losses are not finite does not touch the others.

Where runs have ended, others fill their lanes up and count nothing, until half as many lanes do.

P runs, K clients of each at most.
"""

import logging
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from flgo_hydra.federated.algorithm.base import Algorithm, State, Tensors
from flgo_hydra.federated.backend.batched import extent_of
from flgo_hydra.federated.backend.lanes import Lanes, Recipe
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.width import WidthSearch
from flgo_hydra.federated.data import Data
from flgo_hydra.federated.evaluation import Metrics, evaluate_many, metrics_of
from flgo_hydra.federated.optimizer import Number, Optimizer, build_optimizer, is_zero
from flgo_hydra.federated.randomness import seed_all
from flgo_hydra.federated.rounds import Evaluation, RoundWork
from flgo_hydra.federated.schedule import Order
from flgo_hydra.federated.training import LocalStep, LocalWork, ServerState, like
from flgo_hydra.federated.transfer import to_device

_log = logging.getLogger(__name__)
Key = TypeVar("Key", bound=Hashable)


class CannotFuse(RuntimeError):
    """These runs must run apart; the text says why. None has lost anything."""


@dataclass(frozen=True)
class Member:
    """What the runs of a group may differ in, and what each has of its own."""

    algorithm: Algorithm
    optimizer: str
    momentum: float
    weight_decay: float
    clip_grad: float
    work: LocalWork
    loop: LoopBackend
    """trains this run alone"""

    @property
    def numbers(self) -> dict[str, float]:
        return {"momentum": self.momentum, "weight_decay": self.weight_decay, "clip_grad": self.clip_grad}

    def step(self, numbers: Mapping[str, Any]) -> LocalStep:
        """The local step of a lane with these numbers."""
        optimizer = build_optimizer(
            self.optimizer,
            _value(self.momentum, numbers["momentum"]),
            _value(self.weight_decay, numbers["weight_decay"]),
        )
        return LocalStep(self.algorithm, optimizer, _value(self.clip_grad, numbers["clip_grad"]))

    @property
    def num_slots(self) -> int:
        optimizer: Optimizer = build_optimizer(self.optimizer, self.momentum, self.weight_decay)
        return optimizer.num_slots


@dataclass(frozen=True)
class _Chunk:
    """Rounds of several runs that are trained at once, a run a row; the rows after the last run repeat the first."""

    members: list[Member]
    works: list[RoundWork]
    orders: Sequence[Sequence[Order]]
    """of each run's clients"""

    def servers(self) -> list[ServerState]:
        return [work.server for work in self.works]

    def numbers(self) -> list[dict[str, Any]]:
        return [{**work.hyper, **member.numbers} for work, member in zip(self.works, self.members, strict=True)]


class FusedBackend:
    """Trains a round of several runs at once.

    Args:
        model: gives the architecture; its own weights do not matter.
        data: the task of all runs.
        members: the runs, by the key under which `train` is told of their rounds.
        is_auto: find out how many runs to train at once; else all of them, as long as they fit.
        compiles, dual, graphs: as for `Lanes`.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        members: Mapping[Key, Member],
        is_auto: bool,
        compiles: bool = True,
        dual: bool = True,
        graphs: bool = True,
    ) -> None:
        self._model = model
        self._data = data
        self._members: dict[Any, Member] = dict(members)
        self._engine = (compiles, dual, graphs)
        self._search = WidthSearch(len(self._members), is_fixed=not is_auto)
        self._device = data.x_train.device
        self._offsets = np.array(data.offsets)
        first = next(iter(self._members.values()))
        self._extent = extent_of(data, first.work, float("inf"))
        self._recipe = Recipe(first.algorithm, first.num_slots, first.step)
        self._lanes: Lanes | None = None
        self._shape = (0, 0)
        self._alone_s = math.inf
        self._evaluates_apart = False
        self.half_trained: set[Any] = set()
        """runs whose clients have kept something of a round that `train` has not returned"""

    @property
    def note(self) -> dict[str, Any]:
        """What ran, for result.json."""
        lanes = self._lanes.note if self._lanes is not None else {}
        width = {"runs": len(self._members), "runs_at_once": self._search.width}
        return {"backend": "fused", "chosen_by": "hydra.launcher.fuse", **width, **lanes}

    @property
    def is_not_worth_it(self) -> bool:
        """Runs at once are no faster than one after the other, or than each alone in the loop."""
        if not self._search.is_done or len(self._members) == 1:
            return False
        return self._search.width == 1 or (self._search.seconds or 0.0) > self._alone_s

    def train(self, works: Mapping[Key, RoundWork]) -> dict[Key, ServerState]:
        """Returns the next server states; each run's client states are kept in its own `RoundWork.clients`.

        Raises:
            CannotFuse: the model's step cannot be a batch.
            torch.OutOfMemoryError: not even one run fits.
        """
        keys = list(works)
        servers: dict[Key, ServerState] = {}
        self.half_trained.clear()
        self._model.train()
        if not self._search.is_done and math.isinf(self._alone_s):
            first = works[keys[0]]
            loop = self._members[keys[0]].loop
            self._alone_s = loop.estimate(first.server, first.cohort, first.hyper, first.round_num)
        started = time.perf_counter()
        while len(servers) < len(keys):
            chosen = keys[len(servers) : len(servers) + self._search.width]
            servers |= self._halving(partial(self._train_chunk, chosen, works))
            self.half_trained |= set(servers)
        if not self._search.is_done:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            if len(keys) >= self._search.width:
                self._search.learn((time.perf_counter() - started) / len(keys))
        self.half_trained.clear()
        return servers

    def evaluate(self, asked: Mapping[Key, Evaluation]) -> dict[Key, Metrics]:
        """The metrics of several runs' models on held-out samples."""
        if self._device.type != "cuda" or len(asked) == 1 or self._evaluates_apart:
            return {key: self._evaluate_alone(key, evaluation) for key, evaluation in asked.items()}
        try:
            return self._evaluate_together({key: evaluation.server for key, evaluation in asked.items()})
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model may do in evaluation what vmap cannot
            _log.warning("runs are evaluated one by one: %s: %s", type(error).__name__, error)
            self._evaluates_apart = True
        return self.evaluate(asked)

    def _evaluate_alone(self, key: Key, asked: Evaluation) -> Metrics:
        seed_all(asked.draws, self._device)
        return metrics_of(self._members[key].loop.load(asked.server), self._data)

    def _evaluate_together(self, servers: Mapping[Key, ServerState]) -> dict[Key, Metrics]:
        found: dict[Key, Metrics] = {}
        keys = list(servers)
        while len(found) < len(keys):
            chosen = keys[len(found) : len(found) + self._search.width]
            some = self._halving(partial(evaluate_many, self._model, self._data, [servers[key] for key in chosen]))
            found |= dict(zip(chosen, some, strict=False))  # none, if they did not fit
        return found

    def _halving(self, call: Callable[[], Any]) -> Any:
        """Calls; where memory runs out, halves the width and returns nothing."""
        try:
            return call()
        except torch.OutOfMemoryError:
            if not self._search.does_not_fit():
                raise
        # Here, where the error's traceback holds no tensors any more.
        self._lanes = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return {}

    def _train_chunk(self, keys: Sequence[Key], works: Mapping[Key, RoundWork]) -> dict[Key, ServerState]:
        chunk = self._chunk([self._members[key] for key in keys], [works[key] for key in keys])
        with torch.no_grad():
            lanes = self._lanes_for(chunk)
            runs, most = self._shape
            orders = [own[i % len(own)] for own in chunk.orders for i in range(most)]
            lanes.begin(chunk.servers(), chunk.numbers(), orders, self._kept(chunk, most))
            lanes.run(orders)
            weights = np.zeros((2, runs, most))
            for row, work in enumerate(chunk.works):
                of_messages = work.cohort.weights
                weights[0, row, : len(of_messages)] = of_messages
                weights[1, row, : len(of_messages)] = of_messages / of_messages.sum()
            sent, buffers, kept = lanes.mean(weights.reshape(2, -1), [len(order) for order in orders])
            states = self._finish(chunk, sent, buffers)
        # Only now: what was raised above has changed nothing.
        for row, key in enumerate(keys if kept else ()):
            ids = works[key].cohort.clients.tolist()
            at = slice(row * most, row * most + len(ids))
            works[key].clients.put_many(ids, {s: {n: t[at] for n, t in ts.items()} for s, ts in kept.items()})
        return dict(zip(keys, states, strict=False))

    def _chunk(self, members: list[Member], works: list[RoundWork]) -> _Chunk:
        """These runs, filled up to the width there is a program for."""
        orders: list[list[Order]] = []
        for member, work in zip(members, works, strict=True):
            orders.append(member.work.orders(self._offsets, work.cohort.clients, work.round_num))
        for number in range(len(members), self._runs_for(len(members))):
            row = number % len(works)
            members, works, orders = [*members, members[row]], [*works, works[row]], [*orders, orders[row]]
        return _Chunk(members, works, orders)

    def _runs_for(self, num_runs: int) -> int:
        """P: the width, or what remains of it when it was halved as long as these runs fit."""
        runs = max(self._search.width, num_runs)
        while runs > 1 and math.ceil(runs / 2) >= num_runs:
            runs = math.ceil(runs / 2)
        return runs

    def _lanes_for(self, chunk: _Chunk) -> Lanes:
        # As many as are drawn: where one can be drawn twice, a cohort may be smaller.
        num_clients = len(self._data.offsets) - 1
        runs, clients = len(chunk.works), round(max(w.cohort.participation for w in chunk.works) * num_clients)
        if self._lanes is None or self._shape[0] != runs or self._shape[1] < clients:
            self._lanes = None  # first, so that there is memory for the new ones
            self._shape = (runs, max(clients, self._shape[1]))
            names = list(chunk.numbers()[0])
            like = chunk.members[0].loop
            extent, recipe = self._extent, self._recipe
            self._lanes = Lanes(self._model, self._data, like, recipe, extent, *self._shape, names, *self._engine)
        orders = [order for own in chunk.orders for order in own]
        loops = [member.loop for member in chunk.members]
        kinds = set(self._lanes.kinds_of(orders))
        why_not = self._lanes.prepare(kinds, chunk.servers(), chunk.numbers(), loops)
        if why_not:
            self._lanes = None
            raise CannotFuse(why_not)
        return self._lanes

    def _kept(self, chunk: _Chunk, most: int) -> State:
        """What the lanes' clients kept; those without a client, what another one kept."""
        per_run = []
        for work in chunk.works:
            ids = work.cohort.clients.tolist()
            per_run.append(work.clients.get_many([ids[i % len(ids)] for i in range(most)]))
        return {s: {n: torch.cat([one[s][n] for one in per_run]) for n in ts} for s, ts in per_run[0].items()}

    def _finish(self, chunk: _Chunk, message: State, buffers: Tensors) -> list[ServerState]:
        """The servers' next states, of all runs in one operation each."""
        works = chunk.works
        servers = chunk.servers()
        params = {name: torch.stack([s.params[name] for s in servers]) for name in servers[0].params}
        state = {
            key: {name: torch.stack([s.state[key][name] for s in servers]) for name in tensors}
            for key, tensors in servers[0].state.items()
        }
        some = next(iter(params.values()))

        def per_run(values: list[float]) -> Tensor:
            return to_device(torch.tensor(values, dtype=some.dtype), self._device)

        numbers = chunk.numbers()
        hyper = {name: per_run([float(one[name]) for one in numbers]) for name in numbers[0]}
        participation = per_run([work.cohort.participation for work in works])
        factors = [work.cohort.model_factor for work in works]
        if any(factor != 1.0 for factor in factors):
            extra = per_run([factor - 1.0 for factor in factors])
            for name, update in message["update"].items():
                update.addcmul_(params[name], extra.view(-1, *[1] * (update.dim() - 1)))
        next_params, next_state = torch.vmap(self._recipe.algorithm.update_server)(
            params, state, message, participation, hyper
        )
        next_buffers = like({n: b for n, b in servers[0].buffers.items()}, buffers) if buffers else {}
        return [
            ServerState(
                {name: t[row] for name, t in next_params.items()},
                {name: t[row] for name, t in next_buffers.items()},
                {key: {name: t[row] for name, t in ts.items()} for key, ts in next_state.items()},
            )
            for row in range(len(works))
        ]


def _value(number: float, lane: Any) -> Number:
    """0 is 0 for all lanes, and then not computed with; else each lane has its own."""
    value: Number = 0.0 if is_zero(number) else lane
    return value
