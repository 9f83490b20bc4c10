"""The jobs of a sweep folder by what they compute, and the trials of the study that wait for them.

A trial is a point. Usually it is one job; with replicates (`replicates.py`) a job for each of them. A job may belong to
several trials: a sampler may choose the same point twice, and a point that gets another seed keeps the jobs it has.
"""

import os
from dataclasses import dataclass, field

from flgo_hydra.record.paths import RunPaths, SweepPaths
from flgo_hydra.report.rows import Row
from flgo_hydra.study.changed_code import RunCode
from flgo_hydra.study.folders import RunFolders
from flgo_hydra.study.space.points import Point


@dataclass(eq=False)
class Job:
    """A point with every key, and its run folder's number."""

    number: int
    point: Point
    folder: str = ""
    """its run folder, from the sweep folder"""
    outcome: Row | None = None
    """all that is kept of what became of it; None: it has not ended, or was stopped"""
    code: RunCode | None = None
    """the user's own, where it has a result"""
    is_submitted: bool = False
    is_outdated: bool = False
    """its run folder's outcome does not count any more"""
    is_stopped: bool = False
    trials: list["PointTrial"] = field(default_factory=list)
    run: RunPaths | None = None
    """its run folder, once that has been asked for (`Trials.run`)"""

    @property
    def live_trial(self) -> int | None:
        """The trial that its curve is: of replicates none, since theirs is a mean."""
        trial = self.trials[0] if self.trials else None
        return None if trial is None or trial.is_replicated or trial.is_closed else trial.number

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.outcome is not None or self.is_stopped

    @property
    def has_failed(self) -> bool:
        return self.outcome is not None and self.outcome.status == "failed"

    def forget(self) -> None:
        """What became of it does not count: it is to run again."""
        self.outcome = self.code = None
        self.is_outdated = True


@dataclass(eq=False)
class PointTrial:
    """One attempt at a point."""

    overrides: tuple[str, ...]
    """without the replicate keys"""
    identity: str
    jobs: tuple[Job, ...]
    is_replicated: bool = False
    num_asked: int | None = None
    """how many of its jobs, the first, this call has asked for; None: all"""
    number: int | None = None
    """in the study, once it is there"""
    is_open: bool = False
    """whether the study has been told of it, or will be before anything else"""
    is_closed: bool = False

    def __post_init__(self) -> None:
        for job in self.jobs:
            job.trials.append(self)

    @property
    def asked(self) -> tuple[Job, ...]:
        """The jobs that this call has asked for."""
        return self.jobs[: self.num_asked]

    @property
    def is_settled(self) -> bool:
        return all(job.is_settled for job in self.jobs)

    @property
    def is_stopped(self) -> bool:
        """Whether it ended without all of its jobs."""
        return any(job.outcome is None for job in self.jobs)


class Jobs:
    """Gives every identity its job: the one it has, or a new one under the next free number."""

    def __init__(self, paths: SweepPaths, folders: RunFolders) -> None:
        self._paths = paths
        self._folders = folders
        self._known: dict[str, Job] = {}
        self._jobs: dict[str, Job] = {}
        self._next = 0

    def know(self, number: int, point: Point, folder: str) -> None:
        """Takes over a job of an earlier call."""
        self._known[point.identity] = Job(number, point, folder)
        self._folders.claim(folder, number, point.overrides)
        self._next = max(self._next, number + 1)

    def folders(self) -> set[str]:
        """Those of earlier calls' jobs."""
        return {job.folder for job in self._known.values()}

    def may_be(self, number: int, folder: str) -> bool:
        """Whether a job of this number may run in a folder: where folders are named by numbers, in its own alone."""
        return not self._folders.is_by_number or folder == str(number)

    def is_known(self, job: Job) -> bool:
        """Whether an earlier call had it."""
        return job.point.identity in self._known

    def knows(self, identity: str) -> bool:
        """Whether an earlier call had a job of this identity."""
        return identity in self._known

    def find(self, identity: str) -> Job | None:
        """The job of this identity, of this call or an earlier one."""
        return self._jobs.get(identity) or self._known.get(identity)

    def known_as(self, identity: str) -> Job | None:
        """An earlier call's job that this call has not asked for."""
        return None if identity in self._jobs else self._known.get(identity)

    def rename(self, identity: str, point: Point) -> None:
        """Takes an earlier call's job for this point's."""
        before = self._known.pop(identity)
        self._known[point.identity] = Job(before.number, point, before.folder)

    def others(self) -> list[Job]:
        """Those of earlier calls that this one does not ask for."""
        return [job for identity, job in self._known.items() if identity not in self._jobs]

    def of(self, point: Point) -> Job:
        if point.identity in self._jobs:
            return self._jobs[point.identity]
        known = self._known.get(point.identity)
        if known is not None:
            job = Job(known.number, point, known.folder)
        else:
            folder = self._new_folder(point)
            self._folders.claim(folder, self._next, point.overrides)
            job = Job(self._next, point, folder)
            self._next += 1
        self._jobs[point.identity] = job
        return job

    def _new_folder(self, point: Point) -> str:
        """The folder of the next free number. One may be left from a sweep that was killed before its trial was
        stored; where the number does not name it, it is this point's."""
        folder = self._folder(self._next, point)
        while os.path.lexists(self._paths.run(folder).folder):
            after = self._folder(self._next + 1, point)
            if after == folder:
                break
            self._next, folder = self._next + 1, after
        return folder

    def _folder(self, number: int, point: Point) -> str:
        return str(number) if point.is_refused else self._folders.of(number, point.overrides)

    def pin(self, job: Job) -> list[str]:
        """Overrides that make Hydra run a job in its folder, where its config would name another one now."""
        return self._folders.pin(job.number, job.point.overrides, job.folder)

    def everybody(self) -> list[Job]:
        """All jobs, of this call and of earlier ones."""
        return [*self.others(), *self._jobs.values()]

    def all(self) -> list[Job]:
        """Those that were asked for, by number."""
        return sorted(self._jobs.values(), key=lambda job: job.number)
