"""What runs next, and what becomes of it: jobs in, events out.

The queue puts waiting jobs where the scheduler says, starts them in the pool, follows their memory, and gives a job
whose attempt failed another one where `failures.decide` says so. It knows neither Hydra nor federated learning:
a job is bytes for a worker, a folder for its logs, and what is expected of its memory and duration.

Everything that waits is in `next_event`: for pipes of the pool, and with a deadline only where the clock itself
decides (a retry's backoff, a job's time limit, the scheduler's own `wait_s`).
"""

import contextlib
import errno
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from flgo_hydra.config.laws import MOST_SECONDS
from flgo_hydra.launch.failures import Attempt, End, Failure, classify, decide
from flgo_hydra.launch.processes.pool import Ended, Message, Started
from flgo_hydra.launch.reporter import WHY_APART
from flgo_hydra.launch.scheduling.estimates import Estimates
from flgo_hydra.launch.scheduling.scheduler import CPU, Device, Placement, Request, RunningJob, Scheduler
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import NOT_STARTED, forget_failure

_log = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "cancelled", "stopped"]
END_STATES = ("done", "failed", "cancelled", "stopped")
_LOOK_AGAIN_S = 1.0
_SHORTEST_LOOK_S = 0.05
# How long a job waits for room on a host where nothing of ours runs; the scheduler's own clock may make it longer.
_PATIENCE_S = 5.0
_MOST_PATIENCE_S = 60.0
# What a group needs the more of, the larger it is: descriptors, memory.
_OF_SIZE = {errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS, errno.ENOMEM}
# What a process is made of and others may give back: the same, room on a disk, processes.
_MISSING = {*_OF_SIZE, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN}


@dataclass(eq=False)
class Job:
    """One job, from the queue's door to its end. The queue alone changes it after `submit`."""

    num: int
    # what the worker's entry function reads
    payload: bytes
    # gets a log for each attempt
    folder: Path
    # jobs with the same signature are expected to need the same memory
    signature: str = ""
    # jobs with the same duration signature are expected to take the same time
    duration_signature: str = ""
    # expected peak, as the user gave it or raised because it ran out of memory; None: what was seen of its like counts
    memory_mib: int | None = None
    # jobs with the same one can run as one program, in one process; empty: with no other
    fuse_key: str = ""
    # for people
    name: str = ""
    cwd: str | None = None
    state: State = "waiting"
    attempts: list[Attempt] = field(default_factory=list)
    # the last `report("round", …)`
    progress: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    # what the last attempt left as its result
    result: bytes = b""
    # not before, on the queue's clock
    not_before_s: float = 0.0
    alone: bool = False
    # most jobs in the process of its next attempt; None: as many as the queue likes
    most_fused: int | None = None
    # it ended early because it was asked to: others are better
    is_pruned: bool = False

    @property
    def is_ended(self) -> bool:
        return self.state in END_STATES


@dataclass(frozen=True)
class Event:
    """What happened to a job: `ended` comes once a job, and is the last."""

    kind: Literal["started", "report", "retry", "stuck", "ended"]
    job: Job
    values: Mapping[str, Any] = field(default_factory=dict)


class ProcessPool(Protocol):
    """What the queue needs of `pool.Pool`."""

    def start_group(
        self, payloads: Sequence[bytes], log: Path, cwd: str | None, env: Mapping[str, str], is_group: bool
    ) -> Sequence[int]: ...
    def request_stop(self, token: int) -> None: ...
    def request_prune(self, token: int, reason: str) -> None: ...
    def end(self, token: int, grace_s: float) -> None: ...
    def wait(self, timeout_s: float | None) -> Sequence[Started | Message | Ended]: ...


@dataclass
class Running:
    """An attempt under way."""

    job: Job
    token: int
    placement: Placement
    number: int
    log: Path
    started_s: float
    # token of the first job of its process, and how many those are
    leader: int
    group_size: int = 1
    memory_mib: int | None = None
    expected_mib: int | None = None
    round: int | None = None
    has_learned: bool = False
    end_message: dict[str, Any] | None = None
    ended_for: Literal["timeout", "cancelled", "stopped"] | None = None
    # when it was asked to end though a signal would have ended others with it
    asked_s: float | None = None


@dataclass
class Queue:
    """Jobs, and the devices they share.

    Args:
        read_devices: the devices as they are now, told what runs.
        estimates: what jobs of a signature needed before; told what they need now.
        fuse: most jobs of the same `fuse_key` in one process. With more than 1, one alone is a group too.
        guess_mib: expected peak of a job of which nothing is known; None: the scheduler shall find out.
        read_kernel_kills: processes the kernel has killed for want of memory so far; None: cannot be known.
        clock: seconds, monotonic.
    """

    pool: ProcessPool
    scheduler: Scheduler
    read_devices: Callable[[Sequence[RunningJob]], Sequence[Device]]
    max_retries: int = 2
    backoff_s: float = 2.0
    timeout_s: float | None = None
    grace_s: float = 10.0
    estimates: Estimates = field(default_factory=lambda: Estimates(""))
    guess_mib: int | None = None
    fuse: int = 1
    read_kernel_kills: Callable[[], int | None] = lambda: None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.waiting: list[Job] = []
        self.running: dict[int, Running] = {}  # by token
        self.devices: Sequence[Device] = ()
        self._expects_more = False
        self.stop_level = 0  # 1: at the next round boundary; 2: now
        self._events: deque[Event] = deque()
        self._kernel_kills = self.read_kernel_kills()
        self._apart: dict[str, str] = {}  # why, by fuse keys of jobs that cannot run together
        self._context_mib: dict[str, int] = {}  # by device, as a job alone on it measured
        self._is_stuck = False
        self._most_fused = self.fuse  # what this machine has let start together
        self._chance_s: float | None = None  # when a job tries though the host has no room for it
        self._has_told_stuck = False
        # Whether a decision may be another one than the last, and when the clock alone may make it so.
        self._has_changed = True
        self._look_again_s: float | None = None

    @property
    def is_idle(self) -> bool:
        """True when nothing waits, runs, or has been left unsaid."""
        return not (self.waiting or self.running or self._events)

    @property
    def has_free_slot(self) -> bool:
        """Whether a job submitted now could start at once; only for memory it may still have to wait."""
        if self.waiting or self._events:  # whoever hears of an end first knows more when it chooses the next job
            return False
        self.devices = self.devices or self.read_devices(self.running_jobs())
        used = [running.placement.device for running in self.running.values()]
        return any(device.slots is None or used.count(device.id) < device.slots for device in self.devices)

    def submit(self, job: Job) -> None:
        """Queues a job. After a stop it ends at once, as stopped."""
        self.waiting.append(job)
        self._has_changed = True
        if self.stop_level:
            self._drop_waiting("stopped", "was not started: the sweep was stopped")

    def expect_more(self, is_true: bool) -> None:
        """Says whether more jobs are submitted at once: then a group that is not full waits for them."""
        self._has_changed |= is_true != self._expects_more
        self._expects_more = is_true

    def refuse(self, job: Job, failure: Failure) -> None:
        """Takes note of a job that cannot even be submitted."""
        self._end(job, "failed", failure)

    def cancel(self, job: Job, now: bool = True) -> None:
        """Ends a job, `now` or at its next round boundary; one that waits never starts."""
        if job in self.waiting:
            self.waiting.remove(job)
            self._end(job, "cancelled", Failure("cancelled", "was cancelled before it started"))
        for running in self.running.values():
            if running.job is job:
                self._stop_attempt(running, "cancelled", now)

    def prune(self, job: Job, reason: str) -> None:
        """Asks a running job to end for good, with a result, at its next round boundary. An ended one does not mind."""
        for running in self.running.values():
            if running.job is job:
                self.pool.request_prune(running.token, reason)

    def stop(self, now: bool = False) -> None:
        """Starts nothing new, and ends what runs: at its next round boundary with a checkpoint, or `now`."""
        self.stop_level = 2 if now else max(self.stop_level, 1)
        self._drop_waiting("stopped", "was not started: the sweep was stopped")
        for running in self.running.values():
            self._stop_attempt(running, "stopped", now)

    def next_event(self, timeout_s: float | None = None) -> Event | None:
        """Returns what happened next, or None: time is up, the pool was woken, the clock was looked at.

        None does not mean that nothing will come: ask again unless `is_idle`.
        """
        deadline = None if timeout_s is None else self.clock() + timeout_s
        while not self._events:
            now_s = self.clock()
            if self._has_changed or (self._look_again_s is not None and now_s >= self._look_again_s):
                self._has_changed = False
                self._place()
                now_s = self.clock()
                wait_s = self._wait_s(now_s)
                self._look_again_s = None if wait_s is None else now_s + wait_s
                if self._has_changed:  # what could not be started together is tried apart
                    continue
            if self._events or not (self.waiting or self.running):
                break
            ends_s = [end_s for end_s in (self._look_again_s, deadline) if end_s is not None]
            happened = self.pool.wait(max(0.0, min(ends_s) - now_s) if ends_s else None)
            for event in happened:
                self._hear(event)
            self._check_time()
            if not happened and not self._events:
                return None
        return self._events.popleft() if self._events else None

    # what runs next

    def _place(self) -> None:
        now_s = self.clock()
        ready = [job for job in self.waiting if job.not_before_s <= now_s]
        if not ready:
            self._chance_s = None
            return
        running = self.running_jobs()
        self.devices = self.read_devices(running)
        requests = []
        groups = {}
        for group in self._groups(ready):
            request = self._request(group)
            why = self.scheduler.impossible(request, self.devices) if request.is_given else None
            if why is not None and len(group) > 1:
                self._halve(group)
            elif why is not None:
                for job in group:
                    self.waiting.remove(job)
                    self._end(job, "failed", Failure("impossible", why, wanted_mib=request.memory_mib))
            else:
                requests.append(request)
                groups[request.job] = group
        placements = self.scheduler.choose(requests, running, self.devices, now_s)
        if placements or not requests:
            self._chance_s = None
        else:
            placements = self._give_a_chance(requests, groups, now_s)
        for placement in placements:
            self._start(groups[placement.job], placement, now_s)
        self._is_stuck = not placements and not self.running
        if self._is_stuck and not self._has_told_stuck and requests:
            self._has_told_stuck = True
            self._events.append(Event("stuck", groups[requests[0].job][0], {"devices": len(self.devices)}))

    def _give_a_chance(
        self, requests: Sequence[Request], groups: Mapping[int, Sequence[Job]], now_s: float
    ) -> list[Placement]:
        """A job for which the host has no room though nothing of ours runs, and has had none for a while.

        What keeps the memory (this process among others) may keep it for ever. So the job tries, alone, and what the
        kernel ends says what it wanted. A GPU is another matter: who has it will leave it one day. Whatever the
        scheduler says of the time when it looks again, it is heard for a minute at most.
        """
        host = next((device for device in self.devices if device.id == CPU), None)
        if self.running or host is None:
            self._chance_s = None
            return []
        if self._chance_s is None:
            wait_s = self._asked_wait_s(requests, [], now_s) or 0.0
            self._chance_s = now_s + max(_PATIENCE_S, min(_MOST_PATIENCE_S, wait_s))
        if now_s < self._chance_s:
            return []
        self._chance_s = None
        for job in groups[requests[0].job]:
            job.alone = True
        return [Placement(requests[0].job, host.id)]

    def _asked_wait_s(self, requests: Sequence[Request], running: Sequence[RunningJob], now_s: float) -> float | None:
        """What the scheduler says of when it wants to look again: a time that can be waited for, or None."""
        wait_s = self.scheduler.wait_s(requests, running, self.devices, now_s)
        if wait_s is None or not wait_s < math.inf:  # nan too
            return None
        return min(max(_SHORTEST_LOOK_S, wait_s), MOST_SECONDS)

    def _groups(self, ready: Sequence[Job]) -> list[list[Job]]:
        """What starts together: jobs that can run as one program, up to so many; else each by itself."""
        by_key: dict[str, list[Job]] = {}
        for job in ready:
            by_key.setdefault(job.fuse_key, []).append(job)
        groups: dict[int, list[Job]] = {}  # by first job, in the order of `ready`
        held: set[int] = set()
        for key, jobs in by_key.items():
            most = min(self.fuse, self._most_fused) if self._fuses(key) else 1
            group: list[Job] = []
            for job in jobs:
                limits = [other.most_fused for other in [*group, job] if other.most_fused is not None]
                if not group or len(group) >= min([most, *limits]):
                    group = groups[id(job)] = []
                group.append(job)
            if most > 1 and len(group) < most and self._expects_more:
                held.add(id(group[0]))
        return [groups[id(job)] for job in ready if id(job) in groups and id(job) not in held]

    def _fuses(self, key: str) -> bool:
        return bool(key) and self.fuse > 1 and key not in self._apart

    def _request(self, group: Sequence[Job]) -> Request:
        """What a group asks for: as one job, by the name of its first one."""
        first, size = group[0], len(group)
        signature = group_signature(first, size)
        duration_s = self.estimates.duration_s(first.duration_signature)
        if first.memory_mib is not None:
            is_given = not first.attempts  # later it is a guess, raised because it ran out of memory
            return Request(first.num, signature, first.memory_mib * size, duration_s, first.alone, is_given)
        most_mib = self._largest_mib()
        known_mib = self.estimates.memory_mib(signature, most_mib)
        if known_mib is not None and most_mib is not None and known_mib > most_mib:
            # Learned under another limit, or no figure of ours: one of them, alone, shows what they need here.
            return Request(first.num, signature, None, duration_s, alone=True)
        memory_mib = known_mib if known_mib is not None else self.guess_mib
        return Request(first.num, signature, memory_mib, duration_s, first.alone)

    def _halve(self, group: Sequence[Job]) -> None:
        """Has jobs that are too many together start as two groups."""
        for job in group:
            job.most_fused = len(group) // 2
        self._has_changed = True

    def _largest_mib(self) -> int | None:
        """What the largest device has; None: nobody knows."""
        totals = [device.total_mib for device in self.devices]
        known = [total for total in totals if total is not None]
        return max(known) if known and len(known) == len(totals) else None

    def _start(self, group: Sequence[Job], placement: Placement, now_s: float) -> None:
        self._has_told_stuck = False
        if not self.running:
            self._kernel_kills = self.read_kernel_kills()  # kills until now were not ours
        request = self._request(group)
        for job in group:
            job.alone = request.alone
        logs: list[Path] = []
        try:
            numbers = [next_attempt(job.folder) for job in group]
            logs = [RunPaths(job.folder).attempt_log(number) for job, number in zip(group, numbers, strict=True)]
            for log in logs[1:]:
                log.parent.mkdir(parents=True, exist_ok=True)
                log.write_text(f"Ran in one process with other jobs, whose output is in {logs[0]}\n", encoding="utf-8")
            env = {"FLGO_HYDRA_ATTEMPT": str(numbers[0]), **self._device_env(placement.device)}
            env |= {WHY_APART: why} if (why := self._apart.get(group[0].fuse_key)) else {}
            is_group = len(group) > 1 or self._fuses(group[0].fuse_key)
            tokens = self.pool.start_group([job.payload for job in group], logs[0], group[0].cwd, env, is_group)
        except OSError as error:
            with contextlib.suppress(OSError):
                for log in logs:  # of an attempt that never was
                    log.unlink(missing_ok=True)
            self._cannot_start(group, placement, now_s, error)
            return
        for job, token, number, log in zip(group, tokens, numbers, logs, strict=True):
            self.waiting.remove(job)
            job.state = "running"
            job.progress = {}
            self.running[token] = Running(
                job, token, placement, number, log, now_s, tokens[0], len(group), expected_mib=request.memory_mib
            )
            values = {"attempt": number, "device": placement.device, "log": str(log)}
            self._events.append(Event("started", job, values))

    def _cannot_start(self, group: Sequence[Job], placement: Placement, now_s: float, error: OSError) -> None:
        """What becomes of jobs that could not be started: they wait for what is missing, or fail with the reason."""
        is_missing = error.errno in _MISSING
        if is_missing and self.running:  # those have what is missing, and will give it back
            for job in group:
                job.not_before_s = now_s + max(self.backoff_s, _LOOK_AGAIN_S)
            return
        self._has_changed = True  # its place is free for others
        if error.errno in _OF_SIZE and len(group) > 1:
            self._most_fused = len(group) // 2
            _log.warning(
                "%d jobs cannot be started as one program (%s): %d at once from here on%s.",
                *(len(group), error.strerror, self._most_fused),
                "" if error.errno == errno.ENOMEM else "; `ulimit -n` allows for more",
            )
            return
        if not is_missing and len(group) > 1:  # the folder of one is no reason for the others
            for job in group:
                job.most_fused = 1
            return
        failure = Failure(NOT_STARTED if is_missing else "error", f"could not be started: {error}")
        for job in group:
            number = len(job.attempts) + 1
            job.attempts.append(Attempt(number, placement.device, "", 0.0, group_size=len(group), failure=failure))
            retry = decide(job.attempts, self.max_retries, self.backoff_s)
            if retry is None:
                self.waiting.remove(job)
                self._end(job, "failed", failure)
            else:
                job.not_before_s = now_s + retry.after_s
                values = {"failure": failure, "attempt": number, "after_s": retry.after_s, "log": ""}
                self._events.append(Event("retry", job, {**values, "memory_mib": None, "alone": job.alone}))

    def _device_env(self, device_id: str) -> dict[str, str]:
        if device_id == CPU:
            return {"CUDA_VISIBLE_DEVICES": ""}
        env = {"CUDA_VISIBLE_DEVICES": device_id, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        device = next((device for device in self.devices if device.id == device_id), None)
        is_empty = all(running.placement.device != device_id for running in self.running.values())
        if device_id in self._context_mib:
            env["FLGO_HYDRA_CONTEXT_MIB"] = str(self._context_mib[device_id])
        elif is_empty and device is not None and device.total_mib is not None and device.free_mib is not None:
            # Alone on its device a job can measure the context: what is used now is not its own.
            env["FLGO_HYDRA_USED_MIB"] = str(device.total_mib - device.free_mib)
        return env

    def running_jobs(self) -> list[RunningJob]:
        """What runs, as the scheduler sees it: a process is a job."""
        return [
            RunningJob(
                job=running.job.num,
                device=running.placement.device,
                signature=group_signature(running.job, running.group_size),
                memory_mib=running.memory_mib,
                reserved_mib=running.placement.reserved_mib,
                started_s=running.started_s,
                expected_mib=running.expected_mib,
                alone=running.job.alone,
            )
            for running in self.running.values()
            if running.token == running.leader
        ]

    def _wait_s(self, now_s: float) -> float | None:
        """Seconds until the clock alone may change something."""
        waits = [job.not_before_s - now_s for job in self.waiting if job.not_before_s > now_s]
        ready = [job for job in self.waiting if job.not_before_s <= now_s]
        if ready:
            asked = [self._request(group) for group in self._groups(ready)]
            wait_s = self._asked_wait_s(asked, self.running_jobs(), now_s)
            if wait_s is None and not self.running:
                wait_s = _LOOK_AGAIN_S  # there is no job whose end could bring a place
            waits += [] if wait_s is None else [wait_s]
            waits += [] if self._chance_s is None else [self._chance_s - now_s]
        for running in self.running.values():
            if self.timeout_s is not None and running.ended_for is None:
                waits.append(self.timeout_s - self._seconds(running, now_s))
            if running.asked_s is not None and self._is_asked_to_end(running.leader):
                waits.append(running.asked_s + self.grace_s - now_s)
        return max(0.0, min(waits)) if waits else None

    # what becomes of it

    def _hear(self, event: Started | Message | Ended) -> None:
        running = self.running.get(event.token)
        if running is None:
            return
        if isinstance(event, Started):
            running.started_s = self.clock()
            self._has_changed = True
        elif isinstance(event, Message):
            self._hear_message(running, event.values)
        else:
            self._has_changed = True
            del self.running[event.token]
            self._end_attempt(running, event)

    def _hear_message(self, running: Running, values: dict[str, Any]) -> None:
        job = running.job
        if values["kind"] == "memory":
            if "memory_mib" in values:
                self._has_changed = True
                running.memory_mib = max(running.memory_mib or 0, round(values["memory_mib"]))
            if "context_mib" in values:
                self._context_mib[running.placement.device] = round(values["context_mib"])
        elif values["kind"] == "end":
            running.end_message = values
        elif values["kind"] != "unreadable":
            if values["kind"] == "round" and "round" in values:
                running.round = values["round"]
                job.progress = values
                if running.round >= 1 and not running.has_learned and running.memory_mib is not None:
                    # After its first round and evaluation a job has seen nearly all it will need.
                    running.has_learned = True
                    self._has_changed = True
                    running.expected_mib = running.memory_mib
                    self.estimates.learn_memory(group_signature(job, running.group_size), running.memory_mib)
            self._events.append(Event("report", job, values))

    def _end_attempt(self, running: Running, ended: Ended) -> None:
        job = running.job
        is_apart = running.end_message is not None and running.end_message.get("status") == "apart"
        if is_apart and running.ended_for:  # it has heard that it shall end, and ended so
            assert running.end_message is not None
            running.end_message = {**running.end_message, "has_heeded_stop": True}
        elif is_apart:
            assert running.end_message is not None
            # It has lost nothing, and neither it nor its like shall start together again.
            self._apart.setdefault(job.fuse_key, str(running.end_message.get("why", "")))
            job.state = "waiting"
            self.waiting.insert(0, job)
            return
        end = self._describe(running, ended)
        failure = classify(end)
        seconds = self.clock() - running.started_s
        placement = running.placement
        job.attempts.append(
            Attempt(
                number=running.number,
                device=placement.device,
                log=str(running.log),
                seconds=seconds,
                round=running.round,
                peak_mib=end.peak_mib,
                reserved_mib=placement.reserved_mib if placement.reserved_mib is not None else running.expected_mib,
                alone=job.alone,
                group_size=running.group_size,
                failure=failure,
            )
        )
        job.result = ended.result if end.is_complete or end.error is not None else b""
        if failure is None:
            message = running.end_message
            job.is_pruned = message is not None and bool(message.get("has_heeded_prune"))
            if end.peak_mib is not None and running.token == running.leader:
                self.estimates.learn_memory(group_signature(job, running.group_size), end.peak_mib)
            # A later attempt goes on from a checkpoint.
            if running.number == 1 and running.group_size == 1 and not job.is_pruned:
                self.estimates.learn_duration(job.duration_signature, seconds)
            forget_failure(RunPaths(job.folder))  # of an earlier sweep in it
            return self._end(job, "done", None)
        retry = None if self.stop_level or running.ended_for else decide(job.attempts, self.max_retries, self.backoff_s)
        if retry is None:
            state: State = failure.kind if failure.kind in ("cancelled", "stopped") else "failed"
            return self._end(job, state, failure)
        if running.group_size > 1:
            # What does not fit goes again in halves; what crashes, alone, so that it takes no others along.
            job.most_fused = running.group_size // 2 if failure.kind == "out_of_memory" else 1
        job.state = "waiting"
        job.not_before_s = self.clock() + retry.after_s
        job.memory_mib = retry.memory_mib if retry.memory_mib is not None else job.memory_mib
        job.alone = retry.alone or self._is_too_large(retry.memory_mib)
        # First in the queue: it has waited longest, and what it needs is known best.
        self.waiting.insert(0, job)
        values = {"failure": failure, "attempt": running.number, "after_s": retry.after_s, "log": str(running.log)}
        self._events.append(Event("retry", job, {**values, "memory_mib": retry.memory_mib, "alone": job.alone}))

    def _is_too_large(self, memory_mib: int | None) -> bool:
        """True when no device can promise that much: only a device of its own is left to try."""
        most_mib = self._largest_mib()
        return memory_mib is not None and most_mib is not None and memory_mib > most_mib

    def _describe(self, running: Running, ended: Ended) -> End:
        kills = self.read_kernel_kills()
        has_killed = kills is not None and self._kernel_kills is not None and kills > self._kernel_kills
        if has_killed and ended.status == -9:
            assert self._kernel_kills is not None
            self._kernel_kills += 1  # one kill explains one death
        message = running.end_message
        is_on_cpu = running.placement.device == CPU
        # Of a process that died without a word the kernel still knows the resident memory; of a GPU nobody does.
        peaks = [running.memory_mib, round(ended.peak_memory_mib) if is_on_cpu and ended.peak_memory_mib else None]
        device = next((device for device in self.devices if device.id == running.placement.device), None)
        return End(
            status=ended.status,
            error=message.get("error") if message else None,
            is_complete=message is not None and message.get("status") == "completed",
            has_heeded_stop=message is not None and bool(message.get("has_heeded_stop")),
            ended_for=running.ended_for,
            has_kernel_killed=has_killed,
            peak_mib=max((peak for peak in peaks if peak is not None), default=None),
            total_mib=device.total_mib if device is not None else None,
            is_on_cpu=is_on_cpu,
            note=ended.error,
            is_refused=ended.is_refused,
        )

    def _check_time(self) -> None:
        now_s = self.clock()
        for running in self.running.values():
            is_late = self.timeout_s is not None and self._seconds(running, now_s) >= self.timeout_s
            if running.ended_for is None and is_late:
                self._stop_attempt(running, "timeout", now=True)
            is_deaf = running.asked_s is not None and now_s >= running.asked_s + self.grace_s
            if is_deaf and self._is_asked_to_end(running.leader):
                for one in self.running.values():
                    one.asked_s = None if one.leader == running.leader else one.asked_s
                self.pool.end(running.leader, self.grace_s)

    def _is_asked_to_end(self, leader: int) -> bool:
        """Whether all jobs of a process shall end: then it may be ended with them."""
        return all(running.ended_for is not None for running in self.running.values() if running.leader == leader)

    def _seconds(self, running: Running, now_s: float) -> float:
        """Of all the job's attempts: one that crashes and continues does not win time by it."""
        return sum(attempt.seconds for attempt in running.job.attempts) + now_s - running.started_s

    def _stop_attempt(self, running: Running, why: Literal["timeout", "cancelled", "stopped"], now: bool) -> None:
        running.ended_for = running.ended_for or why
        self._has_changed = True
        if now and (why == "stopped" or running.group_size == 1):
            self.pool.end(running.token, self.grace_s)
        else:
            self.pool.request_stop(running.token)
            running.asked_s = self.clock() if now else None  # a signal would end the others too

    def _drop_waiting(self, state: Literal["stopped"], why: str) -> None:
        waiting, self.waiting = self.waiting, []
        for job in waiting:
            self._end(job, state, job.attempts[-1].failure if job.attempts else Failure("stopped", why))

    def _end(self, job: Job, state: State, failure: Failure | None) -> None:
        job.state, job.failure = state, failure
        self._events.append(Event("ended", job, {"state": state}))


def group_signature(job: Job, size: int) -> str:
    """What jobs that run as one program need in memory is theirs together."""
    return job.signature if size == 1 else f"{job.signature} x {size}"


def next_attempt(folder: Path) -> int:
    """Returns the number of the next attempt: an earlier sweep in this folder may have left logs of its own."""
    numbers = [path.stem.removeprefix("attempt-") for path in folder.glob("attempt-*.log")]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)
