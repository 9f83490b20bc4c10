"""One call of the sweeper: launches what is not finished, fills the study, prints what came out."""

import contextlib
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from flgo_hydra import compose
from flgo_hydra.composer import Composer
from flgo_hydra.config.sweeper import SweeperConf
from flgo_hydra.launch.launcher import PackingLauncher
from flgo_hydra.launch.queue import Job as QueuedJob
from flgo_hydra.machine_errors import CannotWrite
from flgo_hydra.objective import Objective
from flgo_hydra.record import files
from flgo_hydra.record.paths import SweepPaths
from flgo_hydra.record.plain_text import shown
from flgo_hydra.record.result import forget_failure, read_failure
from flgo_hydra.record.secrets import masked
from flgo_hydra.report import curves
from flgo_hydra.report.point_rows import PointRow
from flgo_hydra.report.rows import Row
from flgo_hydra.report.summary import print_summary, resume_command
from flgo_hydra.streams import tell_error
from flgo_hydra.study.adoption import adopt
from flgo_hydra.study.changed_code import RunCode, sentence, several_versions
from flgo_hydra.study.data_sets import DataSets
from flgo_hydra.study.folders import RunFolders
from flgo_hydra.study.jobs import Job
from flgo_hydra.study.ownership import check_folder
from flgo_hydra.study.search import GridSource, SearchSettings, SearchSource, Source
from flgo_hydra.study.space.common import Common, check_same
from flgo_hydra.study.space.grid import Grid, Value, description, give_axes, read_choices
from flgo_hydra.study.space.kept_grid import KEEP_RECORD
from flgo_hydra.study.space.points import Point, PointChecker, tell_apart
from flgo_hydra.study.space.replicates import reason_of
from flgo_hydra.study.stored.behind import Behind
from flgo_hydra.study.tables import SweepTables
from flgo_hydra.study.trials import Trials

log = logging.getLogger(__name__)

_LOOK_S = 0.5
"""Between looks at a storage that is away, where nothing runs."""
_MOST_RECORDS_S = 10.0
"""How long a sweep that has ended waits for a disk that does not take its tables: they can be made again."""
_CHOOSING_S = 0.1
"""How long a search chooses points that it knows, before it looks at its jobs."""
_MOST_AHEAD = 64
"""Jobs submitted ahead of the slots: enough to put the longest first, few enough to keep in memory."""


@dataclass(frozen=True)
class Outcome:
    """What a Python program is told of a sweep."""

    rows: Callable[[], list[Row]]
    """of the jobs that have ended"""
    jobs: dict[tuple[str, ...], int]
    """job numbers by swept overrides, however a point was written"""
    folders: dict[int, Path]
    """run folders by job number"""
    paths: SweepPaths
    storage: str
    study_name: str
    monitor: Objective
    points: Callable[[], list[PointRow]] | None
    """what points with replicates have come to; None where jobs are none"""


@dataclass(frozen=True)
class Plan:
    """What a sweep is about."""

    space: Grid
    """without the replicate keys"""
    replicates: list[tuple[str, ...]]
    """what each job of a point adds to its overrides"""
    checked: list[Point]
    """what the jobs of a grid compute; of a search only the edges"""
    common: Common
    apart: frozenset[str] = frozenset()
    """keys that decide no numbers, and tell points apart all the same"""


class Sweep:
    """One call of the sweeper."""

    def __init__(
        self,
        config: DictConfig,
        settings: SweeperConf,
        launcher: Launcher,
        composer: Composer,
        plan: Plan,
        paths: SweepPaths,
    ) -> None:
        from flgo_hydra.study.pruning import Pruning
        from flgo_hydra.study.rebuild import take_over
        from flgo_hydra.study.stored.live import LiveCurves  # these import optuna
        from flgo_hydra.study.stored.storage import located
        from flgo_hydra.study.stored.study import SweepStudy

        self._config = config
        self._settings = settings = replace(settings, storage=located(settings.storage, paths.folder))
        self._launcher = launcher
        self._composer = composer
        self._paths = paths
        self._replicates = plan.replicates
        default_name = "_".join(paths.folder.parts[-2:])
        self._storage = self._settings.storage or str(paths.study)
        name = self._settings.study_name or default_name
        self._behind = Behind(f"The study {name!r} in {masked(self._storage)}")
        insist = self._behind.insist

        def open_study() -> SweepStudy:
            take_over(paths, self._settings.storage, name, composer)
            study = SweepStudy(self._settings.storage or paths.study, name)
            study.refuse_foreign()
            return study

        self._study = insist(open_study)
        self._monitor = plan.common.monitor
        self._records = Behind(f"{paths.results.name} or {paths.best.name} in {paths.folder}", _MOST_RECORDS_S)
        self._study.follow(self._monitor)
        earlier = insist(lambda: self._study.description)
        if self._settings.storage is not None:
            check_folder(earlier.get("folder"), paths, self._study.name)
            self._describe({"folder": str(paths.folder)})
        check_same(earlier.get("fixed", {}), plan.common.values, self._study.name, str(paths.folder))
        self._space = give_axes(plan.space, earlier.get("grid", {}))
        added = tuple(axis.lines[0] for axis in self._space.axes[: -len(plan.space.axes) or None])
        # Once a key tells points of a study apart, it always does.
        self._apart = plan.apart | set(earlier.get("apart", ()))
        points = [
            tell_apart(replace(point, overrides=(*added, *point.overrides)), self._apart) for point in plan.checked
        ]
        where = f"{self._study.name!r} in {paths.folder}"
        self._data_sets = DataSets(earlier, self._apart, where, self._describe)
        for point in points:
            self._data_sets.check(point)
        record = paths.folder / "multirun.yaml"
        if not (os.environ.get(KEEP_RECORD) and record.exists()):
            files.write_text(record, OmegaConf.to_yaml(self._config))
        self._describe(description(earlier, self._space, plan.common.values))
        self._data_sets.add(points)
        if self._apart:
            self._describe({"apart": sorted(self._apart)})
        if self._settings.sampler != "grid":
            self._describe({"sampler": self._settings.sampler})
        if self._settings.replicate_keys:
            self._describe({"replicates": [list(more) for more in plan.replicates]})
        setting = self._settings.pruner
        self._pruning = (
            None if setting is None else Pruning(setting, insist(self._study.finished_trials), self._monitor)
        )
        if self._pruning is not None and any(not point.group for point in points):
            raise ValueError("`hydra.sweeper.pruner` needs runs of flgo_hydra: jobs of other apps report no rounds.")
        self._live = LiveCurves(self._study, self._pruning, behind=self._behind)
        self._choices: dict[str, list[Value]] = {}
        run_folders = RunFolders(composer, config, paths, self._space.fixed)
        self._trials = insist(lambda: Trials(self._study, paths, run_folders, self._behind.tell))
        self._adopt()
        self._source = insist(lambda: self._open_source(points))
        self._held: Job | None = None
        self._numbers: dict[tuple[str, ...], int] = {}
        self._folders: dict[int, Path] = {}
        has_points = bool(self._settings.replicate_keys)
        self._tables = SweepTables(self._trials, self._source, paths, self._space.fixed, has_points)

    def _describe(self, attributes: Mapping[str, Any]) -> None:
        self._behind.tell(lambda: self._study.describe(attributes))

    def _adopt(self) -> None:
        """Takes over run folders that the study does not know."""
        checker = PointChecker(self._composer, self._config, ())
        checker.apart = set(self._apart)
        adopt(self._trials.jobs, self._paths, checker, self._config.hydra.output_subdir, self._space.fixed)

    def _open_source(self, points: Sequence[Point]) -> Source:
        settings = self._settings
        if settings.sampler == "grid":
            num_keys = len(settings.replicate_keys)
            by_point: dict[tuple[str, ...], list[Point]] = {}
            for point in points:
                by_point.setdefault(point.overrides[: len(point.overrides) - num_keys], []).append(point)
            self._choices = read_choices(list(by_point), self._composer.group_options)
            self._study.declare(self._choices)
            return GridSource(self._trials, list(by_point.items()), bool(settings.replicate_keys), self._is_again)
        from flgo_hydra.study.samplers import chosen_at_random

        keys = chosen_at_random(settings.sampler, self._space)
        if keys:
            log.warning("%s knows numbers only: %s is chosen at random.", settings.sampler, ", ".join(keys))
        assert settings.n_trials is not None
        search = SearchSettings(settings.sampler, settings.sampler_seed or 0, settings.n_trials)
        checker = PointChecker(self._composer, self._config, self._space.fixed)
        checker.apart = set(self._apart)
        checker.take_in = self._data_sets.add
        return SearchSource(search, self._trials, self._space, self._replicates, checker, self._is_again)

    def _is_again(self, job: Job) -> bool:
        """Whether a job that has ended is to run again: it failed, its code has changed, or with this pruner it might
        go on."""
        assert job.outcome is not None
        if job.has_failed:
            failure = read_failure(self._trials.run(job))
            return self._settings.retry_failed or (failure is not None and failure.is_of_machine)
        if self._settings.rerun_changed and job.code is not None and self._trials.code.of(job.code):
            return True
        reason = None if self._pruning is None else self._pruning.reason
        return job.outcome.status == "pruned" and job.outcome.message != reason

    def outcome(self) -> Outcome:
        """What has come out so far; it grows while the sweep runs."""
        for job in sorted({job for trial in self._source.trials for job in trial.asked}, key=lambda job: job.number):
            self._note(job)
        return Outcome(
            self._tables.rows,
            self._numbers,
            self._folders,
            self._paths,
            self._storage,
            self._study.name,
            self._monitor,
            self._tables.point_rows if self._settings.replicate_keys else None,
        )

    def _note(self, job: Job) -> None:
        for written in job.point.written or [job.point.overrides]:
            self._numbers[written] = job.number
        self._folders[job.number] = self._trials.run(job).folder

    def close(self) -> None:
        self._study.close()

    def run(self) -> None:
        is_interrupted = False
        self._take_over()
        other_code = self._tell_other_code()
        num_untried = sum(row.status == "failed" for row in self._tables.rows())
        try:
            if isinstance(self._launcher, PackingLauncher):
                # While the workers import torch, this process has nothing to do but what it needs at the end.
                threading.Thread(target=_prepare_end, args=(bool(self._settings.replicate_keys),), daemon=True).start()
                self._roll(self._launcher)
            else:
                while not self._behind.is_lost and (batch := self._next_batch()):
                    self._launch(batch)
        except KeyboardInterrupt:
            is_interrupted = True
        if is_interrupted or self._behind.is_lost:
            for trial in self._source.trials:
                self._trials.interrupt(trial)
        is_written = self._finish_writing()
        rows, num_left = self._tables.rows(), self._source.num_left
        refused: CannotWrite | None = None
        try:
            best = print_summary(
                rows,
                self._paths,
                self._storage,
                self._study.name,
                num_left,
                self._settings.curve,
                num_untried,
                compose.is_ours(self._config),
                self._tables.point_rows() if self._settings.replicate_keys else None,
                self._trials.count_outgrown(self._source.trials),
            )
        except CannotWrite as error:  # all the rest has been told
            best, refused = None, error
        other_code = other_code or several_versions(self._codes())
        if other_code:
            print(other_code, flush=True)
        if not is_written:
            self._tell_unwritten()
        if is_interrupted:
            raise KeyboardInterrupt
        if not is_written:
            raise SystemExit(1)
        if refused is not None:
            raise refused
        if best is None or num_left or any(job.has_failed for job in self._trials.jobs.all()):
            raise SystemExit(1)

    def _finish_writing(self) -> bool:
        """Writes tables and study to their end, as far as their disks and servers let it; returns whether all is."""
        while True:
            with self._records.trying() as done:
                self._tables.write()
                done.append(True)
            if done or self._records.is_lost:
                break
            time.sleep(self._records.wait_s() or 0.0)
        if self._behind.flush() and self._behind.reason:
            self._behind.tell(self._study.interrupt_strays)
            self._behind.flush()
        return bool(done) and not self._behind.num_waiting

    def _tell_unwritten(self) -> None:
        """What is missing where, and how to go on."""
        for behind in (self._records, self._behind):
            if behind.is_away:
                tell_error(f"{behind.what} could not be written: {behind.reason}")
        command = resume_command(self._paths.folder, compose.is_ours(self._config))
        print(
            f"What has run is in the run folders. To go on, and to make up for what is missing: {command}",
            file=sys.stderr,
        )

    def _take_over(self) -> None:
        """Takes over what earlier calls have finished; a point whose jobs have all ended gets its trial."""
        for trial in self._source.trials:
            if trial.is_settled and not trial.is_closed:
                if self._trials.is_over(trial):
                    trial.is_closed = True
                else:
                    self._trials.open(trial, self._choices)
                    self._trials.close(trial)
        for job in self._trials.jobs.others():  # points of earlier commands: the tables show them as well
            if not self._trials.harvest(job):
                self._trials.take_failure(job)

    def _codes(self) -> dict[int, RunCode]:
        """Of all jobs whose result says of what code it is, by number."""
        return {job.number: job.code for job in self._trials.jobs.everybody() if job.code is not None}

    def _tell_other_code(self) -> str:
        """Says which runs that count are of other code than there is now; empty where none is."""
        changed = {number: files for number, code in self._codes().items() if (files := self._trials.code.of(code))}
        if not changed:
            return ""
        more = "hydra.sweeper.rerun_changed=true"
        told = sentence(changed, resume_command(self._paths.folder, compose.is_ours(self._config), more))
        log.warning("%s", told)
        return told

    def _next_batch(self) -> list[Job]:
        """Jobs to launch at once: of consecutive numbers, since Hydra numbers a batch from its first."""
        if self._settings.batch_size is not None:
            size = self._settings.batch_size
        elif type(self._launcher).__name__ == "BasicLauncher":
            size = 1
        else:
            size = len(os.sched_getaffinity(0)) if self._source.is_patient else self._source.num_to_come + 1
        batch = [self._held] if self._held is not None else []
        self._held = None
        while len(batch) < size:
            job = self._next_patiently()
            if job is None:
                break
            if batch and job.number != batch[-1].number + 1:
                self._held = job
                break
            batch.append(job)
        return batch

    def _next_patiently(self) -> Job | None:
        """The next job; a storage that is away is waited for, until it is lost."""
        while not self._behind.is_lost:
            try:
                return self._source.next()
            except Exception as error:
                if not self._behind.hear(error):
                    raise
            time.sleep(self._behind.wait_s() or 0.0)
        return None

    def _next_at_once(self, launcher: PackingLauncher) -> Job | None:
        """The next job; None also where a storage that is away must say which it is."""
        if not self._behind.may_try and self._source.is_patient:
            return None
        try:
            until_s = time.monotonic() + _CHOOSING_S  # then what has happened meanwhile is heard
            return self._source.next(lambda: launcher.is_interrupted or time.monotonic() > until_s)
        except Exception as error:
            if not self._behind.hear(error):
                raise
            return None

    def _write_tables(self) -> None:
        """Now and then; a disk that is full has room again, maybe, the next time."""
        if self._tables.has_news and self._records.may_try:
            with self._records.trying():
                self._tables.write_now_and_then()

    def _roll(self, launcher: PackingLauncher) -> None:
        """Runs jobs under our own launcher: a free slot gets the next one at once."""
        source = self._source
        by_number: dict[int, Job] = {}
        by_trial: dict[int, QueuedJob] = {}
        is_over = False
        with launcher.watching(source.num_to_come) as queue:
            while True:
                is_over = is_over or queue.stop_level > 0
                has_room = queue.has_free_slot if source.is_patient else len(queue.waiting) < _MOST_AHEAD
                job = self._next_at_once(launcher) if has_room and not is_over else None
                is_over = is_over or (has_room and job is None and source.is_over and not self._behind.is_away)
                is_choosing = has_room and job is None and not is_over and not self._behind.is_away
                if self._behind.is_lost and not queue.stop_level:
                    log.error("%s stays away: the jobs are stopped at their next round boundary.", self._behind.what)
                    queue.stop()
                    is_over = True
                if job is not None:
                    if not self._announce(job):
                        continue
                    by_number[job.number] = job
                    name = " ".join(job.point.overrides)
                    launcher.submit(self._overrides_of(job), job.number, name=name)
                elif is_over and queue.is_idle:
                    break
                else:  # slots first
                    self._write_tables()
                queue.expect_more(job is not None and not source.is_patient)
                self._behind.write()
                waits = [wait for wait in (self._live.wait_s(), self._behind.wait_s()) if wait is not None]
                if job is None and queue.is_idle and waits and not is_choosing:
                    time.sleep(min(*waits, _LOOK_S))  # nothing runs that could tell of anything
                # With jobs still to submit, only look at what has happened meanwhile.
                is_in_a_hurry = job is not None or is_choosing
                event = launcher.next_event(timeout_s=0.0 if is_in_a_hurry else min(waits, default=None))
                for pruned in self._live.write():
                    self._prune(launcher, by_trial[pruned])
                if event is None:
                    continue
                job = by_number[event.job.num]
                if event.kind == "started":
                    self._open_trials(job)
                trial = job.live_trial
                if event.kind in ("started", "report") and trial is not None:
                    is_known = trial in by_trial
                    by_trial[trial] = event.job
                    if self._pruning is not None and not is_known:  # a storage that was away has its number by now
                        self._pruning.start(trial, job.point.group, job.point.num_rounds)
                    elif self._pruning is not None and event.kind == "started" and self._pruning.is_pruned(trial):
                        self._prune(launcher, event.job)  # its process died before it could heed
                if event.kind == "report" and trial is not None:
                    self._live.hear(trial, event.values, functools.partial(self._trials.read_rounds, job))
                elif event.kind == "ended":
                    del by_number[job.number]  # its row is all that stays
                    if trial is not None:
                        by_trial.pop(trial, None)
                    arrived = launcher.arrived(event.job)
                    is_stopped = event.job.state in ("stopped", "cancelled")
                    self._settle(job, arrived.status, arrived.value, is_stopped)
            is_stopped = queue.stop_level > 0 or launcher.is_interrupted
        if is_stopped and not self._behind.is_lost:
            raise KeyboardInterrupt

    def _overrides_of(self, job: Job) -> list[str]:
        return [*self._space.fixed, *job.point.overrides, *self._trials.jobs.pin(job)]

    def _open_trials(self, job: Job) -> None:
        for trial in job.trials:
            self._trials.open(trial, self._choices)

    def _prune(self, launcher: PackingLauncher, job: QueuedJob) -> None:
        assert self._pruning is not None
        launcher.prune(job, self._pruning.reason)

    def _launch(self, batch: list[Job]) -> None:
        """Runs a batch under anybody else's launcher."""
        batch = [job for job in batch if self._announce(job)]
        if not batch:
            return
        for job in batch:
            self._open_trials(job)
        overrides = [self._overrides_of(job) for job in batch]
        try:
            returns = self._launcher.launch(overrides, initial_job_idx=batch[0].number)
        except Exception as error:  # a launcher that dies with a job (joblib's does): the others' results are kept
            for job in batch:
                if not self._trials.harvest(job):
                    self._trials.fail(job, error)
                self._end(job)
            return
        for job, returned in zip(batch, returns, strict=True):
            self._settle(job, returned.status, returned._return_value)
        self._write_tables()

    def _announce(self, job: Job) -> bool:
        """A job will run: what an earlier sweep says of it does not count any more.

        Returns:
            whether its folder lets it; else it has failed.
        """
        self._note(job)
        run = self._trials.run(job)
        try:
            forget_failure(run)
            if job.is_outdated:
                run.result.unlink(missing_ok=True)
            self._trials.set_foreign_aside(job)
        except OSError as error:
            self._trials.fail(job, error)
            self._end(job)
            return False
        return True

    def _settle(self, job: Job, status: JobStatus, value: Any, is_stopped: bool = False) -> None:
        """A job has ended: with a result, without one, or (not one of ours) with the value it returned.

        Args:
            value: what it returned, or the exception that it failed with.
        """
        if not self._trials.harvest(job):
            if job.is_outdated and os.path.exists(self._trials.run(job).result):
                with contextlib.suppress(OSError):  # then it is found, and refused, again
                    self._trials.run(job).result.unlink()
                changed = "its data changed while the sweep ran: it trained on others than the study has"
                self._trials.fail(job, ValueError(changed))
            elif is_stopped:
                job.is_stopped = True
            elif job.point.group and status is JobStatus.COMPLETED:
                # One of ours says what it came to in its folder; what it returns has no direction.
                folder = self._trials.run(job).folder
                self._trials.fail(job, RuntimeError(f"the job ended well, but {folder} has no result.json of it."))
            elif status is JobStatus.COMPLETED:
                try:
                    self._trials.note(job, float(value))
                except (TypeError, ValueError):
                    wanted = "A job must return the number to be minimised"
                    self._trials.fail(job, TypeError(f"{wanted}, but this one returned {shown(value)}."))
            else:
                self._trials.fail(job, value if isinstance(value, BaseException) else RuntimeError(shown(value)))
        self._end(job)

    def _end(self, job: Job) -> None:
        if job.outcome is not None:
            self._open_trials(job)  # one that was refused has never started
        if (trial := job.live_trial) is not None:
            self._live.end(trial)
            if self._pruning is not None:
                ended = job.outcome
                value = None if ended is None or reason_of(ended) is not None else ended.value
                self._pruning.finish(trial, value, ended is not None and ended.status == "pruned")
        self._trials.settle(job)
        self._tables.has_news = True


def _prepare_end(has_replicates: bool) -> None:
    """Imports what the end of a sweep needs."""
    curves.prepare()
    if has_replicates:
        import scipy.special  # noqa: F401  # of the intervals of means
