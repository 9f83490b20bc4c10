"""Several jobs as one program, in one process.

An app offers it with two functions beside its task function: `fuse_key(cfg)`, the same text for jobs that can run
together (empty: with no other), and `job_group(jobs, fuse)`, which runs them, `fuse` at once at most: one too, if it is
the last of its kind. Hydra prepares each job as it always does (its
folder, its `.hydra`, its log file); what the task function would have computed, `job_group` computes for all.
Each job has its own line to the launcher, and ends by itself, with a result or an error.
"""

import contextlib
import logging
import pickle
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flgo_hydra.launch.processes import worker
from flgo_hydra.launch.processes.channel import Channel
from flgo_hydra.launch.processes.task_reference import load_task
from flgo_hydra.launch.reporter import Reporter, RunApart

_RESERVE_BYTES = 2**20


@dataclass
class Member:
    """One of the jobs that `job_group` runs (a `GroupJob`)."""

    cfg: Any
    """its composed config, without Hydra's node"""
    folder: Path
    """its run folder"""
    reporter: Reporter
    """its line to the launcher"""
    _channel: Channel
    _returned: Any
    _handlers: list[logging.Handler] = field(default_factory=list)
    _hydra: Any = None
    is_ended: bool = False

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """While open, `HydraConfig` is this job's, and what is logged goes where its own config says."""
        from hydra.core.hydra_config import HydraConfig

        root, hydra = logging.getLogger(), HydraConfig.instance()
        before = root.handlers, hydra.cfg
        root.handlers, hydra.cfg = self._handlers, self._hydra
        try:
            yield
        finally:
            root.handlers, hydra.cfg = before

    def finish(self, value: Any) -> None:
        """Ends the job with the value that its task function would have returned."""
        self._returned.return_value = value
        self._end(None)

    def fail(self, error: BaseException) -> None:
        """Ends the job with the error that its task function would have raised."""
        from hydra.core.utils import JobStatus

        self._returned.status = JobStatus.FAILED
        self._returned.return_value = error
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        with self.current():
            worker.tell_end(self._channel, self._returned, error)
        self.is_ended = True


def run(channels: Sequence[Channel]) -> int:
    """Runs the jobs in the channels' files and returns the exit status of the process."""
    reserve = bytearray(_RESERVE_BYTES)  # to have something to report with when memory is what ran out
    signal.signal(signal.SIGTERM, worker.terminate)
    memory = worker.MemoryReport(channels[0])
    channels[0].watch(worker.LOOK_S, memory.tell)
    for channel in channels[1:]:
        channel.watch(worker.LOOK_S, lambda: None)
    jobs: list[Member] = []
    group_function, fuse = None, 1
    for channel in channels:
        assignment: worker.Assignment = pickle.loads(channel.read_payload())
        worker.set_threads(assignment.num_threads)
        fuse = assignment.fuse
        module = sys.modules[load_task(assignment.task).__module__]
        group_function = getattr(module, "job_group")  # noqa: B009  # the launcher has seen it
        line = worker.make_reporter(channel, memory if channel is channels[0] else None)
        try:
            jobs.append(_prepare(assignment, channel, line))
        except Exception as error:  # a folder that cannot be made
            worker.tell_end(channel, None, error)
    failure: BaseException | None = None
    try:
        if group_function is not None and jobs:
            group_function(jobs, fuse)
    except KeyboardInterrupt:  # stopped at a round boundary: jobs that have not ended go on another time
        if not any(job._channel.has_been_told_to_stop for job in jobs):
            raise
        for job in jobs:
            if not job.is_ended:
                job._channel.send({"kind": "end", "status": "stopped", "has_heeded_stop": True})
        memory.tell(is_last=True)
        return worker.EXIT_STOPPED
    except RunApart as why:
        if why.__cause__ is not None:
            traceback.print_exception(why.__cause__)
        print(f"these jobs run one by one from here: {why}", file=sys.stderr)
        memory.tell(is_last=True)
        for job in jobs:
            if not job.is_ended:
                job._channel.send({"kind": "end", "status": "apart", "why": str(why)})
        return 0
    except Exception as raised:
        failure = raised
    del reserve
    memory.tell(is_last=True)
    for job in jobs:
        if not job.is_ended:
            job.fail(failure or RuntimeError("the group left this job without a result"))
    return 0 if failure is None else worker.EXIT_FAILED


def _prepare(assignment: worker.Assignment, channel: Channel, line: Reporter) -> Member:
    """Has Hydra prepare a job, whose task function only notes what it was given."""
    from hydra.core.hydra_config import HydraConfig

    noted: dict[str, Any] = {}

    def note(cfg: Any) -> None:
        noted.update(cfg=cfg, folder=Path(HydraConfig.get().runtime.output_dir))
        noted["handlers"] = logging.getLogger().handlers[:]
        noted["hydra"] = HydraConfig.instance().cfg

    returned = worker.run_job(assignment, note)
    if returned.status.name == "FAILED":
        raise returned._return_value
    return Member(noted["cfg"], noted["folder"], line, channel, returned, noted["handlers"], noted["hydra"])
