"""Why an attempt failed, and whether the job deserves another: decisions over what is known of its end.

Again, where that can succeed:
- out of memory: with a larger reservation, then alone on a device, then no more. Does not count as a retry. Jobs that
  ran as one program go again in halves first;
- killed, crashed, or not started, for want of what the machine has not: up to `max_retries` times, each after twice the
  wait of the one before;
- a Python error: not in or before the first round, where it would come again. Later it counts as a crash (a full
  disk, a lost mount, a GPU that fell off the bus: worth a try, and cheap from a checkpoint), unless the same
  error has come at the same round before. An app that reports no rounds gets no retry for its errors;
- out of time, cancelled, stopped: never.
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flgo_hydra.record.plain_text import make_plain
from flgo_hydra.record.result import NOT_STARTED

Kind = Literal[
    "out_of_memory", "killed", "crashed", "not_started", "error", "timeout", "cancelled", "stopped", "impossible"
]

_MAY_PASS = ("killed", "crashed", NOT_STARTED, "error")

GROWTH = 1.3
"""Factor of the reservation after an attempt ran out of memory."""
NEAR_LIMIT = 0.9
"""A process killed with this share of the host's memory resident is taken for the kernel's out-of-memory kill."""
MAX_BACKOFF_S = 600.0

_OUT_OF_MEMORY_TYPES = {"MemoryError", "OutOfMemoryError", "_ArrayMemoryError"}
_OUT_OF_MEMORY_TEXT = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|can't allocate memory|Cannot allocate memory|std::bad_alloc"
)
_DEVICE_FAULT = re.compile(r"CUDA error: (?!device-side assert)|CUDNN_STATUS_EXECUTION_FAILED|NCCL error")
_WANTED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+) ?(bytes|KiB|MiB|GiB|TiB)")
_MIB = {"bytes": 2**-20, "KiB": 2**-10, "MiB": 1.0, "GiB": 2.0**10, "TiB": 2.0**20}


@dataclass(frozen=True)
class End:
    """What is known of an attempt that has ended."""

    # exit status; -n: killed by signal n; None: it never ran
    status: int | None
    # the exception it reported: type, message, traceback, and `chain`, (type, message) of it and its causes
    error: dict[str, Any] | None = None
    # it reported a result
    is_complete: bool = False
    # it wound up because the launcher asked it to
    has_heeded_stop: bool = False
    # why the launcher ended it, if it did
    ended_for: Literal["timeout", "cancelled", "stopped"] | None = None
    # the kernel counted an out-of-memory kill among our processes since the last one we know of
    has_kernel_killed: bool = False
    # largest memory of the process, MiB; None: unknown
    peak_mib: int | None = None
    # memory of its device, or of the host, MiB; None: unknown
    total_mib: int | None = None
    # whether memory is the host's
    is_on_cpu: bool = True
    # why it never ran
    note: str = ""
    # the machine did not let it start
    is_refused: bool = False


@dataclass(frozen=True)
class Failure:
    """Why an attempt did not end with a result."""

    kind: Kind
    message: str
    traceback: str = ""
    # at least this much memory would have been needed, MiB; None: unknown, or memory was not the cause
    wanted_mib: int | None = None

    def __post_init__(self) -> None:
        make_plain(self, "message", "traceback")


@dataclass(frozen=True)
class Attempt:
    """One process of a job, on record."""

    number: int
    device: str
    log: str
    # seconds it ran
    seconds: float = 0.0
    # last round it reported; None: none
    round: int | None = None
    peak_mib: int | None = None
    reserved_mib: int | None = None
    alone: bool = False
    # jobs that ran in its process
    group_size: int = 1
    # None: it ended with a result
    failure: Failure | None = None


@dataclass(frozen=True)
class Retry:
    """Try again."""

    after_s: float = 0.0
    # expected peak of the next attempt, MiB; None: as before
    memory_mib: int | None = None
    alone: bool = False


def classify(end: End) -> Failure | None:
    """Returns why the attempt failed; None: it has a result."""
    if end.is_complete and end.error is None and not end.has_heeded_stop:
        return None
    if end.error is not None and end.ended_for != "timeout":
        return _classify_error(end.error, end.peak_mib)
    if end.ended_for is not None and (end.status != 0 or end.has_heeded_stop):
        told = {"timeout": "took longer than `hydra.launcher.timeout_min`", "cancelled": "was cancelled"}
        return Failure(end.ended_for, told.get(end.ended_for, "was stopped"))
    if end.is_complete and end.error is None:
        return Failure("stopped", "was stopped at a round boundary")
    if end.status is None:
        return Failure(NOT_STARTED if end.is_refused else "crashed", end.note or "could not be started")
    if end.status == -signal.SIGKILL and end.is_on_cpu and (end.has_kernel_killed or _is_near_limit(end)):
        return Failure("out_of_memory", "was killed by the kernel for want of memory", wanted_mib=end.peak_mib)
    if end.status < 0:
        return Failure("killed", f"was killed by {_signal_name(-end.status)}")
    if end.status == 0:
        return Failure("crashed", "exited by itself without a result")
    return Failure("crashed", f"exited by itself with status {end.status}")


def decide(attempts: Sequence[Attempt], max_retries: int, backoff_s: float) -> Retry | None:
    """Returns how to try again after the last of these attempts failed; None: not at all."""
    last = attempts[-1]
    assert last.failure is not None
    if last.failure.kind == "out_of_memory":
        return _decide_memory(attempts)
    if last.failure.kind == "error" and not _may_pass(attempts):
        return None
    if last.failure.kind not in _MAY_PASS:
        return None
    num_before = sum(a.failure is not None and a.failure.kind in _MAY_PASS for a in attempts[:-1])
    if num_before >= max_retries:
        return None
    return Retry(min(backoff_s * 2**num_before, MAX_BACKOFF_S), alone=last.alone)


def _decide_memory(attempts: Sequence[Attempt]) -> Retry | None:
    last = attempts[-1]
    assert last.failure is not None
    if last.group_size > 1:
        return Retry()
    own = [attempt for attempt in attempts if attempt.group_size == 1]
    num_times = sum(a.failure is not None and a.failure.kind == "out_of_memory" for a in own)
    if num_times >= 3 or last.alone:
        return None
    observed = max((value for value in (last.peak_mib, last.failure.wanted_mib) if value is not None), default=None)
    base = last.reserved_mib if last.reserved_mib is not None else observed
    larger = None if base is None else max(observed or 0, round(GROWTH * base))
    # With nothing known there is nothing to enlarge.
    return Retry(memory_mib=larger, alone=num_times == 2 or larger is None)


def _may_pass(attempts: Sequence[Attempt]) -> bool:
    last = attempts[-1]
    assert last.failure is not None
    if _DEVICE_FAULT.search(last.failure.message):
        return True
    if last.round is None or last.round < 1:
        return False
    same = (last.round, last.failure.message)
    return all(a.failure is None or (a.round, a.failure.message) != same for a in attempts[:-1])


def _classify_error(error: dict[str, Any], peak_mib: int | None) -> Failure:
    message = f"{error.get('type', 'Error')}: {error.get('message', '')}".rstrip(": ")
    traceback = str(error.get("traceback", ""))
    for type_name, text in error.get("chain") or [(error.get("type", ""), error.get("message", ""))]:
        if str(type_name).rpartition(".")[2] in _OUT_OF_MEMORY_TYPES or _OUT_OF_MEMORY_TEXT.search(str(text)):
            return Failure("out_of_memory", message, traceback, wanted_mib(str(text), peak_mib))
    return Failure("error", message, traceback)


def wanted_mib(message: str, peak_mib: int | None) -> int | None:
    """Returns the memory at which an allocation failed: what the process had, and what it asked for besides."""
    found = _WANTED.search(message.replace("you tried", "tried"))
    if found is None:
        return peak_mib
    return (peak_mib or 0) + round(float(found[1]) * _MIB[found[2]])


def _is_near_limit(end: End) -> bool:
    return end.peak_mib is not None and end.total_mib is not None and end.peak_mib >= NEAR_LIMIT * end.total_mib


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
