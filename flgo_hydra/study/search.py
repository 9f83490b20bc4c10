"""Where a sweep's jobs come from: a grid has them all at once, a search asks for the next point when a slot is free.

A search tries `n_trials` points in total, over all calls of the sweep. What counts as tried: a point with a value, one
that diverged, one whose job failed, one that breaks a law, and one that had been tried before (it is told the known
value, and nothing runs). So a search always ends. A point that was interrupted is tried again, before any new one.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hydra.errors import HydraException

from flgo_hydra.study.grid import Grid, Value
from flgo_hydra.study.jobs import Job, PointTrial
from flgo_hydra.study.points import Point, PointChecker
from flgo_hydra.study.trials import Trials

if TYPE_CHECKING:  # imports optuna
    from flgo_hydra.study.study import StoredTrial


class Source(Protocol):
    """Hands out the jobs of a sweep."""

    trials: list[PointTrial]
    is_patient: bool
    """whether jobs are asked for when they can start, not ahead"""

    def next(self) -> Job | None:
        """The next job to run; None when there is none any more."""

    @property
    def num_to_come(self) -> int:
        """How many it will still hand out, at most."""

    @property
    def num_left(self) -> int:
        """Points without an end."""


class GridSource:
    """Every point of a grid, in order, but those that have a result."""

    is_patient = False

    def __init__(
        self,
        trials: Trials,
        points: Sequence[tuple[tuple[str, ...], Sequence[Point]]],
        is_replicated: bool,
        is_again: Callable[[Job], bool],
    ) -> None:
        """Args:
        points: overrides of each, with what its jobs compute.
        is_again: whether a job that has an outcome is to run again.
        """
        self.trials = [trials.make(overrides, jobs, is_replicated) for overrides, jobs in points]
        self._jobs = list(dict.fromkeys(job for trial in self.trials for job in trial.jobs))
        for job in self._jobs:
            if (trials.harvest(job) or trials.take_failure(job)) and is_again(job):
                job.outcome = None
                job.is_outdated = True
        self._queue = deque(job for job in self._jobs if not job.is_settled)

    def next(self) -> Job | None:
        return self._queue.popleft() if self._queue else None

    @property
    def num_to_come(self) -> int:
        return len(self._queue)

    @property
    def num_left(self) -> int:
        return sum(job.outcome is None for job in self._jobs)


@dataclass(frozen=True)
class SearchSettings:
    sampler: str
    seed: int
    n_trials: int


class SearchSource:
    """Points that a sampler chooses, one at a time."""

    is_patient = True

    def __init__(
        self,
        settings: SearchSettings,
        trials: Trials,
        space: Grid,
        replicates: Sequence[tuple[str, ...]],
        checker: PointChecker,
        retry_failed: bool = False,
    ) -> None:
        """Args:
        replicates: overrides that each job of a point adds; one, empty, without replicates.
        """
        self.trials: list[PointTrial] = []
        self._settings = settings
        self._all = trials
        self._space = space
        self._replicates = replicates
        self._checker = checker
        self._retry_failed = retry_failed
        self._queue: deque[Job] = deque()
        self._again: deque[tuple[PointTrial, Mapping[str, Value]]] = deque()
        self._num_tried = 0
        self._num_refused = 0
        self._resume()

    def next(self) -> Job | None:
        while not self._queue and self._num_tried < self._settings.n_trials:
            self._num_tried += 1
            trial = self._begin()
            if trial is None:
                continue
            self.trials.append(trial)
            self._queue.extend(job for job in trial.jobs if not (job.is_settled or job.is_submitted))
            if trial.is_settled:
                self._all.close(trial)
        if not self._queue:
            return None
        job = self._queue.popleft()
        job.is_submitted = True
        return job

    @property
    def num_to_come(self) -> int:
        return len(self._queue) + (self._settings.n_trials - self._num_tried) * len(self._replicates)

    @property
    def num_left(self) -> int:
        num_ended = sum(trial.is_closed and not trial.is_stopped for trial in self.trials) + self._num_refused
        return max(0, self._settings.n_trials - num_ended)

    def _begin(self) -> PointTrial | None:
        """The next point, as a RUNNING trial of the study; None: it breaks a law, and has been told so."""
        study, settings = self._all.study, self._settings
        if self._again:
            trial, params = self._again.popleft()
            trial.number, _ = study.ask(settings.sampler, settings.seed, self._space, params)
        else:
            number, values = study.ask(settings.sampler, settings.seed, self._space)
            overrides = self._space.write(values)
            try:
                trial = self._make(overrides)
            except (ValueError, HydraException) as error:
                self._refuse(number, overrides, error)
                return None
            trial.number = number
        study.annotate(trial.number, self._all.attributes(trial))
        return trial

    def _make(self, overrides: tuple[str, ...]) -> PointTrial:
        points = [self._checker.check((*overrides, *replicate)) for replicate in self._replicates]
        trial = self._all.make(overrides, points, is_replicated=self._replicates != [()])
        for job in trial.jobs:
            if not job.is_settled and not job.is_submitted:
                self._all.harvest(job)
        return trial

    def _refuse(self, number: int, overrides: tuple[str, ...], error: Exception) -> None:
        """Every choice and every end of an interval is lawful by itself, but this combination is not."""
        trial = self._refused(overrides)
        trial.number = number
        self._all.fail(trial.jobs[0], error)
        self._all.study.annotate(number, self._all.attributes(trial))
        self._all.close(trial)

    def _refused(self, overrides: tuple[str, ...]) -> PointTrial:
        self._num_refused += 1
        return self._all.make(overrides, [Point(overrides, f"refused {' '.join(overrides)}", is_refused=True)])

    def _resume(self) -> None:
        """Counts what earlier calls have tried, and finds what is to be tried again."""
        names = {axis.name for axis in self._space.axes} | {interval.name for interval in self._space.intervals}
        by_point: dict[tuple[str, ...], list[StoredTrial]] = {}
        for stored in self._all.stored:
            if stored.params.keys() == names and stored.overrides:
                by_point.setdefault(stored.overrides, []).append(stored)
        for overrides, earlier in by_point.items():
            try:
                trial = self._make(overrides)
            except (ValueError, HydraException) as error:
                self._num_tried += len(earlier)
                self._all.fail(self._refused(overrides).jobs[0], error)
                continue
            over = [stored for stored in earlier if stored.identity == trial.identity and stored.is_over]
            if not over or (self._retry_failed and over[-1].status == "failed"):  # `not over`: or other replicates now
                self._again.append((trial, earlier[-1].params))
                continue
            self._num_tried += len(over)
            self.trials.extend([trial] * len(over))
            trial.is_closed = True
            for job in trial.jobs:
                if job.outcome is None and not self._all.take_failure(job):
                    self._all.fail(job, RuntimeError("its run folder has neither a result nor a failure"))
