"""Where a sweep's jobs come from: a grid has them all at once, a search asks for the next point when a slot is free.

A search tries `n_trials` points in total, over all calls of the sweep. What counts as tried: a point with a value, one
that diverged, one whose job failed, one that breaks a law, and one that had been tried before (it is told the known
value, and nothing runs). So a search always ends. A point that was interrupted is tried again, before any new one.

Each choice of the sampler has a number, which every attempt at it keeps. The next choice is made as the one of its
number, whatever was interrupted before: with one slot an interrupted search tries the points of an undisturbed one.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hydra.errors import HydraException

from flgo_hydra.study.data_sets import OtherData
from flgo_hydra.study.jobs import Job, PointTrial
from flgo_hydra.study.space.grid import Grid, Value
from flgo_hydra.study.space.points import Point, PointChecker
from flgo_hydra.study.trials import Trials

if TYPE_CHECKING:  # imports optuna
    from flgo_hydra.study.stored.study import StoredTrial


class Source(Protocol):
    """Hands out the jobs of a sweep."""

    trials: list[PointTrial]
    is_patient: bool
    """whether jobs are asked for when they can start, not ahead"""

    def next(self, is_stopped: Callable[[], bool] = lambda: False) -> Job | None:
        """The next job to run; None when there is none any more, or none yet.

        Args:
            is_stopped: asked while points are chosen that are known already: whether to come back to that later.
        """

    @property
    def is_over(self) -> bool:
        """There is no job to run any more."""

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
            if not (trials.harvest(job) or trials.take_failure(job)):
                trials.tell_lost(job)
            elif is_again(job):
                job.forget()
        self._queue = deque(job for job in self._jobs if not job.is_settled)

    def next(self, is_stopped: Callable[[], bool] = lambda: False) -> Job | None:
        return self._queue.popleft() if self._queue else None

    @property
    def is_over(self) -> bool:
        return not self._queue

    @property
    def num_to_come(self) -> int:
        return len(self._queue)

    @property
    def num_left(self) -> int:
        return sum(job.outcome is None for job in self._jobs)


@dataclass(frozen=True)
class SearchSettings:
    sampler: Any
    """of `hydra.sweeper.sampler`"""
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
        is_again: Callable[[Job], bool] = lambda job: False,
    ) -> None:
        """Args:
        replicates: overrides that each job of a point adds; one, empty, without replicates.
        is_again: whether a job that has an outcome is to run again.
        """
        self.trials: list[PointTrial] = []
        self._settings = settings
        self._all = trials
        self._space = space
        self._replicates = replicates
        self._checker = checker
        self._is_again = is_again
        self._queue: deque[Job] = deque()
        self._again: deque[_Attempt] = deque()
        self._chosen: set[int] = set()
        """numbers of the choices that there are"""
        self._next_choice = 0
        self._asked: tuple[int, tuple[str, ...], int | None] | None = None
        """a trial that the study has, its overrides and its choice, as long as its jobs are not made"""
        self._num_tried = 0
        self._num_refused = 0
        self._resume()

    def next(self, is_stopped: Callable[[], bool] = lambda: False) -> Job | None:
        while not self._queue and self._num_tried < self._settings.n_trials and not is_stopped():
            trial = self._begin()  # where its storage is away, nothing has happened yet
            self._num_tried += 1
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
    def is_over(self) -> bool:
        return not self._queue and self._num_tried >= self._settings.n_trials

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
        # What fails from here to the end (no descriptors, no disk) is tried again: with the point that was chosen.
        if self._asked is None and self._again:
            again = self._again[0]
            self._asked = study.ask_again(self._space, again.params, again.choice), again.overrides, again.choice
            self._again.popleft()
        elif self._asked is None:
            # One whose run has been lost with the study leaves a hole: its point is chosen again.
            choice = self._first_free()
            number, values = study.ask(settings.sampler, settings.seed, self._space, choice)
            self._asked = number, self._space.write(values), choice
            self._chosen.add(choice)
        assert self._asked is not None
        number, overrides, chosen = self._asked
        try:
            trial = self._make(overrides)
        except OtherData:
            raise
        except (ValueError, HydraException) as error:
            self._refuse(number, chosen, overrides, error)
            self._asked = None
            return None
        trial.number = number
        self._annotate(trial.number, {**self._all.attributes(trial), **_numbered(chosen)})
        self._asked = None
        return trial

    def _first_free(self) -> int:
        while self._next_choice in self._chosen:
            self._next_choice += 1
        return self._next_choice

    def _annotate(self, number: int, attributes: Mapping[str, object]) -> None:
        self._all.tell(lambda: self._all.study.annotate(number, attributes))

    def _make(self, overrides: tuple[str, ...]) -> PointTrial:
        points = [self._checker.check((*overrides, *replicate)) for replicate in self._replicates]
        trial = self._all.make(overrides, points, is_replicated=self._replicates != [()])
        for job in trial.jobs:
            if not (job.is_settled or job.is_submitted or job.is_outdated):
                self._all.harvest(job)
        return trial

    def _refuse(self, number: int, choice: int | None, overrides: tuple[str, ...], error: Exception) -> None:
        """Every choice and every end of an interval is lawful by itself, but this combination is not."""
        trial = self._refused(overrides)
        trial.number = number
        self._all.fail(trial.jobs[0], error)
        self._annotate(number, {**self._all.attributes(trial), **_numbered(choice)})
        self._all.close(trial)

    def _refused(self, overrides: tuple[str, ...]) -> PointTrial:
        self._num_refused += 1
        return self._all.make(overrides, [Point(overrides, f"refused {' '.join(overrides)}", is_refused=True)])

    def _resume(self) -> None:
        """Counts what earlier calls have tried, and finds what is to be tried again."""
        names = {axis.name for axis in self._space.axes} | {interval.name for interval in self._space.intervals}
        by_point: dict[tuple[str, ...], dict[object, list[StoredTrial]]] = {}
        for stored in self._all.stored:
            if stored.choice is not None:
                self._chosen.add(stored.choice)
            if stored.params.keys() == names and stored.overrides:
                key = stored.choice if stored.choice is not None else f"trial {stored.number}"
                by_point.setdefault(stored.overrides, {}).setdefault(key, []).append(stored)
        for _ in range(sum(isinstance(key, str) for by_choice in by_point.values() for key in by_choice)):
            self._chosen.add(self._first_free())  # of trials without a number
        again: list[_Attempt] = []
        for overrides, by_choice in by_point.items():
            try:
                trial = self._make(overrides)
            except OtherData:
                raise
            except (ValueError, HydraException) as error:
                self._num_tried += len(by_choice)
                self._all.fail(self._refused(overrides).jobs[0], error)
                continue
            is_again = self._take_outcomes(trial)
            for attempts in by_choice.values():
                # An attempt may be at another point today, which has other replicates.
                if not is_again and any(one.identity == trial.identity and one.is_over for one in attempts):
                    self._num_tried += 1
                    self.trials.append(trial)
                    trial.is_closed = True
                else:
                    again.append(_Attempt(overrides, attempts[-1].params, attempts[-1].choice))
            for job in trial.jobs:
                if not trial.is_closed:  # its attempts are trials of their own, made when they begin
                    job.trials.remove(trial)
        self._again.extend(sorted(again, key=lambda one: -1 if one.choice is None else one.choice))

    def _take_outcomes(self, trial: PointTrial) -> bool:
        """Takes over what became of a point's jobs; returns whether one of them is to run again."""
        is_again = False
        for job in trial.jobs:
            if job.outcome is None:
                self._all.take_failure(job)
            if job.outcome is None:
                self._all.tell_lost(job)
                is_again = True
            elif self._is_again(job):
                job.forget()
                is_again = True
        return is_again


@dataclass(frozen=True)
class _Attempt:
    """A point to be tried once more."""

    overrides: tuple[str, ...]
    params: Mapping[str, Value]
    choice: int | None


def _numbered(choice: int | None) -> dict[str, int]:
    return {} if choice is None else {"choice": choice}
