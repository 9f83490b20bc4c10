"""Hydra's sweeper of flgo_hydra: checks every point of a grid, launches what is not finished, fills the study."""

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf

from flgo_hydra import compose
from flgo_hydra.config import SweeperConf
from flgo_hydra.launch.composing import SweepComposer
from flgo_hydra.launch.launcher import PackingLauncher
from flgo_hydra.launch.queue import Job as QueuedJob
from flgo_hydra.record import files
from flgo_hydra.record.paths import RunPaths, SweepPaths
from flgo_hydra.record.result import Failure, read_failure, read_result, read_rounds, write_failure
from flgo_hydra.report import curves
from flgo_hydra.report.summary import print_summary
from flgo_hydra.report.table import Row, write_best, write_results
from flgo_hydra.study.grid import Axis, Grid, Value, give_axes, parse_point, read_grid, read_points
from flgo_hydra.study.objective import Common, check_same
from flgo_hydra.study.ownership import check_folder, owning
from flgo_hydra.study.points import Point, check_points

_MOST_AHEAD = 64
"""Jobs submitted ahead of the slots: enough to put the longest first, few enough to keep in memory."""
_TABLES_COST_SHARE = 20.0
"""Tables are rewritten when this many times their cost has passed."""


set_up_listeners: list[Callable[["StudySweeper"], None]] = []
"""Called with each sweeper when it has its launcher: how a Python program reaches the one that Hydra makes for it."""


@dataclass(frozen=True)
class Outcome:
    """What a Python program is told of a sweep."""

    rows: dict[int, Row]
    """by job number; a job that did not run has none"""
    jobs: dict[tuple[str, ...], int]
    """job numbers by swept overrides, however a point was written"""
    paths: SweepPaths
    storage: str
    study_name: str


@dataclass
class Job:
    """A point with the number of its run folder."""

    number: int
    point: Point
    attempt: int = 1
    trial: int | None = None


class StudySweeper(Sweeper):
    """Runs a grid with whatever launcher is configured. Run folders are the truth; study and tables follow them."""

    def __init__(
        self,
        params: DictConfig | None = None,
        storage: str | None = None,
        study_name: str | None = None,
        batch_size: int | None = None,
        retry_failed: bool = False,
        curve: str = "valid_loss",
        pruner: Any = None,
        points: ListConfig | None = None,
    ) -> None:
        pruner = OmegaConf.to_container(pruner, resolve=True) if OmegaConf.is_config(pruner) else pruner
        conf = SweeperConf(
            "", storage=storage, study_name=study_name, batch_size=batch_size, curve=curve, pruner=pruner
        )  # its laws
        self._pruner = conf.pruner
        self._params: dict[str, Any] = {str(key): value for key, value in (params or {}).items()}
        self._storage = storage
        self._study_name = study_name
        self._batch_size = batch_size
        self._retry_failed = retry_failed
        self._curve = curve
        self._points = read_points(OmegaConf.to_container(points) if points is not None else [])
        self.outcome: Outcome | None = None
        self._config: DictConfig | None = None
        self._launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self._config = config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        # Our launcher's own: what is composed to be checked need not be composed again to run.
        launcher = self._launcher
        self._composer = (
            launcher.composer
            if isinstance(launcher, PackingLauncher)
            else SweepComposer(hydra_context.config_loader, config)
        )
        for tell in set_up_listeners:
            tell(self)

    @property
    def job_launcher(self) -> Launcher:
        assert self._launcher is not None
        return self._launcher

    def sweep(self, arguments: list[str]) -> Any:
        """Runs every point that has no result yet; prints what came out.

        Raises:
            ValueError: a point breaks a law: nothing was started.
            SystemExit: with status 1, when a job has no result or no point has a finite loss.
        """
        assert self._config is not None and self.hydra_context is not None
        if self._batch_size is not None and isinstance(self._launcher, PackingLauncher):
            raise ValueError(
                "`hydra.sweeper.batch_size` has no effect with hydra/launcher=flgo_hydra, which fills slots one by "
                "one. Set `hydra.launcher.slots`."
            )
        self._check_pruner()
        grid = self._read_grid(arguments)
        # Workers may begin with their imports while the other points are checked.
        warm = self._launcher.warm if isinstance(self._launcher, PackingLauncher) else lambda: None
        paths = SweepPaths(Path(self._config.hydra.sweep.dir).resolve())
        common = Common(axis.key for axis in grid.axes)
        with contextlib.ExitStack() as stack:
            is_old = paths.folder.exists()
            if is_old:  # who is not let in need not wait for the checks
                stack.enter_context(owning(paths))
            points = check_points(self._composer, self._config, grid, warm, common)
            if not is_old:  # nothing is made before everything is checked
                stack.enter_context(owning(paths))
            sweep = _Sweep(self, grid, points, common, paths)
            stack.callback(sweep.close)
            self.outcome = sweep.outcome()
            return sweep.run()

    def _check_pruner(self) -> None:
        if self._pruner is None:
            return
        from flgo_hydra.study.pruning import Pruning  # imports optuna

        Pruning(self._pruner)
        if not isinstance(self._launcher, PackingLauncher):
            raise ValueError(
                "`hydra.sweeper.pruner` needs hydra/launcher=flgo_hydra: under other launchers a run cannot be told to "
                "end. Choose that launcher, or `hydra.sweeper.pruner=null`."
            )

    def _read_grid(self, arguments: Sequence[str]) -> Grid:
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        written = [f"{key}={_as_text(value)}" for key, value in self._params.items()]
        return replace(read_grid(parser.parse_overrides([*written, *arguments])), listed=self._points)


class _Sweep:
    """One call of the sweeper."""

    def __init__(
        self, sweeper: StudySweeper, grid: Grid, points: list[Point], common: Common, paths: SweepPaths
    ) -> None:
        from flgo_hydra.study.live import LiveCurves  # these import optuna
        from flgo_hydra.study.pruning import Pruning
        from flgo_hydra.study.study import SweepStudy

        assert sweeper._config is not None and sweeper._launcher is not None and sweeper.hydra_context is not None
        self._config = sweeper._config
        self._launcher = sweeper._launcher
        self._batch_size = sweeper._batch_size
        self._curve = sweeper._curve
        self._composer = sweeper._composer
        self._paths = paths
        self._retry_failed = sweeper._retry_failed
        default_name = "_".join(paths.folder.parts[-2:])
        self._study = SweepStudy(sweeper._storage or paths.study, sweeper._study_name or default_name)
        self._storage = sweeper._storage or str(paths.study)
        earlier = self._study.description
        if sweeper._storage is not None:
            check_folder(earlier.get("folder"), paths, self._study.name)
            self._study.describe({"folder": str(paths.folder)})
        check_same(earlier.get("fixed", {}), common.values, self._study.name, str(paths.folder))
        files.write_text(paths.folder / "multirun.yaml", OmegaConf.to_yaml(self._config))
        self._grid = give_axes(grid, earlier.get("grid", {}))
        added = tuple(f"{axis.key}={axis.values[0]}" for axis in self._grid.axes[: -len(grid.axes) or None])
        points = [replace(point, overrides=(*added, *point.overrides)) for point in points]
        self._study.describe(_description(earlier, self._grid.axes, common.values))
        setting = sweeper._pruner
        self._pruning = None if setting is None else Pruning(setting, self._study.finished_trials())
        if self._pruning is not None and any(not point.group for point in points):
            raise ValueError("`hydra.sweeper.pruner` needs runs of flgo_hydra: jobs of other apps report no rounds.")
        self._live = LiveCurves(self._study, self._pruning)
        self._choices = self._read_choices([point.overrides for point in points])
        self._study.declare(self._choices)
        self._rows: dict[int, Row] = {}
        self._outdated: set[int] = set()
        self._jobs = self._number(points)
        self._tables_written = 0.0
        self._tables_cost = 0.0

    def outcome(self) -> Outcome:
        jobs = {written: job.number for job in self._jobs for written in job.point.written}
        return Outcome(self._rows, jobs, self._paths, self._storage, self._study.name)

    def close(self) -> None:
        self._study.close()

    def run(self) -> list[JobReturn]:
        returns: list[JobReturn] = []
        is_interrupted = False
        for job in self._jobs:
            if not self._harvest(job) and not self._retry_failed:
                self._take_failure(job)
            row = self._rows.get(job.number)
            reason = None if self._pruning is None else self._pruning.reason
            if row is not None and row.status == "pruned" and row.message != reason:
                del self._rows[job.number]  # with this pruner, or none, it might have gone on
                self._outdated.add(job.number)
        num_untried = sum(row.status == "failed" for row in self._rows.values())
        to_run = [job for job in self._jobs if job.number not in self._rows]
        try:
            if isinstance(self._launcher, PackingLauncher):
                # While the workers import torch, this process has nothing to do but what it needs at the end.
                threading.Thread(target=curves.prepare, daemon=True).start()
                returns = self._roll(self._launcher, to_run)
            else:
                for batch in self._batches(to_run):
                    returns.extend(self._launch(batch))
        except KeyboardInterrupt:
            is_interrupted = True
        self._write_tables()
        rows = [self._rows[number] for number in sorted(self._rows)]
        num_left = sum(job.number not in self._rows for job in self._jobs)
        best = print_summary(
            rows,
            self._paths,
            self._storage,
            self._study.name,
            num_left,
            self._curve,
            num_untried,
            compose.is_ours(self._config),
        )
        if is_interrupted:
            raise KeyboardInterrupt
        if best is None or num_left or any(self._rows[job.number].status == "failed" for job in self._jobs):
            raise SystemExit(1)
        return returns

    def _number(self, points: list[Point]) -> list[Job]:
        """Gives points their run folders: the earlier one where the study knows the point, else a new one."""
        known: dict[str, Job] = {}
        next_number = 0
        for stored in self._study.stored_trials():
            next_number = max(next_number, stored.job + 1)
            earlier = known.get(stored.identity)
            attempt = earlier.attempt + 1 if earlier else 2
            known[stored.identity] = Job(stored.job, Point(stored.overrides, stored.identity), attempt)
            if stored.is_running:
                self._close_stale(stored.number, stored.job)
            elif stored.value is not None and not stored.status:  # of another app, which writes no result
                run = self._paths.run(stored.job)
                self._rows[stored.job] = Row.of_value(stored.job, stored.overrides, run, stored.value)
        jobs = []
        for point in points:
            if point.identity in known:
                job = known.pop(point.identity)
                jobs.append(Job(job.number, point, job.attempt))
                continue
            # A folder may be left from a sweep that was killed before its trial was stored.
            while (self._paths.folder / str(next_number)).exists():
                next_number += 1
            jobs.append(Job(next_number, point))
            next_number += 1
        for job in known.values():  # points of earlier commands: the tables show them as well
            if not self._harvest(job):
                self._take_failure(job)
        return jobs

    def _close_stale(self, trial: int, job: int) -> None:
        """A trial left RUNNING by a sweep that was killed: its run may have ended well all the same."""
        run = self._paths.run(job)
        result, failure = read_result(run), read_failure(run)
        if result is not None:
            self._study.finish(trial, result, read_rounds(run))
        elif failure is not None:
            self._study.fail(trial, f"{failure.kind}: {failure.message}", read_rounds(run))
        else:
            self._study.fail(trial, "the sweep was interrupted")

    def _batches(self, jobs: list[Job]) -> Iterator[list[Job]]:
        """Jobs to launch at once: of consecutive numbers, since Hydra numbers a batch from its first."""
        size = self._batch_size or (1 if type(self._launcher).__name__ == "BasicLauncher" else len(self._jobs))
        batch: list[Job] = []
        for job in jobs:
            if batch and (len(batch) == size or job.number != batch[-1].number + 1):
                yield batch
                batch = []
            batch.append(job)
        if batch:
            yield batch

    def _roll(self, launcher: PackingLauncher, jobs: Sequence[Job]) -> list[JobReturn]:
        """Runs jobs under our own launcher: a free slot gets the next one at once."""
        by_number = {job.number: job for job in jobs}
        by_trial: dict[int, QueuedJob] = {}
        to_submit = deque(jobs)
        returns: list[JobReturn] = []
        with launcher.watching(len(jobs)) as queue:
            while to_submit or not queue.is_idle:
                may_submit = bool(to_submit) and not queue.stop_level and len(queue.waiting) < _MOST_AHEAD
                if may_submit:
                    job = to_submit.popleft()
                    if job.number in self._outdated:
                        self._run_paths(job).result.unlink(missing_ok=True)
                    everything = [*self._grid.fixed, *job.point.overrides]
                    launcher.submit(everything, job.number, name=" ".join(job.point.overrides))
                elif queue.stop_level:
                    to_submit.clear()
                # With jobs still to submit, only look at what has happened meanwhile.
                event = launcher.next_event(timeout_s=0.0 if may_submit else self._live.wait_s())
                for pruned in self._live.write():
                    self._prune(launcher, by_trial[pruned])
                if event is None:
                    continue
                job = by_number[event.job.num]
                if event.kind == "started":
                    if job.trial is None:
                        by_trial[self._open_trial(job)] = event.job
                    elif self._pruning is not None and self._pruning.is_pruned(job.trial):
                        self._prune(launcher, event.job)  # its process died before it could heed
                elif event.kind == "report" and job.trial is not None:
                    self._live.hear(job.trial, event.values, functools.partial(read_rounds, self._run_paths(job)))
                elif event.kind == "ended":
                    trial = self._open_trial(job) if job.trial is None else job.trial  # None: refused at once
                    self._live.end(trial)
                    returned = launcher.job_return(event.job)
                    returns.append(returned)
                    if not self._harvest(job):
                        self._settle(job, returned, is_stopped=event.job.state in ("stopped", "cancelled"))
                    if self._pruning is not None:
                        row = self._rows.get(job.number)
                        value = row.best_valid_loss if row is not None and row.is_valid else None
                        self._pruning.finish(trial, value, is_pruned=row is not None and row.status == "pruned")
                    self._write_tables_now_and_then()
            is_stopped = queue.stop_level > 0
        if is_stopped:
            raise KeyboardInterrupt
        return returns

    def _open_trial(self, job: Job) -> int:
        attributes = {
            "identity": job.point.identity,
            "job": job.number,
            "overrides": list(job.point.overrides),
            "attempt": job.attempt,
            "group": job.point.group,
        }
        point = parse_point(job.point.overrides)
        job.trial = self._study.start(point, {key: self._choices[key] for key in point}, attributes)
        if self._pruning is not None:
            self._pruning.start(job.trial, job.point.group, job.point.num_rounds)
        return job.trial

    def _prune(self, launcher: PackingLauncher, job: QueuedJob) -> None:
        assert self._pruning is not None
        launcher.prune(job, self._pruning.reason)

    def _launch(self, batch: list[Job]) -> Sequence[JobReturn]:
        """Runs a batch under anybody else's launcher."""
        for job in batch:
            self._run_paths(job).failure.unlink(missing_ok=True)  # of an earlier sweep
            self._open_trial(job)
        overrides = [[*self._grid.fixed, *job.point.overrides] for job in batch]
        try:
            returns = self._launcher.launch(overrides, initial_job_idx=batch[0].number)
        except Exception as error:  # a launcher that dies with a job (joblib's does): the others' results are kept
            for job in batch:
                if not self._harvest(job):
                    self._fail(job, error)
            return []
        for job, returned in zip(batch, returns, strict=True):
            if not self._harvest(job):
                self._settle(job, returned)
        self._write_tables_now_and_then()
        return returns

    def _settle(self, job: Job, returned: JobReturn, is_stopped: bool = False) -> None:
        """A job that wrote no result: it was stopped, it failed, or it is not one of ours and returned its value."""
        if is_stopped:
            assert job.trial is not None
            self._study.fail(job.trial, "the sweep was interrupted")
            return
        if returned.status is not JobStatus.COMPLETED:
            error = returned._return_value
            self._fail(job, error if isinstance(error, BaseException) else RuntimeError(str(error)))
            return
        assert job.trial is not None
        value = float(returned.return_value)
        self._study.finish_value(job.trial, value)
        self._rows[job.number] = Row.of_value(job.number, job.point.overrides, self._paths.run(job.number), value)

    def _fail(self, job: Job, error: BaseException) -> None:
        assert job.trial is not None
        run = self._paths.run(job.number)
        failure = read_failure(run)
        if failure is None:
            failure = Failure(type(error).__name__, str(error))
            run.folder.mkdir(parents=True, exist_ok=True)
            write_failure(run, failure)
        self._study.fail(job.trial, f"{failure.kind}: {failure.message}", read_rounds(run))
        self._rows[job.number] = Row.of_failure(job.number, job.point.overrides, run, failure)

    def _harvest(self, job: Job) -> bool:
        """Takes over the job's result, if its folder has one."""
        run = self._run_paths(job)
        result = read_result(run)
        if result is None or result.fingerprint != job.point.identity:
            return False
        if job.trial is not None:
            self._study.finish(job.trial, result, read_rounds(run))
        self._rows[job.number] = Row.of_result(job.number, job.point.overrides, run, result)
        return True

    def _take_failure(self, job: Job) -> None:
        """Takes over that the job failed before, if its folder says so."""
        run = self._run_paths(job)
        failure = read_failure(run) if job.attempt > 1 else None
        if failure is not None:
            self._rows[job.number] = Row.of_failure(job.number, job.point.overrides, run, failure)

    def _run_paths(self, job: Job) -> RunPaths:
        return self._paths.run(job.number)

    def _read_choices(self, points: list[tuple[str, ...]]) -> dict[str, list[Value]]:
        """Every value that a swept key may take: a group's all choices, so that a study can grow by one later."""
        choices: dict[str, dict[tuple[str, Value], None]] = {}
        for point in points:
            for key, value in parse_point(point).items():
                if key not in choices:
                    choices[key] = {("str", option): None for option in self._composer.group_options(key)}
                choices[key][(type(value).__name__, value)] = None  # 1, 1.0 and True are equal
        return {key: [value for _, value in values] for key, values in choices.items()}

    def _write_tables_now_and_then(self) -> None:
        """Keeps results.csv and best.yaml current at a cost that does not grow with the number of jobs."""
        if time.monotonic() - self._tables_written >= _TABLES_COST_SHARE * self._tables_cost:
            self._write_tables()

    def _write_tables(self) -> None:
        begin = time.monotonic()
        rows = [self._rows[number] for number in sorted(self._rows)]
        write_results(self._paths.results, rows)
        write_best(self._paths.best, rows, self._grid.fixed)
        self._tables_written = time.monotonic()
        self._tables_cost = self._tables_written - begin


def _description(earlier: Mapping[str, Any], axes: Sequence[Axis], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """What a study is of after this sweep: values of its axes, earlier ones included, and what they have in common."""
    grid = {key: list(values) for key, values in earlier.get("grid", {}).items()}
    for axis in axes:
        grid[axis.key] = list(dict.fromkeys([*grid.get(axis.key, []), *axis.values]))
    before = earlier.get("fixed")
    kept = fixed if before is None else {key: value for key, value in before.items() if key in fixed}
    return {"grid": grid, "fixed": dict(kept)}


def _as_text(value: Any) -> str:
    """A grid written in YAML: `0.1,0.01`, or a list of values."""
    if OmegaConf.is_list(value) or isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    return str(value)
