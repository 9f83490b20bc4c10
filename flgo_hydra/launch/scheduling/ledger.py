"""The ledger: each job's expected peak is booked when it starts, so many start at once and none outgrows its device.

Measuring what runs (`auto.py`) sees a job before it has grown; booking what it will need does not. The peak is known
once one job with the same memory signature has reported the end of its first round, in this sweep or an earlier one
(`estimates.py`). A job of an unknown signature is a probe: nothing joins its device until it has reported, and it
joins others only where enough room is left. Other jobs of its signature wait, unless a device is empty: there each
may be a probe too, as nobody else can use the place yet.

Tried in the simulator and left out: letting known jobs use 15 % of a device beside its probe (1 % of the makespan
better on one GPU, 1 % worse on four), and jobs in place of memory as the measure of load (no difference).

The rule keeps no state and never holds a place back: a device does not idle while a waiting job of known memory fits.
A large job may therefore wait long behind small ones; the sweep ends all the same.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from flgo_hydra.config.laws import MOST_SECONDS, hold
from flgo_hydra.launch.scheduling.scheduler import (
    EMPTY_SHARE,
    Device,
    Placement,
    Request,
    RunningJob,
    Scheduler,
    capped,
    has_slot,
    hold_max_jobs,
    started,
)

# Seconds between looks while only other people's memory is in the way: they do not tell us when they leave.
LOOK_S = 5.0


class LedgerScheduler(Scheduler):
    """Books peaks; takes the least booked device that fits; longest jobs first where durations are known."""

    def __init__(
        self,
        margin: float = 1.1,
        probe_share: float = 0.7,
        probe_s: float | None = 900.0,
        max_jobs_per_device: int | None = None,
    ) -> None:
        """Args:
        margin: what is booked, as a multiple of the expected peak.
        probe_share: share of a device's memory that must be left for a probe to join other jobs. A job that
            takes more may run out of memory as the first of its signature.
        probe_s: seconds after which a probe that reports memory but no end of its first round counts with the peak
            it has reached; None: never.
        max_jobs_per_device: most jobs at once on a GPU; None: as many as fit.
        """
        hold(1 <= margin < math.inf, "hydra.launcher.scheduler.margin >= 1 and finite", margin)
        hold(0 <= probe_share <= 1, "0 <= hydra.launcher.scheduler.probe_share <= 1", probe_share)
        is_time = probe_s is None or 0 <= probe_s <= MOST_SECONDS
        hold(is_time, f"0 <= hydra.launcher.scheduler.probe_s <= {MOST_SECONDS:.0f}, or null for never", probe_s)
        hold_max_jobs(max_jobs_per_device)
        self.margin = margin
        self.probe_share = probe_share
        self.probe_s = probe_s
        self.max_jobs_per_device = max_jobs_per_device

    def choose(
        self, waiting: Sequence[Request], running: Sequence[RunningJob], devices: Sequence[Device], now_s: float
    ) -> list[Placement]:
        running = [self._settled(job, now_s) for job in running]
        by_device: dict[str, list[RunningJob]] = {device.id: [] for device in devices}
        for job in running:
            by_device.get(job.device, []).append(job)
        pages = [_Page(device, by_device[device.id], self.margin) for device in devices]
        # Most often every slot is taken: then the queue, which may be long, need not be looked at.
        pages = [page for page in pages if self._is_open(page)]
        if not pages:
            return []
        placements: list[Placement] = []
        refused: set[tuple[object, ...]] = set()
        for request, is_first in self._in_order([capped(request, devices) for request in waiting], running):
            # Room only shrinks: what was refused to one job is refused to the next one like it.
            kind = (request.memory_mib, request.alone, is_first)
            if kind in refused:
                continue
            offers = [page for page in pages if self._fits(page, request, is_first)]
            if offers:
                page = min(offers, key=_Page.load)
                placements.append(page.book(request, now_s))
            else:
                refused.add(kind)
        return placements

    def wait_s(
        self, waiting: Sequence[Request], running: Sequence[RunningJob], devices: Sequence[Device], now_s: float
    ) -> float | None:
        if not waiting:
            return None
        if not devices:
            return LOOK_S
        waits = []
        if self.probe_s is not None:
            ends = [job.started_s + self.probe_s - now_s for job in running if _is_probe(job) and job.memory_mib]
            waits += [end for end in ends if end > 0]
        alone_here = [replace(device, free_mib=None, foreign_mib=None) for device in devices]
        if self.choose(waiting, running, alone_here, now_s):
            waits.append(LOOK_S)
        return min(waits, default=None)

    def _settled(self, job: RunningJob, now_s: float) -> RunningJob:
        """A probe that has run for `probe_s` without ending a round is taken at the peak it has reached."""
        if self.probe_s is None or not _is_probe(job) or not job.memory_mib or now_s < job.started_s + self.probe_s:
            return job
        return replace(job, expected_mib=job.memory_mib)

    def _in_order(self, waiting: Sequence[Request], running: Sequence[RunningJob]) -> list[tuple[Request, bool]]:
        """Returns the requests in the order in which they choose, and whether each is the first of its signature.

        First one probe of each unknown signature, as all others like it depend on it; then the known ones, the
        longest first; last the other unknown ones. An unknown duration counts as the longest.
        """
        learned: dict[str, int] = {}
        for job in running:
            if job.reserved_mib is None and job.expected_mib is not None:
                learned[job.signature] = max(job.expected_mib, learned.get(job.signature, 0))
        probed = {job.signature for job in running if _is_probe(job)}
        first, known, further = [], [], []
        for request in waiting:
            if request.memory_mib is None and request.signature in learned:
                request = replace(request, memory_mib=learned[request.signature])
            if request.memory_mib is not None or request.alone:
                known.append(request)
            elif request.signature in probed:
                further.append(request)
            else:
                probed.add(request.signature)
                first.append(request)
        known.sort(key=lambda request: math.inf if request.duration_s is None else request.duration_s, reverse=True)
        return [(r, True) for r in first] + [(r, False) for r in known] + [(r, False) for r in further]

    def _is_open(self, page: "_Page") -> bool:
        any_request = Request(job=-1, signature="")
        return not page.is_closed and has_slot(page.device, page.jobs, any_request, self.max_jobs_per_device)

    def _fits(self, page: "_Page", request: Request, is_first: bool) -> bool:
        if page.is_closed or not has_slot(page.device, page.jobs, request, self.max_jobs_per_device):
            return False
        if page.room_mib is None:
            return not page.jobs
        if request.memory_mib is not None:
            return page.needs_mib(request) <= page.room_mib
        if not page.jobs:
            return page.room_mib > 0
        return is_first and page.room_mib >= self.probe_share * page.size_mib


class _Page:
    """What is booked on one device. None is unknown."""

    def __init__(self, device: Device, jobs: list[RunningJob], margin: float) -> None:
        self.device = device
        self.jobs = list(jobs)
        self.margin = margin
        self.is_closed = any(_is_probe(job) for job in jobs)
        booked = [_booked_mib(job, margin) for job in jobs]
        self.booked_mib = sum(booked)
        growth = sum(max(0, mib - (job.memory_mib or 0)) for mib, job in zip(booked, jobs, strict=True))
        rooms = []
        if device.total_mib is not None:
            rooms.append(device.total_mib - self.booked_mib - (device.foreign_mib or 0))
        if device.free_mib is not None:
            # What runs has its present memory already; what it is still to take is not free.
            rooms.append(device.free_mib - growth)
        self.room_mib = min(rooms, default=None)
        self.size_mib = device.total_mib or max(1, self.booked_mib + (self.room_mib or 0))

    def load(self) -> tuple[float, int]:
        return self.booked_mib / self.size_mib, len(self.jobs)

    def needs_mib(self, request: Request) -> int:
        """Returns the MiB that must be left for a job of known memory: its peak times the margin.

        Less on a device without our jobs, where nothing can grow into the margin: there a job may take all that a
        device has to offer, though drivers keep some of `total_mib`.
        """
        assert request.memory_mib is not None
        if self.jobs:
            return _with_margin(request.memory_mib, self.margin)
        whole = math.ceil(self.size_mib * EMPTY_SHARE)
        return min(request.memory_mib, whole) if request.memory_mib <= self.size_mib else request.memory_mib

    def book(self, request: Request, now_s: float) -> Placement:
        """Places the job here, and closes the page behind a probe or a job that is alone."""
        reserved = None
        if request.memory_mib is not None:
            reserved = _with_margin(request.memory_mib, self.margin)
            if self.room_mib is not None:
                reserved = min(reserved, self.room_mib)
                self.room_mib -= reserved
            self.booked_mib += reserved
        placement = Placement(request.job, self.device.id, reserved)
        self.jobs.append(started(request, placement, now_s))
        self.is_closed = request.alone or request.memory_mib is None
        return placement


def _is_probe(job: RunningJob) -> bool:
    return job.reserved_mib is None and job.expected_mib is None


def _booked_mib(job: RunningJob, margin: float) -> int:
    """What a running job may still come to take; more than at its start, where it or one like it took more."""
    expected = 0 if job.expected_mib is None else _with_margin(job.expected_mib, margin)
    return max(job.reserved_mib or 0, job.memory_mib or 0, expected)


def _with_margin(memory_mib: int, margin: float) -> int:
    # Rounded before it is rounded up: 3000 * 1.1 is a little more than 3300.
    return math.ceil(round(memory_mib * margin, 6))
