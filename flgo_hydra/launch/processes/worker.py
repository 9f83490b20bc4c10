"""What runs in a job's process: one composed config through Hydra's `run_job`, its end told whatever it is.

The config comes composed and pickled, so a worker needs none of Hydra's singletons but the job's own: `${now:}` has
been answered in the launcher, once for all jobs. What goes back are a message `end` and, beside it, the pickled
`JobReturn`; a value or an exception that cannot travel is replaced by its text.

Memory is the process's own report, since NVML's figures by process are missing or wrong in containers:
- on a CPU the largest resident memory. It counts the pages of torch that all workers share, about 0.2 GiB;
- on a GPU the most that torch's allocator has reserved, plus the CUDA context, which no call tells. A job that is
  alone on its device measures it (what the device has given away, less the allocator's part, less what was given
  away before the job began) and the launcher passes it on; until then it is taken to be `CONTEXT_MIB`.
"""

import contextlib
import functools
import logging
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from flgo_hydra.launch import reporter
from flgo_hydra.launch.processes.channel import Channel
from flgo_hydra.launch.processes.messages import OWN_KINDS
from flgo_hydra.launch.processes.task_reference import TaskReference, load_pickled, load_task
from flgo_hydra.machine_errors import refused_by_storage
from flgo_hydra.record.plain_text import message_of, traceback_of

CONTEXT_MIB = 512
LOOK_S = 1.0
"""Seconds between looks at the job's memory."""
EXIT_FAILED = 1
EXIT_STOPPED = 128 + signal.SIGINT
_EXIT_TERMINATED = 128 + signal.SIGTERM
_RESERVE_BYTES = 2**20


@dataclass(frozen=True)
class Assignment:
    """One job as it travels: first what is needed to find its classes, then the pickles that name them."""

    task: TaskReference
    # pickled HydraContext and composed config
    context: bytes
    config: bytes
    job_name: str
    num_threads: int
    # `hydra.launcher.fuse`; 1: off
    fuse: int = 1
    # what `hydra.main(version_base=…)` set: Hydra 1.3 changes the working folder by it
    version_base: Any = None


def run(channel: Channel) -> int:
    """Runs the job in the channel's file and returns the exit status of the process."""
    reserve = bytearray(_RESERVE_BYTES)  # to have something to report with when memory is what ran out
    signal.signal(signal.SIGTERM, terminate)
    memory = MemoryReport(channel)
    channel.watch(LOOK_S, memory.tell)

    reporter.connect(make_reporter(channel, memory))
    returned: Any = None
    failure: BaseException | None = None
    try:
        assignment: Assignment = pickle.loads(channel.read_payload())
        set_threads(assignment.num_threads)
        returned = run_job(assignment, load_task(assignment.task))
        failure = returned._return_value if returned.status.name == "FAILED" else None
    except Exception as raised:  # outside the task function: an import, a callback, a folder that cannot be made
        failure = raised
    except KeyboardInterrupt:  # how an app may end when it was asked to stop
        if not channel.has_been_told_to_stop:
            raise
        channel.send({"kind": "end", "status": "stopped", "has_heeded_stop": True})
        return EXIT_STOPPED
    del reserve
    memory.tell(is_last=True)
    tell_end(channel, returned, failure)
    return 0 if failure is None else EXIT_FAILED


def make_reporter(channel: Channel, memory: "MemoryReport | None") -> reporter.Reporter:
    """Returns the line of the job at this channel's end."""

    def report(message: dict[str, Any]) -> None:
        if message["kind"] in OWN_KINDS:  # an app that says so would be believed
            return
        if memory is not None:
            memory.tell()  # first, so that the launcher knows the memory of the round it hears of
        channel.send(message)

    return reporter.Reporter(report, channel.is_stopping, channel.prune_reason)


def tell_end(channel: Channel, returned: Any, failure: BaseException | None) -> None:
    """Sends a job's end, and leaves its `JobReturn` where there is one."""
    from flgo_hydra.launch.processes.returned import pack  # imports Hydra

    error: dict[str, Any] | None = None
    if failure is not None:
        error = describe(failure, with_causes=returned is None)
        print(error["traceback"], file=sys.stderr)
        if not hasattr(returned, "_remote_traceback"):
            _log_to_files(error)
    if returned is not None:
        channel.write_result(pack(returned, error))
    channel.send(
        {
            "kind": "end",
            "status": "completed" if error is None else "failed",
            "error": error,
            "has_heeded_stop": channel.has_been_told_to_stop,
            "has_heeded_prune": channel.has_been_told_to_prune,
        }
    )


@functools.cache
def prepare() -> None:
    """Does what every job needs first; the forkserver does it once, before it forks."""
    from hydra.core.utils import setup_globals
    from omegaconf import OmegaConf

    setup_globals()
    # OmegaConf's parser builds its tables as it meets each form of interpolation for the first time: 20 ms in all.
    forms = ["${b.c}/${b.c}.log", "${now:%Y-%m-%d}/${now:%H-%M-%S}", "${oc.env:NONE,${b.c}}", "[%(asctime)s] x"]
    node = OmegaConf.create({"a": forms, "b": {"c": 1}})
    OmegaConf.to_yaml(OmegaConf.masked_copy(node, ["a", "b"]), resolve=True)


def run_job(assignment: Assignment, task_function: Callable[[Any], Any]) -> Any:
    """Runs `task_function` on the composed config as Hydra runs a job, and returns its `JobReturn`."""
    from hydra.core.utils import JobRuntime
    from hydra.core.utils import run_job as run
    from hydra.version import VersionBase

    prepare()
    if assignment.version_base is not None:
        VersionBase.instance().setbase(assignment.version_base)
    context = load_pickled(assignment.context, assignment.task)
    config = load_pickled(assignment.config, assignment.task)
    JobRuntime.instance().set("name", assignment.job_name)
    try:
        return run(
            hydra_context=context,
            task_function=task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
    except OSError as error:  # Hydra could not write: what the task raises stands in the return
        refused = refused_by_storage(error)
        if refused is None:
            raise
        raise refused from error


def set_threads(num_threads: int) -> None:
    """Two jobs with two threads each on two cores are 4 to 6 times as slow as with one thread each."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()  # forked: else every job begins with the forkserver's state
    if "torch" in sys.modules:  # where not, the environment says it
        sys.modules["torch"].set_num_threads(num_threads)


class Terminated(SystemExit):
    """The end that a signal has asked for: a kind of its own, so that no job takes it for its code's `sys.exit()`."""


def terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the job by an exception, so that a file being written is cleaned up."""
    raise Terminated(_EXIT_TERMINATED)


class MemoryReport:
    """Tells the launcher the job's peak whenever it has grown."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._told_mib = 0.0
        self._used_before_mib = _env_mib("FLGO_HYDRA_USED_MIB")
        self._context_mib = _env_mib("FLGO_HYDRA_CONTEXT_MIB")

    def tell(self, is_last: bool = False) -> None:
        """Sends the peak so far if it is 2 % (and 1 MiB) more than what was told, or at the end."""
        values = self._read()
        if is_last or values["memory_mib"] > max(1.02 * self._told_mib, self._told_mib + 1):
            self._told_mib = values["memory_mib"]
            self._channel.send({"kind": "memory", **values})

    def _read(self) -> dict[str, float]:
        torch = sys.modules.get("torch")
        cuda = getattr(torch, "cuda", None)
        if cuda is None or not cuda.is_initialized():
            return {"memory_mib": resident_mib()}
        with contextlib.suppress(Exception):  # a CUDA fault of the job is not the report's to raise
            values = {}
            if self._context_mib is None and self._used_before_mib is not None:
                free, total = cuda.mem_get_info()
                context_mib = (total - free - cuda.memory_reserved()) / 2**20 - self._used_before_mib
                if 0 < context_mib < 8 * CONTEXT_MIB:
                    self._context_mib = values["context_mib"] = context_mib
            context = CONTEXT_MIB if self._context_mib is None else self._context_mib
            return {"memory_mib": cuda.max_memory_reserved() / 2**20 + context, **values}
        return {"memory_mib": self._told_mib}


def resident_mib() -> float:
    """Returns the largest resident memory of this process so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _env_mib(name: str) -> float | None:
    return float(os.environ[name]) if name in os.environ else None


def describe(error: BaseException, with_causes: bool = False) -> dict[str, Any]:
    """Returns type, message and traceback of an exception as text, and the types and messages of its causes.

    Args:
        with_causes: the message tells them too. Of what Python, Hydra or a library did around a job's code, the cause
            is what its user can mend.
    """
    chain: list[tuple[str, str]] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 16:
        chain.append((_type_name(cause), message_of(cause)))
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    lines = traceback_of(error)
    # The frames still hold what the job had allocated.
    traceback.clear_frames(error.__traceback__)
    causes = [f"{name}: {text}" for name, text in chain[1:] if text not in chain[0][1]] if with_causes else []
    message = f"{chain[0][1]} ({'; '.join(causes)})" if causes else chain[0][1]
    return {"type": _type_name(error), "message": message, "traceback": lines, "chain": chain}


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _log_to_files(error: dict[str, Any]) -> None:
    """Writes the traceback into the job's log file, as Hydra 1.4 does by itself; the console has it already."""
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "Job failed\n%s", (error["traceback"],), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
