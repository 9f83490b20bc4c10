"""Hydra's launcher of flgo_hydra: jobs of a sweep side by side on this machine's GPUs or cores, none lost.

`launch` is Hydra's contract, for any sweeper and any app: one `JobReturn` a job, in order, whatever became of it.
A sweeper that knows this launcher uses `watching`, `submit`, `next_event` and `arrived` instead: a slot is filled
again as soon as it is free, not when a batch has ended. `launch` itself is a loop over them.

Nothing here keeps a job that has ended and been told of; what has come from it is whoever's who asks for it.

Jobs are composed here, one at a time while others run, and travel to their workers by pickle: composing needs
Hydra's singletons, and `${now:}` must mean the same in every job. What has been composed to be checked is not composed
again (`Composer.take`). Processes, devices and retries are the queue's.
"""

import contextlib
import json
import logging
import os
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flgo_hydra import reference
from flgo_hydra.composer import Composer, number_config, run_folder, without_hydra
from flgo_hydra.config.conf import Conf
from flgo_hydra.config.launcher import LauncherConf
from flgo_hydra.launch.failures import Failure
from flgo_hydra.launch.processes.returned import Arrived, Returned, unpack
from flgo_hydra.launch.processes.server_process import PRELOAD, worker_env
from flgo_hydra.launch.processes.task_reference import TaskReference, find_task
from flgo_hydra.launch.processes.worker import Assignment
from flgo_hydra.launch.queue import Event, Job, Queue
from flgo_hydra.launch.reporter import THREADS
from flgo_hydra.launch.scheduling.estimates import Estimates, default_path, machine_key
from flgo_hydra.launch.scheduling.kernel_kills import read_kernel_kills
from flgo_hydra.launch.scheduling.scheduler import Device, RunningJob, Scheduler
from flgo_hydra.machine_errors import tells_of_storage
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.plain_text import message_of, printable, traceback_of
from flgo_hydra.record.result import Failure as FailureRecord
from flgo_hydra.record.result import forget_failure, read_failure, write_failure

if TYPE_CHECKING:  # Hydra imports this module for single runs too
    from flgo_hydra.launch.view import View

log = logging.getLogger(__name__)

SCHEDULERS = {
    "basic": "flgo_hydra.launch.scheduling.scheduler.BasicScheduler",
    "random": "flgo_hydra.launch.scheduling.scheduler.RandomScheduler",
    "auto": "flgo_hydra.launch.scheduling.auto.AutoScheduler",
    "ledger": "flgo_hydra.launch.scheduling.ledger.LedgerScheduler",
}
_PRELOAD_PACKAGES = ("hydra", "hydra_plugins", "omegaconf", "antlr4", "yaml")
"""What the launcher has imported of these by the time it starts a job, jobs need too."""
_OWN_CALLBACK = "flgo_hydra.launch.owner.RunOwner"
_MOST_WAITING = 64
"""Jobs composed ahead of the slots: enough to put the longest first, few enough to keep in memory."""
_SHARE = 0.5
"""Expected peak of an unknown job on the CPU, of its slot's share of the host's memory."""
_TICK_S = 1.0


class JobFailed(RuntimeError):
    """Why a job has no result; what `JobReturn.return_value` raises."""


class PackingLauncher(Launcher):
    """Runs jobs in processes of their own, as many at once as the scheduler finds room for."""

    def __init__(self, **settings: Any) -> None:
        plain = {key: _plain(value) for key, value in settings.items()}
        self.settings = LauncherConf(**{"_target_": "", **plain})
        if self.settings.scheduler is not None:
            make_scheduler(self.settings.scheduler)  # to refuse a wrong one at once
        self._config: DictConfig | None = None
        self._queue: Queue | None = None
        self._interrupts = 0
        self._view: View | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config = config
        self._hydra_context = hydra_context
        self._task = find_task(task_function)
        # An app may say which of its jobs can run as one program, and how: see `processes/group.py`.
        app = sys.modules.get(getattr(task_function, "__module__", ""))
        self._fuse_key = getattr(app, "fuse_key", None) if hasattr(app, "job_group") else None
        version_base = VersionBase.instance().getbase()
        self._version_base = None if type(version_base) is object else version_base
        # A job needs the callbacks only; Hydra 1.3's loader cannot be pickled where Hydra was started twice.
        self._context = pickle.dumps(replace(hydra_context, config_loader=None))  # type: ignore[arg-type]
        self.composer = Composer(hydra_context.config_loader, config)

    # Hydra's contract

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs a batch and returns what became of each job, in order.

        All of it is the caller's, as Hydra has it: each `JobReturn` holds its job's value and its config, packed.

        Raises:
            KeyboardInterrupt: after Ctrl-C (or SIGTERM), when everything has stopped.
        """
        assert self._config is not None
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        Path(str(self._config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        to_submit = list(enumerate(job_overrides, start=initial_job_idx))
        to_submit.reverse()
        returns: dict[int, JobReturn] = {}
        with self.watching(len(job_overrides)) as queue:
            while to_submit or not queue.is_idle:
                may_submit = bool(to_submit) and not queue.stop_level and len(queue.waiting) < _MOST_WAITING
                if may_submit:
                    num, overrides = to_submit.pop()
                    self.submit(overrides, num)
                elif queue.stop_level:
                    to_submit.clear()
                queue.expect_more(bool(to_submit) and may_submit)
                # With jobs still to compose, only look at what has happened meanwhile.
                event = self.next_event(timeout_s=0.0 if to_submit and may_submit else None)
                if event is not None and event.kind == "ended":
                    overrides = job_overrides[event.job.num - initial_job_idx]
                    returns[event.job.num] = self._job_return(event.job, overrides)
        if queue.stop_level:
            raise KeyboardInterrupt(f"stopped with {len(returns)} of {len(job_overrides)} jobs looked at")
        return [returns[initial_job_idx + i] for i in range(len(job_overrides))]

    # for a sweeper that fills slots as they become free

    def warm(self) -> None:
        """Starts what takes long (the workers' imports) while the caller still prepares its first job."""
        self._open_queue()
        self._pool.warm()

    @contextlib.contextmanager
    def watching(self, num_jobs: int | None = None) -> Iterator[Queue]:
        """While open, jobs are shown and Ctrl-C stops them: once at their next round boundary, twice now.

        Whatever ends the block, no job outlives it.

        Args:
            num_jobs: how many will be submitted, for the time left; None: unknown.
        """
        from flgo_hydra.launch.view import open_view

        queue = self._open_queue()
        self._interrupts = 0
        with _signals(self._interrupt), open_view(self.settings.view, queue, num_jobs) as self._view:
            try:
                yield queue
            finally:
                if not queue.is_idle:
                    queue.stop(now=True)
                    while not queue.is_idle:
                        queue.next_event()
                queue.estimates.save()
                self._view = None
                if queue.stop_level:  # it takes no more jobs; a later batch gets a new one
                    self._close_pool()
                    self._queue = None

    def submit(self, overrides: Sequence[str], num: int, name: str | None = None) -> Job:
        """Queues a job and returns it. What is wrong with its config becomes its failure.

        Args:
            num: Hydra's job number, which also names the job's folder.
            name: what people call the job; None: its overrides.
        """
        queue = self._open_queue()
        name = " ".join(filter_overrides(list(overrides))) if name is None else name
        try:
            config, conf = self.composer.take(overrides)
            composed = number_config(config, num)
            folder = run_folder(composed)
            memory_keys = self.settings.memory_keys
            assignment = Assignment(
                task=self._task,
                context=self._context,
                config=pickle.dumps(composed),
                job_name=str(composed.hydra.job.name),
                num_threads=self._num_threads,
                fuse=queue.fuse,
                version_base=self._version_base,
            )
            job = Job(
                num=num,
                payload=pickle.dumps(assignment),
                folder=folder,
                signature=signature(composed, memory_keys, self._task),
                duration_signature=signature(composed, [*memory_keys, *self.settings.duration_keys], self._task),
                memory_mib=self.settings.job_memory_mib,
                fuse_key=self._find_fuse_key(composed, conf) if queue.fuse != 1 else "",
                name=name,
                cwd=os.getcwd(),
            )
        except Exception as error:
            folder = Path(str(self._config.hydra.sweep.dir)) / str(num) if self._config is not None else Path(str(num))
            job = Job(num=num, payload=b"", folder=folder.absolute(), name=name)
            queue.refuse(job, _refusal(error, job.folder))
            return job
        forget_failure(RunPaths(folder))  # of an earlier sweep
        queue.submit(job)
        return job

    def next_event(self, timeout_s: float | None = None) -> Event | None:
        """Returns what happened next to any job, or None: ask again unless `queue.is_idle`."""
        assert self._view is not None, "events are told inside `with launcher.watching()`"
        queue = self._open_queue()
        self._heed_interrupts()
        tick_s = _TICK_S if self._view.wants_ticks else None
        waits = [wait for wait in (timeout_s, tick_s) if wait is not None]
        event = queue.next_event(min(waits, default=None))
        self._heed_interrupts()
        if event is not None and event.kind == "ended" and event.job.state == "failed":
            run = RunPaths(event.job.folder)
            try:
                write_failure(run, failure_record(event.job, read_failure(run)))
            except OSError as error:  # its folder may be what failed
                log.warning("Job %d: %s cannot be written: %s", event.job.num, run.failure, error.strerror)
                told = event.job.failure.traceback if event.job.failure is not None else ""
                if told and not tells_of_storage(told):  # of a full disk the sentence says all
                    log.warning("%s", printable(told, keeps_lines=True))
        self._view.show(event)
        return event

    def cancel(self, job: Job, now: bool = True) -> None:
        """Ends a job `now` or at its next round boundary; its `ended` event comes all the same."""
        self._open_queue().cancel(job, now)

    def prune(self, job: Job, reason: str) -> None:
        """Asks a running job to end for good, with a result, at its next round boundary."""
        self._open_queue().prune(job, reason)

    def arrived(self, job: Job) -> Arrived:
        """Returns what has come from an ended job; from one without a result `JobFailed`, which says why."""
        assert job.is_ended
        arrived: Arrived | None = None
        if job.result:
            try:
                arrived = unpack(job.result)
            except ValueError as error:
                job.failure = Failure("error", f"its result cannot be read: {error}")
        if arrived is None or (job.state != "done" and arrived.status is not JobStatus.FAILED):
            return Arrived(JobStatus.FAILED, JobFailed(explain(job)))
        return arrived

    # inside

    def _job_return(self, job: Job, overrides: Sequence[str]) -> JobReturn:
        """What Hydra's sweepers expect of an ended job."""
        config = pickle.loads(job.payload).config if job.payload else b""
        overrides = filter_overrides(list(overrides)) if config else overrides
        return Returned(config, job.folder, overrides, self.arrived(job))

    def _open_queue(self) -> Queue:
        if self._queue is None:
            self._queue = self._make_queue()
        return self._queue

    def _make_queue(self) -> Queue:
        from flgo_hydra.launch.processes.pool import Pool
        from flgo_hydra.launch.scheduling.devices import Devices

        settings = self.settings
        devices = Devices(settings.devices, settings.slots)
        num_at_once = devices.slots * max(1, len(devices.gpus))
        self._num_threads = settings.threads or max(1, devices.num_cores // num_at_once)
        preload = [*PRELOAD, *(name for name in sys.modules if name.partition(".")[0] in _PRELOAD_PACKAGES)]
        env = worker_env(self._num_threads) | ({THREADS: str(settings.threads)} if settings.threads else {})
        entries = [f"flgo_hydra.launch.processes.{module}:run" for module in ("worker", "fused")]
        self._pool = Pool(entries[0], preload, self._task, env, group_entry=entries[1])
        self._close_pool = weakref.finalize(self, self._pool.close)
        return Queue(
            pool=self._pool,
            scheduler=make_scheduler(settings.scheduler or ("ledger" if devices.is_cpu else "auto")),
            read_devices=lambda running: devices.read(own_mib(running)),
            max_retries=settings.max_retries,
            backoff_s=settings.backoff_s,
            timeout_s=None if settings.timeout_min is None else 60 * settings.timeout_min,
            grace_s=settings.grace_s,
            estimates=Estimates(machine_key(devices.name, devices.driver), default_path()),
            fuse=1 if settings.fuse == "off" else settings.fuse,
            guess_mib=_guess_mib(devices.read({})[0], devices.slots) if devices.is_cpu else None,
            read_kernel_kills=read_kernel_kills,
        )

    def _find_fuse_key(self, config: DictConfig, conf: Conf | None) -> str:
        """Jobs with the same one can run as one program; empty: this one cannot.

        Args:
            conf: the job's typed config, if it has been made.
        """
        # Callbacks and the working folder are a process's, not a job's.
        others = [one for one in (config.hydra.get("callbacks") or {}).values() if one.get("_target_") != _OWN_CALLBACK]
        if self._fuse_key is None or others or config.hydra.job.get("chdir"):
            return ""
        with without_hydra(config):
            return str(self._fuse_key(conf or config) or "")

    @property
    def is_interrupted(self) -> bool:
        """Whether Ctrl-C has been pressed, or a signal has come that means the same."""
        return self._interrupts > 0

    def _interrupt(self) -> None:
        self._interrupts += 1
        self._pool.wake()

    def _heed_interrupts(self) -> None:
        assert self._queue is not None
        level = min(self._interrupts, 2)
        if level > self._queue.stop_level:
            self._queue.stop(now=level == 2)
            assert self._view is not None
            self._view.tell_stopping(is_now=level == 2)


def make_scheduler(wanted: Any) -> Scheduler:
    """Returns the scheduler that `hydra.launcher.scheduler` names.

    Raises:
        ValueError: there is no such scheduler, or it does not take those arguments.
    """
    key = "hydra.launcher.scheduler"
    if isinstance(wanted, Scheduler):  # an object, from Python
        return wanted
    given: dict[str, Any] = {"name": wanted} if isinstance(wanted, str) else dict(wanted)
    target = given.pop("_target_", None)
    name = given.pop("name", None)
    if target is None:
        if name not in SCHEDULERS:
            raise ValueError(
                f"`{key}` must be one of {', '.join(SCHEDULERS)}, one of them with settings ({{name: auto, …}}), or a "
                f"class of your own ({{_target_: package.module.Name}}), but got {wanted!r}."
            )
        target = SCHEDULERS[name]
    scheduler = reference.call(reference.load(target, f"{key}._target_"), given, {}, key)
    if not isinstance(scheduler, Scheduler):
        raise ValueError(
            f"`{key}._target_={target}` must be a subclass of flgo_hydra.launch.scheduling.scheduler.Scheduler, but it "
            f"makes {type(scheduler).__name__}."
        )
    return scheduler


def _refusal(error: Exception, folder: Path) -> Failure:
    """Why a job cannot even be submitted. What is wrong with its config, Hydra says; all else has its traceback.

    Args:
        folder: of the job, whose failure.json has it.
    """
    if isinstance(error, HydraException | OmegaConfBaseException):
        return Failure("error", f"{type(error).__name__}: {message_of(error)}")
    told = " ".join(message_of(error).split())
    where = f"its traceback is in {RunPaths(folder).failure}"
    return Failure("error", f"{type(error).__name__}: {told} ({where})", traceback_of(error))


def own_mib(running: Sequence[RunningJob]) -> dict[str, int | None]:
    """Returns what our jobs use, by device; None where one of them has not said."""
    used: dict[str, int | None] = {}
    for job in running:
        before = used.get(job.device, 0)
        used[job.device] = None if before is None or job.memory_mib is None else before + job.memory_mib
    return used


def _guess_mib(host: Device, slots: int) -> int | None:
    return None if host.total_mib is None else round(_SHARE * host.total_mib / slots)


def signature(config: DictConfig, keys: Sequence[str], task: TaskReference) -> str:
    """Returns the app and the values of `keys` as text. Jobs of an app that has none of the keys are all alike."""
    chosen: dict[str, Any] = {}
    for key in keys:
        value = OmegaConf.select(config, key, throw_on_missing=False, throw_on_resolution_failure=False)
        if value is not None:
            chosen[key] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    app = f"{task.main_path or task.main_module or ''}:{task.module}:{task.qualname}"
    return json.dumps({"app": app, **chosen}, sort_keys=True, default=str)


def explain(job: Job) -> str:
    """Says in a line or two why a job has no result, what was tried, and where to look."""
    failure = job.failure
    text = f"Job {job.num}{f' ({job.name})' if job.name else ''} "
    if failure is None:
        return text + f"was {job.state}."
    text += failure.message if failure.kind not in ("error", "out_of_memory", "impossible") else ""
    if failure.kind == "error":
        text += f"failed: {failure.message}"
    elif failure.kind == "impossible":
        text = failure.message
    elif failure.kind == "out_of_memory":
        wanted = f"; it wanted at least {failure.wanted_mib} MiB" if failure.wanted_mib is not None else ""
        alone = ", the last time alone on its device" if job.attempts and job.attempts[-1].alone else ""
        text += f"ran out of memory{alone}{wanted}: {failure.message}. Lower `batch_size`, or use a larger device"
    text = text.rstrip(".") + "."
    if len(job.attempts) > 1:
        text += f" Attempts: {len(job.attempts)}."
    if job.attempts and job.attempts[-1].log:
        text += f" Log: {job.attempts[-1].log}"
    return text


def failure_record(job: Job, own: FailureRecord | None = None) -> FailureRecord:
    """Returns what failure.json says of a job that failed for good.

    Args:
        own: what the app has written of its last error; it knows that better.
    """
    assert job.failure is not None
    wanted = [a.failure.wanted_mib for a in job.attempts if a.failure is not None and a.failure.wanted_mib is not None]
    if own is None or job.failure.kind != "error":
        own = FailureRecord(job.failure.kind, explain(job), job.failure.traceback)
    return replace(
        own,
        attempts=[asdict(attempt) for attempt in job.attempts],
        wanted_memory_mib=max([*wanted, job.failure.wanted_mib or 0]) or None,
    )


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


@contextlib.contextmanager
def _signals(interrupt: Any) -> Iterator[None]:
    """Calls `interrupt` for Ctrl-C, SIGTERM and SIGHUP. Not outside the main thread: nobody can there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, lambda *_: interrupt())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
