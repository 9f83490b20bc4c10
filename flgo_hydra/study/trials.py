"""Keeps a study in step with the run folders: which trial waits for which jobs, and what it is closed with."""

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flgo_hydra.machine_errors import refused_by_storage
from flgo_hydra.overrides import texts_of
from flgo_hydra.record.files import set_aside
from flgo_hydra.record.paths import RunPaths, SweepPaths
from flgo_hydra.record.plain_text import message_of
from flgo_hydra.record.result import (
    Failure,
    RunResult,
    defect_of,
    read_failure,
    read_result,
    read_rounds,
    write_failure,
)
from flgo_hydra.report.rows import RETURNED, Row
from flgo_hydra.study.changed_code import ChangedCode
from flgo_hydra.study.folders import RunFolders
from flgo_hydra.study.jobs import Job, Jobs, PointTrial
from flgo_hydra.study.space.grid import Value, parse_point
from flgo_hydra.study.space.points import Point
from flgo_hydra.study.space.replicates import identity_of, mean_curve, reason_of

if TYPE_CHECKING:  # imports optuna
    from flgo_hydra.study.stored.study import StoredTrial, SweepStudy

_log = logging.getLogger(__name__)


@dataclass
class _Earlier:
    """What earlier calls have of a point with replicates."""

    overrides: tuple[str, ...]
    keys: set[str]
    """of its replicates"""
    identities: dict[str, None] = field(default_factory=dict)
    """of its jobs"""
    trials: dict[int, int] = field(default_factory=dict)
    """how many jobs those have that have a value, by number"""


def _key(overrides: Sequence[str]) -> frozenset[tuple[str, Value]]:
    """A point, however it is written."""
    return frozenset(parse_point(overrides).items())


class Trials:
    """The trials of one call of the sweeper."""

    def __init__(
        self,
        study: "SweepStudy",
        paths: SweepPaths,
        folders: RunFolders,
        tell: Callable[[Callable[[], None]], None] = lambda write: write(),
    ) -> None:
        """Takes over what earlier calls have left in the study; their RUNNING trials are closed.

        Args:
            tell: writes to the study, or keeps it for later (`Behind.tell`).
        """
        self.study = study
        self.tell = tell
        self.jobs = Jobs(paths, folders)
        self.code = ChangedCode()
        self._paths = paths
        self._attempts: Counter[str] = Counter()
        self._damaged: set[Path] = set()
        """run folders whose records are not to be believed, told once"""
        self._earlier: dict[frozenset[tuple[str, Value]], _Earlier] = {}
        self.stored: list[StoredTrial] = study.stored_trials()
        for stored in self.stored:
            for job in stored.jobs:
                point = Point(job.overrides, job.identity, fingerprint=job.fingerprint)
                self.jobs.know(job.number, point, job.folder)
                if stored.is_replicated:
                    keys = texts_of(job.overrides).keys() - texts_of(stored.overrides).keys()
                    earlier = self._earlier.setdefault(_key(stored.overrides), _Earlier(stored.overrides, keys))
                    earlier.identities[job.identity] = None
                    if stored.status == "completed":
                        earlier.trials[stored.number] = len(stored.jobs)
            self._attempts[stored.identity] += 1
            if stored.is_running:
                self._close_stale(stored)
        if any(stored.is_running for stored in self.stored):
            self.stored = study.stored_trials()
        self._over = {stored.identity for stored in self.stored if stored.is_over}
        self._failed = self._over - {one.identity for one in self.stored if one.is_over and one.status != "failed"}
        self._ended = {job.identity for stored in self.stored if stored.is_over for job in stored.jobs}
        self._values = {
            job.identity: job.value for stored in self.stored for job in stored.jobs if job.value is not None
        }

    def make(self, overrides: tuple[str, ...], points: Sequence[Point], is_replicated: bool = False) -> PointTrial:
        """A trial of a point.

        Args:
            overrides: the point's, without replicate keys.
            points: what its jobs compute. Replicates that earlier calls have of it count as well.
        """
        jobs = [self._job_of(point) for point in points]
        if not is_replicated:
            return PointTrial(overrides, points[0].identity, tuple(jobs))
        keys = texts_of(points[0].overrides).keys() - texts_of(overrides).keys()
        asked = {job.point.identity for job in jobs}
        earlier = self._earlier.get(_key(overrides))
        # A key that is swept from now on had one value before: the same jobs are the same point.
        same = [one for one in self._earlier.values() if one.keys == keys and not asked.isdisjoint(one.identities)]
        more = {job: None for one in [*filter(None, [earlier]), *same] for job in self._known(one)}
        jobs += [self.jobs.of(job.point) for job in more if job.point.identity not in asked and self._has_ended(job)]
        return PointTrial(overrides, identity_of([job.point.identity for job in jobs]), tuple(jobs), True, len(points))

    def _known(self, earlier: _Earlier) -> list[Job]:
        """The jobs of a point that earlier calls had."""
        return [job for identity in earlier.identities if (job := self.jobs.find(identity)) is not None]

    def _has_ended(self, job: Job) -> bool:
        return job.outcome is not None or (not job.is_outdated and (self.harvest(job) or self.take_failure(job)))

    def other_points(self, trials: Sequence[PointTrial]) -> list[tuple[tuple[str, ...], list[Job]]]:
        """Points with replicates that only earlier calls have, with those jobs of theirs that have ended.

        Args:
            trials: of this call.
        """
        here, taken = {_key(trial.overrides) for trial in trials}, {job for trial in trials for job in trial.jobs}
        others = [one for key, one in self._earlier.items() if key not in here]
        points = [
            (one.overrides, [job for job in self._known(one) if job.outcome is not None and job not in taken])
            for one in others
        ]
        return [(overrides, jobs) for overrides, jobs in points if jobs]

    def count_outgrown(self, trials: Sequence[PointTrial]) -> int:
        """How many trials with a value are of points that have another one, of more replicates, by now.

        Args:
            trials: of this call.
        """
        now = {_key(trial.overrides): len(trial.jobs) for trial in trials if trial.is_closed and not trial.is_stopped}
        num = 0
        for key, earlier in self._earlier.items():
            most = max([now.get(key, 0), *earlier.trials.values()])
            num += sum(of_jobs < most for of_jobs in earlier.trials.values())
        return num

    def _job_of(self, point: Point) -> Job:
        """The point's job. A key that is swept from now on had one value before: its run is this one's, if it is."""
        before = self.jobs.known_as(point.run_fingerprint)
        if before is not None and point.identity != point.run_fingerprint and not self.jobs.knows(point.identity):
            result = read_result(self.run(before))
            is_same_data = result is not None and result.data_sha256 in ("", point.data_sha256)
            if (
                result is not None
                and is_same_data
                and all(value == _how(result, key) for key, value in point.how.items())
            ):
                self.jobs.rename(point.run_fingerprint, point)
        return self.jobs.of(point)

    def open(self, trial: PointTrial, choices: Mapping[str, Sequence[Value]]) -> None:
        """Puts a trial into the study, unless it is there."""
        if trial.is_open or trial.number is not None:
            return
        trial.is_open = True
        point, attributes = parse_point(trial.overrides), self.attributes(trial)
        kinds = {key: choices[key] for key in point}
        is_first = True

        def start() -> None:
            nonlocal is_first
            known = None if is_first else self.study.find_started(attributes)  # an answer may have been lost
            is_first = False
            trial.number = self.study.start(point, kinds, attributes) if known is None else known

        self.tell(start)

    def attributes(self, trial: PointTrial) -> dict[str, object]:
        """What the study is told of a trial when it begins."""
        self._attempts[trial.identity] += 1
        attributes: dict[str, object] = {
            "identity": trial.identity,
            "job": trial.jobs[0].number,
            "overrides": list(trial.overrides),
            "attempt": self._attempts[trial.identity],
        }
        if trial.is_replicated:
            attributes["jobs"] = [job.number for job in trial.jobs]
            attributes["identities"] = [job.point.identity for job in trial.jobs]
            attributes["job_overrides"] = [list(job.point.overrides) for job in trial.jobs]
            if any(job.folder != str(job.number) for job in trial.jobs):
                attributes["folders"] = [job.folder for job in trial.jobs]
            if any(job.point.fingerprint for job in trial.jobs):
                attributes["fingerprints"] = [job.point.run_fingerprint for job in trial.jobs]
        else:
            attributes["group"] = trial.jobs[0].point.group
            if trial.jobs[0].folder != str(trial.jobs[0].number):
                attributes["folder"] = trial.jobs[0].folder
            if trial.jobs[0].point.fingerprint:
                attributes["fingerprint"] = trial.jobs[0].point.fingerprint
        return attributes

    def harvest(self, job: Job) -> bool:
        """Takes over a job's result, if its folder has one."""
        run = self.run(job)
        result = read_result(run)
        if result is None and run.folder not in self._damaged and (defect := defect_of(run)) is not None:
            self._damaged.add(run.folder)
            _log.warning("Job %d: %s: %s. It is run again.", job.number, run.folder, defect)
        if result is not None and result.fingerprint == job.point.run_fingerprint:
            if job.point.data_sha256 and result.data_sha256 not in ("", job.point.data_sha256):
                job.is_outdated = True
                return False
            self.note(job, result)
        elif self._has_value(job) and os.path.exists(run.folder) and not os.path.exists(run.rounds):
            self.note(job, self._values[job.point.identity])  # another app's value only the study knows
        return job.outcome is not None

    def note(self, job: Job, ended: RunResult | Failure | float) -> None:
        """A job has ended: with a result, a failure, or (not one of ours) with a number. Its row is all that stays."""
        about = job.number, job.point.overrides, self.run(job)
        if isinstance(ended, RunResult):
            job.outcome, job.code = Row.of_result(*about, ended), self.code.take(ended)
        elif isinstance(ended, Failure):
            job.outcome = Row.of_failure(*about, ended)
        else:
            job.outcome = Row.of_value(*about, ended)

    def _has_value(self, job: Job) -> bool:
        """Whether the study has its value, and nobody else: ours, which have a group, say theirs in their folders."""
        return job.point.identity in self._values and not job.point.group

    def set_foreign_aside(self, job: Job) -> None:
        """Renames the result of another config that lies in a job's folder: somebody has put it there."""
        run = self.run(job)
        result = read_result(run)
        if result is None or result.fingerprint == job.point.run_fingerprint:
            return
        for path in (run.result, run.rounds, run.best_model):
            if os.path.lexists(path):
                set_aside(path)
        _log.warning(
            "Job %d: %s has the result of another config, which is kept as %s.damaged. The job is run again.",
            *(job.number, run.folder, run.result.name),
        )

    def take_failure(self, job: Job) -> bool:
        """Takes over that the job failed in an earlier call, if its folder says so."""
        failure = read_failure(self.run(job)) if self.jobs.is_known(job) else None
        if failure is not None:
            self.note(job, failure)
        return failure is not None

    def tell_lost(self, job: Job) -> None:
        """Says that a job which has ended, as the study knows, is to run again, since its folder does not say so."""
        run = self.run(job)
        if job.point.identity in self._ended and not job.is_outdated and run.folder not in self._damaged:
            lost = "has no result of it any more" if os.path.exists(run.folder) else "is gone"
            _log.warning(
                "Job %d (%s): %s %s. It is run again.", job.number, " ".join(job.point.overrides), run.folder, lost
            )

    def is_over(self, trial: PointTrial) -> bool:
        """Whether the study has the outcome of all of its jobs already.

        That they failed is none where their results have come to light since, in a folder that was away.
        """
        outcomes = [job.outcome for job in trial.jobs if job.outcome is not None]
        if trial.identity in self._failed and not any(outcome.status == "failed" for outcome in outcomes):
            return False
        return trial.identity in self._over

    def fail(self, job: Job, error: BaseException) -> None:
        """A job has no result; what its worker wrote of the reason counts more than `error`."""
        run = self.run(job)
        failure = read_failure(run)
        if failure is None:
            error = refused_by_storage(error) or error
            failure = Failure(type(error).__name__, message_of(error))
            with contextlib.suppress(OSError):  # its folder may be what failed, and then there is nothing to write to
                run.folder.mkdir(parents=True, exist_ok=True)
                write_failure(run, failure)
        self.note(job, failure)

    def settle(self, job: Job) -> None:
        """Closes the trials that have waited for this job last."""
        for trial in job.trials:
            if (trial.is_open or trial.number is not None) and not trial.is_closed and trial.is_settled:
                self.close(trial)

    def interrupt(self, trial: PointTrial) -> None:
        """Closes a trial whose jobs will not all end now, if it is open."""
        if (trial.is_open or trial.number is not None) and not trial.is_closed:
            trial.is_closed = True
            self.tell(lambda: self._interrupt(trial))

    def close(self, trial: PointTrial) -> None:
        assert (trial.is_open or trial.number is not None) and trial.is_settled
        trial.is_closed = True
        self.tell(lambda: self._close(trial))

    def _interrupt(self, trial: PointTrial) -> None:
        assert trial.number is not None  # it was told of before
        self.study.interrupt(trial.number)

    def _close(self, trial: PointTrial) -> None:
        assert trial.number is not None  # it was told of before
        if trial.is_stopped:
            self.study.interrupt(trial.number)
        elif trial.is_replicated:
            self._close_replicates(trial.number, trial.jobs)
        else:
            outcome = trial.jobs[0].outcome
            assert outcome is not None
            if outcome.monitor == RETURNED:
                self.study.finish_value(trial.number, outcome.value)
            elif outcome.status == "failed":
                self.study.fail(trial.number, outcome.message, self.read_rounds(trial.jobs[0]))
            else:
                self.study.finish(trial.number, outcome, self.read_rounds(trial.jobs[0]))

    def read_rounds(self, job: Job) -> list[dict[str, float]]:
        """What a job has recorded so far."""
        return read_rounds(self.run(job))

    def run(self, job: Job) -> RunPaths:
        """Its run folder: one path, which its row has too."""
        job.run = job.run or self._paths.run(job.folder)
        return job.run

    def _close_replicates(self, number: int, jobs: Sequence[Job]) -> None:
        outcomes = [job.outcome for job in jobs if job.outcome is not None]
        reasons = {i: reason for i, outcome in enumerate(outcomes) if (reason := reason_of(outcome)) is not None}
        if reasons:
            is_diverged = not any(outcome.status == "failed" for outcome in outcomes)
            told = [f"job {jobs[i].number} ({' '.join(jobs[i].point.overrides)}) {why}" for i, why in reasons.items()]
            values = [None if i in reasons else outcome.value for i, outcome in enumerate(outcomes)]
            self.study.fail(number, "; ".join(told), (), "diverged" if is_diverged else "failed", values)
            return
        curve = mean_curve([self.read_rounds(job) for job in jobs], outcomes[0].monitor.metric)
        self.study.finish_mean(number, outcomes, curve)

    def _close_stale(self, stored: "StoredTrial") -> None:
        """A trial left RUNNING by a sweep that was killed: its run may have ended well all the same."""
        if len(stored.jobs) == 1:
            run = self._paths.run(stored.jobs[0].folder)
            result, failure = read_result(run), read_failure(run)
            if result is not None and result.fingerprint == (stored.jobs[0].fingerprint or stored.identity):
                row = Row.of_result(stored.jobs[0].number, stored.overrides, run, result)
                return self.study.finish(stored.number, row, read_rounds(run))
            if result is None and failure is not None:
                return self.study.fail(stored.number, f"{failure.kind}: {failure.message}", read_rounds(run))
        self.study.interrupt(stored.number)


def _how(result: RunResult, key: str) -> object:
    """What a result says of a key that decides no numbers (`compose.not_deciding`)."""
    head, _, rest = key.partition(".")
    if not rest:
        return result.option.get(key)
    part = result.task if head == "task" else result.option.get(head)
    return part.get(rest) if isinstance(part, dict) else None
