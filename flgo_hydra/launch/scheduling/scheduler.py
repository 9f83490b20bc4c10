"""The scheduler's one question: on which device does a waiting job start now, or does it wait?

A scheduler decides from values alone: what waits, what runs, what the devices look like, what time it is. It starts
nothing, reads no file and asks no driver, so that a table of values tests it and a virtual clock can run it
(`scripts/benchmarks/simulator.py`). The parent of a sweep calls `choose` whenever a job has started, reported or ended,
and again after `wait_s` seconds where the clock alone, or somebody else's process, may change the answer.

Your own rule is a class with `choose`, named by `hydra.launcher.scheduler._target_`; its other keys are the
constructor's arguments. For example, one that keeps a share of each GPU free for colleagues:

    from flgo_hydra.launch.scheduling.scheduler import Placement, Scheduler, has_slot, started

    class PoliteScheduler(Scheduler):
        def __init__(self, keep_free=0.5):
            self.keep_free = keep_free

        def choose(self, waiting, running, devices, now_s):
            placements, running = [], list(running)
            for request in waiting:
                for device in devices:
                    wanted = request.memory_mib or 1000
                    used = sum(job.reserved_mib or 0 for job in running if job.device == device.id)
                    fits = used + wanted <= (1 - self.keep_free) * (device.total_mib or 0)
                    if fits and has_slot(device, running, request):
                        placements.append(Placement(request.job, device.id, reserved_mib=wanted))
                        running.append(started(request, placements[-1], now_s))
                        break
            return placements
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flgo_hydra.config.laws import hold

CPU = "cpu"
# A device with this share of its memory to offer is as empty as it gets: drivers keep a little for themselves.
EMPTY_SHARE = 0.9


@dataclass(frozen=True)
class Device:
    """A GPU, or the host's CPU slots together, as it is now. None is unknown, never 0."""

    # the GPU's (or MIG instance's) UUID, or "cpu"
    id: str
    # its memory; host memory under the cgroup's limit for "cpu"
    total_mib: int | None
    # what an allocation could get now
    free_mib: int | None
    # most jobs at once; None: as many as fit
    slots: int | None = None
    # what is neither free nor ours: other people's processes and the driver's own reserve
    foreign_mib: int | None = None


@dataclass(frozen=True)
class RunningJob:
    """A job that has started and not ended."""

    job: int
    device: str
    signature: str
    # its peak so far, by its own report; None before the first report
    memory_mib: int | None
    # what was booked when it started (`Placement.reserved_mib`)
    reserved_mib: int | None
    # when it started, on the clock of `now_s`
    started_s: float
    # its expected peak, user-set or learned; may become known while it runs, from its own first round
    expected_mib: int | None = None
    # as in its Request: nothing may join it on its device
    alone: bool = False


@dataclass(frozen=True)
class Request:
    """A job that waits for a device. Jobs with the same signature are expected to need the same memory."""

    job: int
    signature: str
    # expected peak, without a margin: user-set, learned, or raised after it ran out of memory; None: unknown
    memory_mib: int | None = None
    duration_s: float | None = None
    # start only on a device without other jobs of ours, as after a second out of memory
    alone: bool = False
    # the user gave `memory_mib`: only then it can be more than any device has, and the job impossible
    is_given: bool = False


@dataclass(frozen=True)
class Placement:
    """Start this job on this device now."""

    job: int
    device: str
    # MiB booked until it ends; None: nothing is booked
    reserved_mib: int | None = None


class Scheduler(ABC):
    """Chooses devices for waiting jobs. May keep state, which only `choose` changes."""

    @abstractmethod
    def choose(
        self, waiting: Sequence[Request], running: Sequence[RunningJob], devices: Sequence[Device], now_s: float
    ) -> list[Placement]:
        """Returns the jobs to start now, each at most once; an empty list means that all of them wait.

        Args:
            waiting: in the order of the queue.
            running: all running jobs, also those whose device is no longer listed.
            devices: those that answer at this moment; a device that vanished is not among them.
            now_s: any monotonic clock, the same as in `RunningJob.started_s`.
        """

    def wait_s(
        self, waiting: Sequence[Request], running: Sequence[RunningJob], devices: Sequence[Device], now_s: float
    ) -> float | None:
        """Returns the seconds after which `choose` may answer differently although no job of ours has changed.

        None: only a job's start, report or end can change the answer. Called after `choose`, with what it started
        moved from `waiting` to `running`.
        """
        return None

    def impossible(self, request: Request, devices: Sequence[Device]) -> str | None:
        """Returns why the job can never start on these devices, or None. Asked of a figure that the user gave.

        Any other is evidence, not law: what was seen of its like, or a guess, raised because it ran out of memory
        (see `capped`).
        """
        totals = [device.total_mib for device in devices if device.total_mib is not None]
        if request.alone or request.memory_mib is None or len(totals) < len(devices) or not totals:
            return None
        if request.memory_mib <= max(totals):
            return None
        where = "this host" if all(device.id == CPU for device in devices) else "the largest GPU"
        return (
            f"Job {request.job} needs {request.memory_mib} MiB, says `hydra.launcher.job_memory_mib`, but {where} has "
            f"{max(totals)} MiB. Lower it, or leave it out: then it is measured."
        )


def jobs_on(device: Device, running: Sequence[RunningJob]) -> list[RunningJob]:
    """Returns our jobs on this device."""
    return [job for job in running if job.device == device.id]


def has_slot(
    device: Device, running: Sequence[RunningJob], request: Request, max_jobs_per_device: int | None = None
) -> bool:
    """Whether the device may take one more job, memory aside.

    `max_jobs_per_device` counts for GPUs; CPU slots are counted by `Device.slots` alone.
    """
    here = jobs_on(device, running)
    if any(job.alone for job in here) or (request.alone and here):
        return False
    limits = [device.slots, None if device.id == CPU else max_jobs_per_device]
    return all(limit is None or len(here) < limit for limit in limits)


def capped(request: Request, devices: Sequence[Device]) -> Request:
    """Returns the request, or where it asks for more than the largest device has, that device for it alone.

    A job that never could run was refused before its first start (`Scheduler.impossible`); this one ran out of memory,
    and is told so rather than left to wait for ever.
    """
    totals = [device.total_mib for device in devices if device.total_mib is not None]
    if request.memory_mib is None or len(totals) < len(devices) or request.memory_mib <= max(totals, default=0):
        return request
    return replace(request, memory_mib=max(totals), alone=True) if totals else request


def started(request: Request, placement: Placement, now_s: float) -> RunningJob:
    """Returns the running job that a placement makes of a request, before its first report."""
    return RunningJob(
        job=request.job,
        device=placement.device,
        signature=request.signature,
        memory_mib=None,
        reserved_mib=placement.reserved_mib,
        started_s=now_s,
        expected_mib=request.memory_mib,
        alone=request.alone,
    )


def hold_max_jobs(max_jobs_per_device: int | None) -> None:
    """The law of `max_jobs_per_device`, shared by all schedulers."""
    is_limit = max_jobs_per_device is None or max_jobs_per_device >= 1
    hold(is_limit, "hydra.launcher.scheduler.max_jobs_per_device >= 1, or null for no limit", max_jobs_per_device)


class BasicScheduler(Scheduler):
    """Devices in turn, as long as they have a slot; looks at no memory. The default is one job a GPU.

    With `max_jobs_per_device: null` a GPU takes any number, as FLGo's BasicScheduler does.
    """

    def __init__(self, max_jobs_per_device: int | None = 1) -> None:
        hold_max_jobs(max_jobs_per_device)
        self.max_jobs_per_device = max_jobs_per_device
        self._last: str | None = None

    def choose(
        self, waiting: Sequence[Request], running: Sequence[RunningJob], devices: Sequence[Device], now_s: float
    ) -> list[Placement]:
        placements: list[Placement] = []
        running = list(running)
        for request in waiting:
            open_ = [device for device in devices if has_slot(device, running, request, self.max_jobs_per_device)]
            if open_:
                placements.append(Placement(request.job, self._pick(open_, devices, request).id))
                running.append(started(request, placements[-1], now_s))
        return placements

    def _pick(self, open_: list[Device], devices: Sequence[Device], request: Request) -> Device:
        ids = [device.id for device in devices]
        after = ids.index(self._last) + 1 if self._last in ids else 0
        device = min(open_, key=lambda device: (ids.index(device.id) - after) % len(ids))
        self._last = device.id
        return device


class RandomScheduler(BasicScheduler):
    """A random device among those with a slot. The draw depends on `seed` and the job alone."""

    def __init__(self, max_jobs_per_device: int | None = 1, seed: int = 0) -> None:
        super().__init__(max_jobs_per_device)
        self.seed = seed

    def _pick(self, open_: list[Device], devices: Sequence[Device], request: Request) -> Device:
        return random.Random(f"{self.seed}/{request.job}").choice(open_)
