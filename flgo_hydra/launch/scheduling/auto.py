"""FLGo's AutoScheduler rule, as its documentation states it: measure what jobs use, and add one where there is room.

A device is available when its free memory has been larger than the mean (or max) memory of the running jobs for
`available_interval` seconds without a break, and `put_interval` seconds have passed since the last job was put on it.
Candidates are ordered by free memory. https://github.com/WwZzz/easyFL, flgo/experiment/device_scheduler.py

What differs from FLGo's code, each a defect there:
- the device with the most free memory is taken (FLGo sorts, then takes the first one given);
- a job that is still in its first round counts with `initial_memory_mib` at least, and a learned one with its expected
  peak, so that starting jobs do not pull the estimate down;
- memory is what the jobs report, as NVML's figures by process are missing in containers; a job without a figure, or a
  device without one, is unknown: such a device takes one job at a time;
- other people's processes leave less free memory, but are neither averaged nor counted as ours;
- a request's own figure (user-set, learned, or raised after it ran out of memory) must fit as well;
- no estimate closes an empty device for good: it is `initial_memory_mib` again when nothing runs (FLGo's stays what
  it was, and may be more than any device has), and an `alone` job's figure, a guess, is left out of it;
- the clock of a device starts again when it vanishes and returns;
- both intervals stand for ignorance, what the last started job will take is not seen yet, so evidence ends them: where
  the peak of every job on a device is known, from the end of its first round or from one like it, there is nothing
  left to wait for. What those jobs are still to take then counts as taken. An interval that is given as a number is
  waited for as it stands, and free memory taken as it is: FLGo's rule;
- unless an interval is given, a job of which nothing is known starts where most of a device is free, or nothing runs.

After the longest wait the rule looks at the present all the same: a job that has ended no round by then may outgrow
the device. `ledger.py` books peaks instead, and lets nothing join such a job.
"""

from collections.abc import Sequence

from flgo_hydra.config.laws import MOST_SECONDS, hold, one_of
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
    jobs_on,
    started,
)

# Seconds between looks while jobs wait: "without a break" can be claimed of what was looked at only.
LOOK_S = 1.0
# Both intervals, where nothing is known and nothing was asked for.
LONGEST_S = 5.0
# Of a device's memory, what must be free for a job of which nothing is known to join others.
PROBE_SHARE = 0.7
# Shortest wait, for intervals of 0: a job just put on a device is seen before the next one.
SHORTEST_S = 0.05


class AutoScheduler(Scheduler):
    """Puts at most one job on each device at a time, where free memory exceeds what a job takes."""

    def __init__(
        self,
        put_interval: float | None = None,
        available_interval: float | None = None,
        initial_memory_mib: int = 1000,
        dynamic: bool = True,
        condition: str = "mean",
        max_jobs_per_device: int | None = None,
    ) -> None:
        """Args:
        put_interval: seconds between two jobs put on one device; None: 5, or until the peaks of the jobs on it
            are known.
        available_interval: seconds for which free memory must have exceeded the estimate without a break; None: as
            for `put_interval`.
        initial_memory_mib: the estimate while no job runs; for ever, where not `dynamic`.
        dynamic: whether the estimate follows the running jobs.
        condition: their "mean" or "max".
        max_jobs_per_device: most jobs at once on a GPU; None: no limit.
        """
        for name, interval in (("put_interval", put_interval), ("available_interval", available_interval)):
            is_time = interval is None or 0 <= interval <= MOST_SECONDS
            law = f"0 <= hydra.launcher.scheduler.{name} <= {MOST_SECONDS:.0f}, or null for 5 at most"
            hold(is_time, law, interval)
        hold(initial_memory_mib >= 0, "hydra.launcher.scheduler.initial_memory_mib >= 0", initial_memory_mib)
        one_of("hydra.launcher.scheduler.condition", condition, ("mean", "max"))
        hold_max_jobs(max_jobs_per_device)
        self.put_interval = put_interval
        self.available_interval = available_interval
        self.initial_memory_mib = initial_memory_mib
        self.dynamic = dynamic
        self.condition = condition
        self.max_jobs_per_device = max_jobs_per_device
        self._estimate_mib = float(initial_memory_mib)
        # since when a device's free memory has exceeded the estimate, and when a job was last put on it
        self._since_s: dict[str, float] = {}
        self._put_s: dict[str, float] = {}

    def choose(
        self, waiting: Sequence[Request], running: Sequence[RunningJob], devices: Sequence[Device], now_s: float
    ) -> list[Placement]:
        self._look(running, devices, now_s)
        candidates = [device for device in devices if self._open_s(device, running) <= now_s]
        # A device of unknown memory comes last; of equals, the first one given.
        candidates.sort(key=lambda device: -1 if device.free_mib is None else device.free_mib, reverse=True)
        placements: list[Placement] = []
        running = list(running)
        # Devices only fill up: what all refuse to one request they refuse to the next one like it.
        refused: set[tuple[object, ...]] = set()
        for request in (capped(request, devices) for request in waiting):
            kind = _kind(request)
            if not candidates or kind in refused:
                continue
            device = next((device for device in candidates if self._takes(device, running, request)), None)
            if device is None:
                refused.add(kind)
                continue
            self._put_s[device.id] = now_s
            placements.append(Placement(request.job, device.id))
            running.append(started(request, placements[-1], now_s))
            if self._waits(device, running) or not self._is_available(device, running):
                candidates.remove(device)
        return placements

    def wait_s(
        self, waiting: Sequence[Request], running: Sequence[RunningJob], devices: Sequence[Device], now_s: float
    ) -> float | None:
        if not waiting:
            return None
        if not devices:
            return LOOK_S
        # Only memory and `alone` matter to a device, or what is not known, so one request of each kind answers for all.
        kinds = [capped(request, devices) for request in {_kind(request): request for request in waiting}.values()]
        open_ = [
            device
            for device in devices
            if any(has_slot(device, running, request, self.max_jobs_per_device) for request in kinds)
        ]
        if not open_:
            return None
        soon = [
            self._open_s(device, running) - now_s
            for device in open_
            if device.id in self._since_s and any(self._takes(device, running, request) for request in kinds)
        ]
        return min([LOOK_S, *(max(SHORTEST_S, wait) for wait in soon)])

    def _look(self, running: Sequence[RunningJob], devices: Sequence[Device], now_s: float) -> None:
        """Brings the estimate and the devices' clocks up to date."""
        self._estimate_mib = float(self.initial_memory_mib)
        if self.dynamic and running:
            figures = [self._figure_mib(job) for job in running]
            self._estimate_mib = max(figures) if self.condition == "max" else sum(figures) / len(figures)
        present = {device.id for device in devices}
        self._since_s = {id_: since for id_, since in self._since_s.items() if id_ in present}
        for device in devices:
            if self._is_available(device, running):
                self._since_s.setdefault(device.id, now_s)
            else:
                self._since_s.pop(device.id, None)

    def _figure_mib(self, job: RunningJob) -> int:
        """What a running job takes: its peak where it is known, else not less than a job is thought to take."""
        seen = job.memory_mib or 0
        is_guess = job.expected_mib is None or job.alone
        return max(seen, self.initial_memory_mib if is_guess else job.expected_mib or 0)

    def _is_available(self, device: Device, running: Sequence[RunningJob]) -> bool:
        free_mib = self._free_mib(device, running)
        return not jobs_on(device, running) if free_mib is None else free_mib > self._estimate_mib

    def _free_mib(self, device: Device, running: Sequence[RunningJob]) -> int | None:
        """Free memory, less what jobs of a known peak are still to take; as it is, where an interval was asked for."""
        if device.free_mib is None or not self._heeds_evidence:
            return device.free_mib
        here = jobs_on(device, running)
        return device.free_mib - sum(max(0, (job.expected_mib or 0) - (job.memory_mib or 0)) for job in here)

    @property
    def _heeds_evidence(self) -> bool:
        return self.put_interval is None or self.available_interval is None

    def _waits(self, device: Device, running: Sequence[RunningJob]) -> bool:
        """Whether the intervals are waited for: they were asked for, or there is a job whose peak is not known."""
        if not self._heeds_evidence:
            return True
        here = jobs_on(device, running)
        return any(job.expected_mib is None for job in here) or (device.free_mib is None and bool(here))

    def _open_s(self, device: Device, running: Sequence[RunningJob]) -> float:
        """Returns the time at which both intervals have passed; infinity while the device is not available."""
        if device.id not in self._since_s:
            return float("inf")
        longest_s = LONGEST_S if self._waits(device, running) else 0.0
        available_s = longest_s if self.available_interval is None else self.available_interval
        put_s = longest_s if self.put_interval is None else self.put_interval
        return max(self._since_s[device.id] + available_s, self._put_s.get(device.id, float("-inf")) + put_s)

    def _may_probe(self, device: Device, running: Sequence[RunningJob], request: Request) -> bool:
        """Whether a job of which nothing is known may start here: the first of its signature joins others."""
        free_mib = self._free_mib(device, running)
        if not self._heeds_evidence or free_mib is None or device.total_mib is None or not jobs_on(device, running):
            return True
        is_probed = any(job.signature == request.signature and job.expected_mib is None for job in running)
        return not is_probed and free_mib >= PROBE_SHARE * device.total_mib

    def _takes(self, device: Device, running: Sequence[RunningJob], request: Request) -> bool:
        """Whether the device has a slot for this request, and room for its own figure where both are known."""
        if not has_slot(device, running, request, self.max_jobs_per_device):
            return False
        if request.memory_mib is None:
            return self._may_probe(device, running, request)
        if device.free_mib is None:
            return device.total_mib is None or device.total_mib >= request.memory_mib
        wanted = float(request.memory_mib)
        if device.total_mib is not None and wanted <= device.total_mib and not jobs_on(device, running):
            wanted = min(wanted, EMPTY_SHARE * device.total_mib)
        free_mib = self._free_mib(device, running)
        assert free_mib is not None
        return free_mib >= wanted


def _kind(request: Request) -> tuple[object, ...]:
    """Requests of one kind are the same to a device."""
    return (request.memory_mib, request.alone, request.signature if request.memory_mib is None else None)
