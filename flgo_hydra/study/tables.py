"""The tables of a sweep, results.csv, points.csv and best.yaml, kept current while it runs."""

import functools
import time
from collections.abc import Callable, Sequence

from flgo_hydra.machine_errors import CannotWrite
from flgo_hydra.record.paths import SweepPaths
from flgo_hydra.report.optimum import conditions_apart, points_apart
from flgo_hydra.report.point_rows import PointRow, sort_points, write_best_point, write_points
from flgo_hydra.report.rows import Row, write_best, write_results
from flgo_hydra.study.search import Source
from flgo_hydra.study.space.replicates import mean_and_std, reason_of
from flgo_hydra.study.trials import Trials

_COST_SHARE = 20.0
"""Tables are rewritten when this many times their cost has passed."""


class SweepTables:
    """A row for each job that has ended, and one for each point where a point has several jobs.

    Args:
        fixed: overrides that all jobs share.
        has_points: there are replicates.
    """

    def __init__(
        self,
        trials: Trials,
        source: Source,
        paths: SweepPaths,
        fixed: tuple[str, ...],
        has_points: bool,
    ) -> None:
        self._trials = trials
        self._source = source
        self._paths = paths
        self._fixed = fixed
        self._has_points = has_points
        self.has_news = False
        """a job has ended since they were written"""
        self._written = 0.0
        self._cost = 0.0

    def rows(self) -> list[Row]:
        """A row for each job that has ended, of this call and of earlier ones."""
        rows = {job.number: job.outcome for job in self._trials.jobs.everybody() if job.outcome is not None}
        return [rows[number] for number in sorted(rows)]

    def point_rows(self) -> list[PointRow]:
        """A row for each point all of whose replicates have ended, of earlier calls too."""
        trials = {trial.identity: trial for trial in self._source.trials if not trial.is_stopped}
        points = [(trial.overrides, trial.jobs) for trial in trials.values()]
        points += [(overrides, tuple(jobs)) for overrides, jobs in self._trials.other_points(self._source.trials)]
        return [_point_row(overrides, [job.outcome for job in jobs if job.outcome]) for overrides, jobs in points]

    def write_now_and_then(self) -> None:
        """Keeps results.csv and best.yaml current at a cost that does not grow with the number of jobs."""
        if time.monotonic() - self._written >= _COST_SHARE * self._cost:
            self.write()

    def write(self) -> None:
        """Writes the tables as things stand, those that the disk takes.

        Raises:
            CannotWrite: it has refused one.
        """
        begin = time.monotonic()
        refused = []
        for write in self._writers():
            try:
                write()
            except CannotWrite as error:
                refused.append(error)
        self._written = time.monotonic()
        self._cost = self._written - begin
        if refused:
            raise refused[0]
        self.has_news = False

    def _writers(self) -> list[Callable[[], None]]:
        rows, paths = self.rows(), self._paths
        results = functools.partial(write_results, paths.results, rows)
        if self._has_points:
            points = self.point_rows()
            apart_points = points_apart(rows, sort_points(points))
            return [
                results,
                functools.partial(write_points, paths.points, points),
                functools.partial(write_best_point, paths.best, points, self._fixed, apart_points),
            ]
        paths.points.unlink(missing_ok=True)
        return [results, functools.partial(write_best, paths.best, rows, self._fixed, conditions_apart(rows))]


def _point_row(overrides: tuple[str, ...], outcomes: Sequence[Row]) -> PointRow:
    outcomes = sorted(outcomes, key=lambda row: row.job)
    jobs = tuple(one.job for one in outcomes)
    reasons = [f"job {one.job} {reason}" for one in outcomes if (reason := reason_of(one)) is not None]
    if reasons:
        return PointRow(overrides, jobs, message="; ".join(reasons))
    values = tuple(one.value for one in outcomes)
    mean, std = mean_and_std(values)
    return PointRow(overrides, jobs, values, mean, std, "", outcomes[0].monitor)
