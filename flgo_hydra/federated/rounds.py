"""The federated loop: rounds until the last one, early stop, divergence or a request to stop."""

import math
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from torch import nn

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Hyper
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort, sample_cohort, weigh
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.evaluation import Metrics, metrics_of
from flgo_hydra.federated.metrics import monitored
from flgo_hydra.federated.patience import Patience
from flgo_hydra.federated.randomness import Purpose, numpy_generator, seed_all, torch_seed
from flgo_hydra.federated.schedule import lr_at
from flgo_hydra.federated.training import Backend, ServerState
from flgo_hydra.federated.users_code import no_silent_end


class Status(StrEnum):
    """How a run ended."""

    COMPLETED = "completed"
    EARLY_STOPPED = "early_stopped"
    DIVERGED = "diverged"
    PRUNED = "pruned"  # asked to, at a round boundary, because other runs are better
    STOPPED = "stopped"  # asked to, at a round boundary; it can go on from its checkpoint


@dataclass
class RunState:
    """Everything that the next round depends on."""

    server: ServerState
    clients: ClientStates
    round_num: int = -1
    """the last finished round; -1: not even the untrained model was evaluated"""
    patience: Patience = field(default_factory=Patience)
    best: Metrics = field(default_factory=dict)
    """metrics of the best round"""
    last: Metrics = field(default_factory=dict)
    """metrics of the last evaluated round"""
    seconds: float = 0.0
    """time trained so far, earlier attempts included"""

    def judge(self) -> bool:
        """Holds the metrics of the last evaluated round against the best so far; returns whether they are better.

        Raises:
            ValueError: the metric that the run follows is not among them.
        """
        before = self.patience
        value = monitored(before.monitor.metric, self.last, self.round_num)
        self.patience = before.update(self.round_num, value)
        if self.patience is before:
            return False
        self.best = self.last
        return True


@dataclass(frozen=True)
class RoundWork:
    """What a backend needs to know to train a round, as `Backend.train` takes it."""

    server: ServerState
    clients: ClientStates
    cohort: Cohort
    hyper: Hyper
    round_num: int


@dataclass(frozen=True)
class Evaluation:
    """A model whose metrics on held-out samples are wanted."""

    server: ServerState
    draws: int
    """seed of what the model draws meanwhile"""


Run = Generator[RoundWork | Evaluation, Any, Status]
"""yields what is to be trained or evaluated, takes the server's next state or the metrics, returns how it ended"""


Select = Callable[[np.random.Generator, np.ndarray, float, ServerState], np.ndarray]
"""(of this round, training samples of every client, `proportion`, the server) -> ids of distinct clients"""


class Watcher(Protocol):
    """Who follows a run: the record, a progress line, a launcher."""

    def evaluated(self, state: RunState, is_best: bool) -> None:
        """Called after each evaluation, with its metrics in `state.last`."""

    def finished_round(self, state: RunState) -> Status | None:
        """Called after each round; `PRUNED` or `STOPPED` ends the run here."""


def drive(run: Run, backend: Backend, data: Data) -> Status:
    """Trains and evaluates what a run asks for, until it ends."""
    answer: ServerState | Metrics | None = None
    while True:
        asked = go_on(run, answer)
        if isinstance(asked, Status):
            return asked
        with no_silent_end():
            if isinstance(asked, Evaluation):
                seed_all(asked.draws, data.x_train.device)
                answer = metrics_of(backend.load(asked.server), data)
            else:
                answer = backend.train(asked.server, asked.clients, asked.cohort, asked.hyper, asked.round_num)


def go_on(run: Run, answer: ServerState | Metrics | None) -> RoundWork | Evaluation | Status:
    """Gives a run what it asked for (at first nothing); returns what it asks for next, or how it ended."""
    with no_silent_end():
        try:
            return run.send(answer)
        except StopIteration as end:  # the run's own end: one raised inside of it comes out as RuntimeError
            status: Status = end.value
            return status


def rounds(
    backend: Backend,
    data: Data,
    algorithm: Algorithm,
    numbers: Mapping[str, float],
    option: OptionConf,
    state: RunState,
    watcher: Watcher,
    own_metrics: Callable[[nn.Module, RunState], Metrics] | None = None,
    personal: Callable[[ServerState, ClientStates], Metrics] | None = None,
    select: Select | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """A run from `state` on, changing it: yields what is to be trained and evaluated, and takes what came of it.

    Round 0 is the untrained model. It counts: a run that only gets worse has its best round there. The patience of
    `early_stop` is counted in rounds, whatever `eval_interval` is (FLGo counts stale values, and not round 0).

    Args:
        backend: loads models for `own_metrics`; who trains and evaluates is the caller's choice.
        numbers: the algorithm's hyper-parameters by name.
        own_metrics: the user's, of the model that `state.last` has our metrics of.
        personal: metrics of the models that clients would use themselves.
        select: draws the clients of a round, in place of `option.sample`.
    Raises:
        ValueError: the metric to be followed (`option.monitor`) is not computed.
    """
    started = clock() - state.seconds
    num_samples = np.diff(np.asarray(data.offsets))
    while True:
        r = state.round_num + 1
        if r > option.num_rounds:
            return Status.COMPLETED
        if r > 0:
            rng = numpy_generator(option.seed, Purpose.COHORT, r)
            how = option.sample, option.aggregate, algorithm.weighting
            if select is None:
                cohort = sample_cohort(num_samples, option.proportion, *how, rng)
            else:
                cohort = weigh(select(rng, num_samples, option.proportion, state.server), num_samples, *how)
            lr = lr_at(option.lr_schedule, option.lr, option.lr_decay, r, option.num_rounds)
            hyper: dict[str, Any] = {**numbers, "lr": lr}
            state.server = yield RoundWork(state.server, state.clients, cohort, hyper, r)
        state.round_num = r
        is_evaluated = r % option.eval_interval == 0 or r == option.num_rounds
        if is_evaluated:
            state.last = yield Evaluation(state.server, torch_seed(option.seed, Purpose.EVALUATION, r))
            if personal is not None:
                state.last = {**state.last, **personal(state.server, state.clients)}
            if own_metrics is not None:
                seed_all(torch_seed(option.seed, Purpose.OWN_METRICS, r), data.x_train.device)
                state.last = {**state.last, **own_metrics(backend.load(state.server), state)}
            state.seconds = clock() - started
            watcher.evaluated(state, is_best=state.judge())
            if not all(math.isfinite(state.last[loss]) for loss in ("valid_loss", "test_loss")):
                return Status.DIVERGED
            if state.patience.is_over(r, option.early_stop):
                return Status.EARLY_STOPPED
        state.seconds = clock() - started
        asked = watcher.finished_round(state) if r < option.num_rounds else None
        if asked is not None:
            return asked
