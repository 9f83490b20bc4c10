"""Sweeps on a virtual clock: the schedulers of production over jobs that only pretend.

A simulated GPU shares itself fairly: jobs whose utilisations add up to more than 1, or that outnumber its cores, all
slow down by the same factor; they do not hinder each other otherwise. A job starts up, then takes memory in steps as
it proceeds, and reports its peak at each. A step that finds too little memory left ends the job that takes it. It
starts over from nothing: with 1.3 times the memory, then on a device alone, then it is given up.

Schedulers see what they see in production: signatures, reported peaks, free memory, the clock. Peaks and durations are
learned by signature, in production's `Estimates`, from the end of a job's first round and from its own end.

A makespan is compared with the largest of four bounds that no schedule beats in this model: the work (solo durations
times utilisations, by devices), the area under the solo memory curves, the cores, and the longest job.
"""

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flgo_hydra.launch.scheduling.estimates import Estimates
from flgo_hydra.launch.scheduling.scheduler import Device, Placement, Request, RunningJob, Scheduler, started

# An H100 of 80 GB, what its driver keeps, a process's CUDA context, and the cores that drive one GPU.
TOTAL_MIB, DRIVER_MIB, CONTEXT_MIB, NUM_CORES = 81559, 600, 450, 16
OOM_FACTOR, MAX_OOM = 1.3, 3
# What may happen to a job besides a step in memory, which is told by its MiB.
ROUND, END = -2, -1
# A scheduler that asks to be asked again at once would stop a virtual clock.
SHORTEST_S = 1e-3
# Nobody else uses simulated devices: a scheduler that starts nothing on empty ones for so long never will.
LONGEST_IDLE_S = 600.0


@dataclass(frozen=True)
class SimJob:
    """A pretended job. Its durations are those it has alone on a GPU."""

    job: int
    signature: str
    duration_s: float
    # share of a GPU that it keeps busy
    utilisation: float
    # peak of its first round
    peak_mib: int
    num_rounds: int = 20
    startup_s: float = 1.0
    # by how much its peak grows in the middle of the job, as a share
    late_growth: float = 0.0

    def steps(self) -> list[tuple[float, int]]:
        """Returns (seconds of solo work done, MiB from then on): model and data, first step, first evaluation."""
        round_s = self.duration_s / self.num_rounds
        growth = self.peak_mib - CONTEXT_MIB
        steps = [
            (0.0, CONTEXT_MIB + int(0.3 * growth)),
            (0.1 * round_s, CONTEXT_MIB + int(0.8 * growth)),
            (0.9 * round_s, self.peak_mib),
        ]
        if self.late_growth:
            steps.append((0.5 * self.duration_s, int(self.peak_mib * (1 + self.late_growth))))
        return steps

    def memory_area(self) -> float:
        """Returns MiB times seconds of a run alone."""
        steps = [*self.steps(), (self.duration_s, 0)]
        return sum(mib * (steps[i + 1][0] - done_s) for i, (done_s, mib) in enumerate(steps[:-1]))


@dataclass(frozen=True)
class Outcome:
    """What a simulated sweep came to."""

    makespan_s: float
    bound_s: float
    num_oom: int
    num_failed: int
    # mean seconds from the sweep's start to the start of a job's last attempt
    wait_s: float

    @property
    def ratio(self) -> float:
        return self.makespan_s / self.bound_s


def bound_s(jobs: Sequence[SimJob], num_devices: int) -> float:
    """Returns seconds that no schedule of these jobs can stay below."""
    work = sum(job.duration_s * job.utilisation for job in jobs) / num_devices
    cores = sum(job.duration_s for job in jobs) / (num_devices * NUM_CORES)
    memory = sum(job.memory_area() for job in jobs) / (num_devices * (TOTAL_MIB - DRIVER_MIB))
    return max(work, cores, memory, *(job.duration_s + job.startup_s for job in jobs))


class _Gpu:
    """A GPU with a work clock, which advances by the seconds of solo work that each of its jobs gets done."""

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.clock_s = 0.0
        self.at_s = 0.0
        # of the jobs at work: share of the GPU, MiB; what comes: position of the work clock, job, ROUND, END or MiB
        self.utilisation: dict[int, float] = {}
        self.memory_mib: dict[int, int] = {}
        self.events: list[tuple[float, int, int]] = []
        self.speed = 1.0

    @property
    def used_mib(self) -> int:
        return sum(self.memory_mib.values())

    def next_s(self) -> float:
        return self.at_s + (self.events[0][0] - self.clock_s) / self.speed if self.events else math.inf

    def advance(self, now_s: float) -> None:
        self.clock_s += (now_s - self.at_s) * self.speed
        self.at_s = now_s

    def begin(self, job: SimJob) -> None:
        self.utilisation[job.job] = job.utilisation
        happenings = [*job.steps(), (job.duration_s / job.num_rounds, ROUND), (job.duration_s, END)]
        for done_s, what in happenings:
            heapq.heappush(self.events, (self.clock_s + done_s, job.job, what))
        self._share()

    def remove(self, job_num: int) -> None:
        self.utilisation.pop(job_num)
        self.memory_mib.pop(job_num, None)
        self.events = [event for event in self.events if event[1] != job_num]
        heapq.heapify(self.events)
        self._share()

    def _share(self) -> None:
        self.speed = 1 / max(1.0, sum(self.utilisation.values()), len(self.utilisation) / NUM_CORES)


class Simulation:
    """One sweep of `jobs` on equal GPUs under a scheduler, whose state it changes."""

    def __init__(
        self, jobs: Sequence[SimJob], num_devices: int, scheduler: Scheduler, max_oom: int | None = MAX_OOM
    ) -> None:
        """Args:
        max_oom: attempts out of memory after which a job is given up; None: it is tried for ever, as FLGo does.
        """
        self.jobs = {job.job: job for job in jobs}
        self.scheduler = scheduler
        self.max_oom = max_oom
        self.gpus = {f"GPU-{i}": _Gpu(f"GPU-{i}") for i in range(num_devices)}
        self.estimates = Estimates("simulated")
        self.waiting = {job.job: Request(job.job, job.signature) for job in jobs}
        self.running: dict[int, RunningJob] = {}
        self.starting: list[tuple[float, int]] = []
        self.started_s: dict[int, float] = {}
        self.num_oom_of = dict.fromkeys(self.jobs, 0)
        self.num_failed = 0
        self.now_s = 0.0
        self.last_end_s = 0.0

    def run(self) -> Outcome:
        while self.waiting or self.running:
            wake_s = self._ask()
            gpu = min(self.gpus.values(), key=_Gpu.next_s)
            start_s = self.starting[0][0] if self.starting else math.inf
            event_s = min(gpu.next_s(), start_s)
            if min(event_s, wake_s) == math.inf:
                raise RuntimeError(f"Jobs {sorted(self.waiting)} wait, but nothing can change that.")
            if not self.running and self.now_s > self.last_end_s + LONGEST_IDLE_S:
                raise RuntimeError(f"Jobs {sorted(self.waiting)} wait although nothing runs.")
            self.now_s = max(self.now_s, min(event_s, wake_s))
            if event_s > wake_s:
                continue
            if start_s <= gpu.next_s():
                job = self.jobs[heapq.heappop(self.starting)[1]]
                gpu = self.gpus[self.running[job.job].device]
                gpu.advance(self.now_s)
                gpu.begin(job)
            else:
                gpu.advance(self.now_s)
                _, job_num, what = heapq.heappop(gpu.events)
                self._happen(gpu, self.running[job_num], what)
        return Outcome(
            makespan_s=self.now_s,
            bound_s=bound_s(list(self.jobs.values()), len(self.gpus)),
            num_oom=sum(self.num_oom_of.values()),
            num_failed=self.num_failed,
            wait_s=sum(self.started_s.values()) / len(self.jobs),
        )

    def _ask(self) -> float:
        """Starts what the scheduler chooses now; returns the time at which it wants to be asked again."""
        if not self.waiting:
            return math.inf
        for placement in self.scheduler.choose(*self._view()):
            self._start(placement)
        wait = self.scheduler.wait_s(*self._view()) if self.waiting else None
        return math.inf if wait is None else self.now_s + max(wait, SHORTEST_S)

    def _view(self) -> tuple[list[Request], list[RunningJob], list[Device], float]:
        """Returns what a scheduler is shown."""
        devices = [
            Device(gpu.id, TOTAL_MIB, TOTAL_MIB - DRIVER_MIB - gpu.used_mib, NUM_CORES, DRIVER_MIB)
            for gpu in self.gpus.values()
        ]
        return list(self.waiting.values()), list(self.running.values()), devices, self.now_s

    def _start(self, placement: Placement) -> None:
        request = self.waiting.pop(placement.job)
        self.running[placement.job] = started(request, placement, self.now_s)
        self.started_s[placement.job] = self.now_s
        heapq.heappush(self.starting, (self.now_s + self.jobs[placement.job].startup_s, placement.job))

    def _happen(self, gpu: _Gpu, running: RunningJob, what: int) -> None:
        if what == ROUND:
            self._learn_memory(running)
        elif what == END:
            self._stop(gpu, running)
            self._learn_memory(running)
            self._learn_duration(running)
        elif gpu.used_mib - gpu.memory_mib.get(running.job, 0) + what <= TOTAL_MIB - DRIVER_MIB:
            gpu.memory_mib[running.job] = what
            self.running[running.job] = replace(running, memory_mib=what)
        else:
            self._stop(gpu, running)
            self._queue_again(running, what)

    def _stop(self, gpu: _Gpu, running: RunningJob) -> None:
        gpu.remove(running.job)
        del self.running[running.job]
        self.last_end_s = self.now_s

    def _learn_memory(self, running: RunningJob) -> None:
        assert running.memory_mib is not None
        self.estimates.learn_memory(running.signature, running.memory_mib)
        peak = self.estimates.memory_mib(running.signature)
        assert peak is not None
        for num, request in self.waiting.items():
            if request.signature == running.signature and (request.memory_mib or 0) < peak:
                self.waiting[num] = replace(request, memory_mib=peak)
        for num, job in self.running.items():
            if job.signature == running.signature and (job.expected_mib or 0) < peak:
                self.running[num] = replace(job, expected_mib=peak)

    def _learn_duration(self, running: RunningJob) -> None:
        self.estimates.learn_duration(running.signature, self.now_s - running.started_s)
        duration_s = self.estimates.duration_s(running.signature)
        for num, request in self.waiting.items():
            if request.signature == running.signature:
                self.waiting[num] = replace(request, duration_s=duration_s)

    def _queue_again(self, running: RunningJob, wanted_mib: int) -> None:
        self.num_oom_of[running.job] += 1
        num_oom = self.num_oom_of[running.job]
        if num_oom == self.max_oom:
            self.num_failed += 1
            return
        memory_mib = math.ceil(OOM_FACTOR * max(wanted_mib, running.expected_mib or 0))
        duration_s = self.estimates.duration_s(running.signature)
        self.waiting[running.job] = Request(running.job, running.signature, memory_mib, duration_s, alone=num_oom > 1)
        self.waiting = dict(sorted(self.waiting.items()))


class FlgoAsCoded(Scheduler):
    """FLGo's AutoScheduler with the defects of its code, to be compared with.

    Asked once a second, by every waiting job in turn. The estimate is the memory that our processes use at the moment,
    starting ones included. The first available device in the given order is taken, whatever another has free. The time
    of the last placement is taken down even where the limit of processes then refuses.
    https://github.com/WwZzz/easyFL, flgo/experiment/device_scheduler.py
    """

    PUT_INTERVAL, AVAILABLE_INTERVAL, INITIAL_MIB, MAX_PROCESSES, PASS_S = 5.0, 5.0, 1000.0, 10, 1.0

    def __init__(self, condition: str = "mean") -> None:
        self.condition = condition
        self._estimate_mib = self.INITIAL_MIB
        self._last_pass_s = -math.inf
        self._short_s: dict[str, float] = {}
        self._put_s: dict[str, float] = {}

    def choose(
        self, waiting: Sequence[Request], running: Sequence[RunningJob], devices: Sequence[Device], now_s: float
    ) -> list[Placement]:
        if now_s < self._last_pass_s + self.PASS_S - 1e-9:
            return []
        self._last_pass_s = now_s
        memory = [job.memory_mib for job in running if job.memory_mib is not None]
        if memory:
            self._estimate_mib = max(memory) if self.condition == "max" else sum(memory) // len(memory)
        placements: list[Placement] = []
        for request in waiting:
            device = next((device for device in devices if self._is_available(device, now_s)), None)
            if device is None:
                break
            placed = sum(placement.device == device.id for placement in placements)
            if sum(job.device == device.id for job in running) + placed < self.MAX_PROCESSES:
                placements.append(Placement(request.job, device.id))
        return placements

    def wait_s(
        self, waiting: Sequence[Request], running: Sequence[RunningJob], devices: Sequence[Device], now_s: float
    ) -> float | None:
        return max(0.0, self._last_pass_s + self.PASS_S - now_s)

    def _is_available(self, device: Device, now_s: float) -> bool:
        # its clock begins when the scheduler is made, which is at 0
        since_s = self._short_s.setdefault(device.id, 0.0)
        if (device.free_mib or 0) <= self._estimate_mib:
            self._short_s[device.id] = now_s
            return False
        if (
            now_s - since_s < self.AVAILABLE_INTERVAL
            or now_s - self._put_s.get(device.id, -math.inf) < self.PUT_INTERVAL
        ):
            return False
        self._put_s[device.id] = now_s
        return True


def small(rng: random.Random, num_jobs: int) -> list[SimJob]:
    """A grid over small models: 4 signatures of 0.8–3 GB, 2–8 minutes, 5–20 % of a GPU."""
    kinds = [(rng.uniform(800, 3000), rng.uniform(120, 480), rng.uniform(0.05, 0.2)) for _ in range(4)]
    return _grid(rng, num_jobs, kinds)


def mixed(rng: random.Random, num_jobs: int) -> list[SimJob]:
    """8 signatures of 1–40 GB, 1–20 minutes, 10–90 % of a GPU; the large ones are the busy ones, with exceptions."""
    kinds = []
    for _ in range(8):
        size = rng.random()
        busy = min(0.9, max(0.1, 0.1 + 0.8 * size + rng.gauss(0, 0.15)))
        kinds.append((1000 * 40**size, 60 * 20 ** rng.random(), busy))
    return _grid(rng, num_jobs, kinds)


def heavy(rng: random.Random, num_jobs: int) -> list[SimJob]:
    """Heavy tails: 8 signatures of 1–64 GB, log-normal durations (median 4 minutes, sigma 1.3) that differ by job."""
    kinds = [(1000 * 64 ** rng.random(), 240.0, rng.uniform(0.1, 0.9)) for _ in range(8)]
    jobs = _grid(rng, num_jobs, kinds)
    return [replace(job, duration_s=min(4 * 3600.0, 240 * math.exp(rng.gauss(0, 1.3)))) for job in jobs]


def short(rng: random.Random, num_jobs: int) -> list[SimJob]:
    """Jobs of 15–35 s: 4 signatures of 0.8–3 GB, 10–30 % of a GPU."""
    kinds = [(rng.uniform(800, 3000), rng.uniform(15, 35), rng.uniform(0.1, 0.3)) for _ in range(4)]
    return _grid(rng, num_jobs, kinds)


def unruly(rng: random.Random, num_jobs: int) -> list[SimJob]:
    """Mixed, but signatures say little: peaks differ by ±25 % within one, and half of the jobs grow by 20 % late."""
    return [
        replace(job, peak_mib=int(job.peak_mib * rng.uniform(0.75, 1.25)), late_growth=rng.choice([0.0, 0.2]))
        for job in mixed(rng, num_jobs)
    ]


WORKLOADS: dict[str, Callable[[random.Random, int], list[SimJob]]] = {
    "small": small,
    "mixed": mixed,
    "heavy": heavy,
    "short": short,
    "unruly": unruly,
}


def _grid(rng: random.Random, num_jobs: int, kinds: Sequence[tuple[float, float, float]]) -> list[SimJob]:
    """Jobs of these (peak MiB, seconds, utilisation) in turn; within a kind ±3 % of peak and ±20 % of duration."""
    jobs = []
    for num in range(num_jobs):
        peak_mib, duration_s, utilisation = kinds[num % len(kinds)]
        peak, duration = int(peak_mib * rng.uniform(0.97, 1.03)), duration_s * rng.uniform(0.8, 1.2)
        jobs.append(SimJob(num, f"kind {num % len(kinds)}", duration, utilisation, peak))
    return jobs
