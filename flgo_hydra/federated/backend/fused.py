"""Several runs as one program: the clients of all their cohorts are lanes of one batch (`lanes.py`).

The runs differ in values only: learning rate, momentum, weight decay, an algorithm's numbers, seeds. So each lane has
its own server model to start from, its own server state and its own numbers, and one operation does the step of all.
Cohorts, batch orders and aggregation are each run's own, from the same generators as when it runs alone: a run's
numbers differ from those alone by rounding (float64: 1e-12), and do not depend on the others at all: no two lanes are
ever summed but those of one run, and which steps are masked is the task's, not the group's. One whose losses are not
finite does not touch the others.

Where runs have ended, others fill their lanes up and count nothing, until half as many lanes do.

P runs, K clients of each at most.
"""

import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from flgo_hydra.config.option import AUTO, EngineConf
from flgo_hydra.federated.algorithm.base import Algorithm, Hyper, State, Tensors, takes_all_messages
from flgo_hydra.federated.backend.cannot import Cannot, cannot
from flgo_hydra.federated.backend.extent import Extent, extent_of
from flgo_hydra.federated.backend.habits import copied
from flgo_hydra.federated.backend.lane_schedule import MASKED
from flgo_hydra.federated.backend.lane_tensors import Numbers
from flgo_hydra.federated.backend.lane_trial import find_lanes
from flgo_hydra.federated.backend.lanes import Lanes, Recipe
from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.python_state import PythonState, global_hooks
from flgo_hydra.federated.backend.trial import difference
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.evaluation import Metrics, evaluate_many, metrics_of
from flgo_hydra.federated.optimizer import Number, Optimizer, build_optimizer, is_zero
from flgo_hydra.federated.randomness import seed_all
from flgo_hydra.federated.rounds import Evaluation, RoundWork
from flgo_hydra.federated.schedule import Order, batch_sizes
from flgo_hydra.federated.training import (
    LocalStep,
    LocalWork,
    ServerState,
    Stack,
    check_message,
    combine,
    finish_round,
    server_state,
    states_of_copy,
    weights_of,
    with_changes,
)
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
    def settings(self) -> dict[str, float]:
        return {"momentum": self.momentum, "weight_decay": self.weight_decay, "clip_grad": self.clip_grad}

    def step(self, settings: Mapping[str, Any]) -> LocalStep:
        """The local step of a lane with these settings."""
        optimizer = build_optimizer(
            self.optimizer,
            _value(self.momentum, settings["momentum"]),
            _value(self.weight_decay, settings["weight_decay"]),
        )
        return LocalStep(self.algorithm, optimizer, _value(self.clip_grad, settings["clip_grad"]))

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

    def ids(self, most: int) -> list[list[int]]:
        """Clients of each run, repeated to fill up as many lanes."""
        every = [work.cohort.clients.tolist() for work in self.works]
        return [[own[i % len(own)] for i in range(most)] for own in every]

    def numbers(self) -> list[Numbers]:
        return [Numbers(work.hyper, member.settings) for work, member in zip(self.works, self.members, strict=True)]


class FusedBackend:
    """Trains a round of several runs at once.

    Args:
        model: gives the architecture; its own weights do not matter.
        data: the task of all runs.
        members: the runs, by the key under which `train` is told of their rounds.
        most: how many runs are trained at once, at most (`hydra.launcher.fuse`), as long as they fit.
        engine: as for `Lanes`.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        members: Mapping[Key, Member],
        most: int,
        engine: EngineConf = AUTO,
    ) -> None:
        self._model = model
        self._data = data
        self._members: dict[Any, Member] = dict(members)
        self._engine = engine
        self._device = data.x_train.device
        self._most = most
        # What a lane computes does not depend on how many there are: on the CPU; elsewhere libraries choose by it.
        self._width = min(most, len(self._members)) if self._device.type == "cpu" else most
        self._offsets = np.array(data.offsets)
        first = next(iter(self._members.values()))
        self._extent = _extent_of_all(data, first.work)
        self._recipe = Recipe(first.algorithm, first.num_slots, first.step)
        # What the forms are tried with: not where a run has come to, which another attempt may find elsewhere.
        self._untrained = replace(
            server_state(first.loop.model, Algorithm()), state=states_of_copy(first.algorithm, first.loop.params)[0]
        )
        self._lanes: Lanes | None = None
        self._shape = (0, 0)
        self._evaluates_apart = False
        self._is_evaluation_tried = False

    @property
    def form(self) -> dict[str, Any]:
        """What decides how numbers are rounded, beside the engine's switches."""
        return form_of(self._most)

    @property
    def note(self) -> dict[str, Any]:
        """What ran, for result.json."""
        lanes = self._lanes.note if self._lanes is not None else {}
        at_once = {"runs": len(self._members), "runs_at_once": min(self._width, len(self._members))}
        return {**self.form, "chosen_by": "hydra.launcher.fuse", **at_once, **lanes}

    def train(self, works: Mapping[Key, RoundWork]) -> dict[Key, ServerState]:
        """Returns the next server states; each run's client states are kept in its own `RoundWork.clients`.

        Raises:
            CannotFuse: the model's step cannot be a batch.
            torch.OutOfMemoryError: not even one run fits.
        """
        keys = list(works)
        servers: dict[Key, ServerState] = {}
        self._require_unchanged(works)
        self._model.train()
        while len(servers) < len(keys):
            chosen = keys[len(servers) : len(servers) + self._width]
            servers |= self._halving(partial(self._train_chunk, chosen, works))
        return servers

    def _require_unchanged(self, works: Mapping[Key, RoundWork]) -> None:
        """Before a round: what one run's Python has changed since the first, the others have not."""
        for key, work in works.items():
            if why := self._members[key].loop.why_plain_from(work.round_num):
                for member in self._members.values():
                    member.loop.put_back()
                raise CannotFuse(why)

    def evaluate(self, asked: Mapping[Key, Evaluation]) -> dict[Key, Metrics]:
        """The metrics of several runs' models on held-out samples."""
        if self._device.type != "cuda" or len(asked) == 1 or self._evaluates_apart:
            return {key: self._evaluate_alone(key, evaluation) for key, evaluation in asked.items()}
        try:
            servers = {key: evaluation.server for key, evaluation in asked.items()}
            if self._is_evaluation_tried or self._is_evaluated_alike(servers):
                return self._evaluate_together(servers)
            self._evaluates_apart = True
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model may do in evaluation what vmap cannot
            _log.warning("runs are evaluated one by one: %s: %s", type(error).__name__, error)
            self._evaluates_apart = True
        return self.evaluate(asked)

    def _evaluate_alone(self, key: Key, asked: Evaluation) -> Metrics:
        seed_all(asked.draws, self._device)
        return metrics_of(self._members[key].loop.load(asked.server), self._data)

    def _is_evaluated_alike(self, servers: Mapping[Key, ServerState]) -> bool:
        """Tries whether models at once have the metrics that each has alone."""
        keys = list(servers)[:: max(1, len(servers) - 1)]  # the first and the last
        together = evaluate_many(self._model, self._data, [servers[key] for key in keys])
        for key, found in zip(keys, together, strict=True):
            for name, value in metrics_of(self._members[key].loop.load(servers[key]), self._data).items():
                if math.isfinite(value) and not math.isclose(found[name], value, rel_tol=1e-3, abs_tol=1e-3):
                    _log.warning("runs are evaluated one by one: %s is %g and not %g", name, found[name], value)
                    return False
        self._is_evaluation_tried = True
        return True

    def _evaluate_together(self, servers: Mapping[Key, ServerState]) -> dict[Key, Metrics]:
        found: dict[Key, Metrics] = {}
        keys = list(servers)
        while len(found) < len(keys):
            chosen = keys[len(found) : len(found) + self._width]
            some = self._halving(partial(evaluate_many, self._model, self._data, [servers[key] for key in chosen]))
            found |= dict(zip(chosen, some, strict=False))  # none, if they did not fit
        return found

    def _halving(self, call: Callable[[], Any]) -> Any:
        """Calls; where memory runs out, halves the width and returns nothing."""
        try:
            return call()
        except torch.OutOfMemoryError:
            if self._width == 1:
                raise
        self._width //= 2
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
            kept = self._kept(chunk, lanes, most)
            facts = self._facts(chunk, kept, most) if lanes.reads_facts else {}
            ids = [k for row in chunk.ids(most) for k in row]
            lanes.begin(chunk.servers(), chunk.numbers(), orders, kept, facts, ids)
            lanes.run(orders)
            weights = np.zeros((3, runs, most))
            for row, work in enumerate(chunk.works):
                weights[:, row, : len(work.cohort.clients)] = weights_of(work.cohort)
            sent, changes, kept = lanes.mean(weights.reshape(3, -1), [len(order) for order in orders])
            for key in keys:
                self._members[key].loop.require_unchanged(works[key].round_num)
            lanes.require_unchanged(works[keys[0]].round_num)
            if takes_all_messages(self._recipe.algorithm):
                sent = self._combined(chunk, sent, most)
            states = self._finish(chunk, sent, changes)
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
        """P: the width, or on the CPU what remains of it when it was halved as long as these runs fit."""
        runs = max(self._width, num_runs)
        while self._device.type == "cpu" and runs > 1 and math.ceil(runs / 2) >= num_runs:
            runs = math.ceil(runs / 2)
        return runs

    def _lanes_for(self, chunk: _Chunk) -> Lanes:
        # As many as are drawn: where one can be drawn twice, a cohort may be smaller.
        runs, clients = len(chunk.works), max(work.cohort.num_drawn for work in chunk.works)
        if self._lanes is None or self._shape[0] != runs or self._shape[1] < clients:
            self._lanes = None  # first, so that there is memory for the new ones
            self._shape = (runs, max(clients, self._shape[1]))
            recipe, extent = self._recipe, self._extent

            def make(model: nn.Module, data: Data, like: LocalSteps, runs: int, k: int, engine: EngineConf) -> Lanes:
                return Lanes(model, data, like, recipe, extent, runs, k, numbers[0], engine)

            loops = [member.loop for member in chunk.members]
            numbers = chunk.numbers()
            servers = [self._untrained] * runs
            try:
                found = find_lanes(make, extent, loops, servers, numbers, self._shape[1], self._engine)
                self._require_models_alike()
                self._require_servers_alike(chunk)
            except Cannot as error:
                raise CannotFuse(str(error)) from error
            self._lanes = found
        assert self._lanes is not None
        return self._lanes

    def prepare(self, hyper: Hyper) -> None:
        """Before the runs' first evaluation: whether what their models and algorithms do can be done at once.

        Raises:
            CannotFuse: it cannot.
        """
        first = next(iter(self._members.values()))
        habits = first.loop.habits(self._untrained, hyper)
        if why_not := habits.why_apart or habits.why_not_fused:
            raise CannotFuse(why_not)
        try:
            self._require_models_alike()
        except Cannot as error:
            raise CannotFuse(str(error)) from error
        for member in self._members.values():
            member.loop.begin_to_watch()

    def _require_models_alike(self) -> None:
        """Raises `Cannot` where one model's Python does not do for all runs: the lanes differ in tensors only."""
        if global_hooks() and len(self._members) > 1:
            raise Cannot("a model has hooks on all modules of the process, which are called for other runs' models too")
        first, *others = (PythonState(model=m.loop.model, algorithm=m.algorithm) for m in self._members.values())
        for one in others:
            if name := first.differs(one):
                raise Cannot(f"`{name}` differs from run to run")

    def _require_servers_alike(self, chunk: _Chunk) -> None:
        """Raises `Cannot` where the servers of the runs cannot take a step at once."""
        algorithm = self._recipe.algorithm
        if type(algorithm).update_server is Algorithm.update_server:
            return
        # Of copies: an algorithm may change a server in place.
        chunk = replace(chunk, works=[replace(work, server=copied(work.server)) for work in chunk.works])
        servers, hypers = chunk.servers(), [work.hyper for work in chunk.works]
        if why_not := chunk.members[0].loop.habits(servers[0], hypers[0]).why_not_fused:
            raise Cannot(why_not)
        messages = []
        for server in servers:
            loop = chunk.members[0].loop
            client = loop.client_at_trial(server, 0, hypers[0])
            begun = algorithm.begin(client, hypers[0])
            carry = {key: {name: p * 1.01 + 0.01 for name, p in tensors.items()} for key, tensors in begun.items()}
            sent, _ = loop.end(0, carry, client, 2, hypers[0], server.buffers)
            if takes_all_messages(algorithm):
                every = Stack(algorithm, chunk.works[0].cohort, hypers[0])
                for _ in range(len(chunk.works[0].cohort.clients)):
                    every.add(sent, 1.0)
                sent = every.value()
            messages.append(sent)
        together = {s: {n: torch.stack([m[s][n] for m in messages]) for n in ts} for s, ts in messages[0].items()}
        at_once = "`update_server` of several runs at once: "
        with cannot(at_once):  # vmap refuses what it cannot batch with whatever exception fits
            found = self._finish(chunk, together, {})
        for row in {0, len(servers) - 1}:
            work = chunk.works[row]
            one = {s: {n: t.clone() for n, t in ts.items()} for s, ts in messages[row].items()}
            before = copied(servers[row])
            alone = finish_round(servers[row], algorithm, one, {}, work.cohort, hypers[row])
            wrong = difference(before.params, alone.params, found[row].params)
            for key, tensors in alone.state.items():
                wrong = wrong or difference(before.state[key], tensors, found[row].state[key])
            if wrong is not None:
                raise Cannot(f"{at_once}{wrong}")

    def _kept(self, chunk: _Chunk, lanes: Lanes, most: int) -> State:
        """What the lanes' clients kept; those without a client, what another one kept."""
        for row, (work, ids) in enumerate(zip(chunk.works, chunk.ids(most), strict=True)):
            at = slice(row * most, (row + 1) * most)
            work.clients.get_many(ids, {s: {n: t[at] for n, t in ts.items()} for s, ts in lanes.kept.items()})
        return lanes.kept

    def _combined(self, chunk: _Chunk, sent: State, most: int) -> State:
        """What each run makes of all its clients' messages, (P, …).

        Args:
            sent: of the lanes, (H, …).
        """
        per_run = []
        for row, work in enumerate(chunk.works):
            at = slice(row * most, row * most + len(work.cohort.clients))
            own = {s: {n: t[at] for n, t in ts.items()} for s, ts in sent.items()}
            per_run.append(combine(self._recipe.algorithm, own, work.cohort, work.hyper))
        return {s: {n: torch.stack([one[s][n] for one in per_run]) for n in ts} for s, ts in per_run[0].items()}

    def _facts(self, chunk: _Chunk, kept: State, most: int) -> Tensors:
        """What is known of the lanes' clients.

        Args:
            kept: what they keep, (H, …).
        """
        found: dict[int, Tensors] = {}
        for row, (member, work) in enumerate(zip(chunk.members, chunk.works, strict=True)):
            if id(work) not in found:  # rows that fill up are the first ones again
                ids = work.cohort.clients.tolist()
                own = {s: {n: t[row * most : row * most + len(ids)] for n, t in ts.items()} for s, ts in kept.items()}
                found[id(work)] = member.loop.facts_of_many(ids, work.server, own, work.hyper, work.round_num)
        every = [found[id(work)] for work in chunk.works]
        rows = [[i % len(work.cohort.clients) for i in range(most)] for work in chunk.works]
        return {name: torch.cat([one[name][at] for one, at in zip(every, rows, strict=True)]) for name in every[0]}

    def _finish(self, chunk: _Chunk, message: State, changes: Tensors) -> list[ServerState]:
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

        for work in works:
            check_message(message, work.cohort)
        hyper = {name: per_run([float(work.hyper[name]) for work in works]) for name in works[0].hyper}
        participation = per_run([work.cohort.participation for work in works])
        factors = [work.cohort.model_factor for work in works]
        if any(factor != 1.0 for factor in factors):
            extra = per_run([factor - 1.0 for factor in factors])
            for name, update in message["update"].items():
                update.addcmul_(params[name], extra.view(-1, *[1] * (update.dim() - 1)))
        next_params, next_state = torch.vmap(self._recipe.algorithm.update_server)(
            params, state, message, participation, hyper
        )
        return [
            ServerState(
                {name: t[row] for name, t in next_params.items()},
                with_changes(servers[row].buffers, {name: t[row] for name, t in changes.items()}),
                {key: {name: t[row] for name, t in ts.items()} for key, ts in next_state.items()},
            )
            for row in range(len(works))
        ]


def form_of(most: int) -> dict[str, Any]:
    """What a run trained so has in its checkpoint."""
    return {"backend": "fused", "fuse": most}


def _extent_of_all(data: Data, work: LocalWork) -> Extent:
    """As a run has it alone, but for the steps that need no mask: a run's must not depend on whom it runs with.

    So nothing is masked where all clients of the task take the same steps, and else everything.
    """
    extent = extent_of(data, work, float("inf"), 1)
    patterns = {batch_sizes(n, *work.size(n)) for n in np.unique(np.diff(data.offsets)).tolist()}
    return extent if len(patterns) == 1 else replace(extent, sizes=frozenset(), kinds=frozenset({MASKED}))


def _value(number: float, lane: Any) -> Number:
    """0 is 0 for all lanes, and then not computed with; else each lane has its own."""
    value: Number = 0.0 if is_zero(number) else lane
    return value
