"""One job: a config in, a result out. The only place where config, training and record meet."""

import importlib.metadata
import logging
import math
import os
import platform
import resource
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

import flgo_hydra
from flgo_hydra import compose, reference
from flgo_hydra.config import METRICS, Conf, FlgoConf, OptionConf, one_of
from flgo_hydra.importing import without_garbage_collection
from flgo_hydra.launch import reporter
from flgo_hydra.progress import Progress, duration
from flgo_hydra.record import files
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import (
    Failure,
    RunResult,
    read_result,
    read_rounds,
    summarize,
    write_failure,
    write_result,
)

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    import torch

    from flgo_hydra.federated.algorithm.base import Algorithm
    from flgo_hydra.federated.backend.choice import ChosenBackend
    from flgo_hydra.federated.data import Data
    from flgo_hydra.federated.rounds import Run, RunState, Status
    from flgo_hydra.federated.task import Task

_log = logging.getLogger("flgo_hydra")


def preload() -> None:
    """Imports what a job needs, for the process that a launcher forks jobs from. Computes nothing: a process that has
    used autograd cannot be forked."""
    import flgo_hydra.federated.algorithm.fedprox
    import flgo_hydra.federated.algorithm.scaffold
    import flgo_hydra.federated.backend.choice
    import flgo_hydra.federated.rounds
    import flgo_hydra.federated.task
    import flgo_hydra.record.checkpoint  # noqa: F401


def job(cfg: DictConfig) -> float:
    """Hydra's task function: runs the composed config in Hydra's job folder.

    Returns:
        the best valid_loss, or whatever `monitor` names (nan when the run diverged), for any Hydra sweeper.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    if hydra.mode == RunMode.RUN and hydra.sweeper.get("params"):
        grid = " ".join(f"{key}={value}" for key, value in hydra.sweeper.params.items())
        raise ValueError(f"This is a grid ({grid}): run it with `-m`.")
    try:
        return run(compose.to_conf(cfg), Path(hydra.runtime.output_dir)).objective
    except Exception:
        if hydra.mode == RunMode.MULTIRUN:  # a single run's error is printed by the command line
            _log.exception("the job failed")
        raise


_VALUES = ("num_rounds", "lr", "lr_schedule", "lr_decay", "early_stop", "seed", "eval_interval", "initial_weights")
"""Options in which runs of one program may differ."""
_VALUES_OR_0 = ("momentum", "weight_decay", "clip_grad")
"""The same, but 0 is another program."""


def fuse_key(cfg: DictConfig) -> str:
    """The same text for jobs that can run as one program, since they differ in values only; for our launcher."""
    conf = compose.to_conf(cfg, has_known_keys=True)
    if isinstance(conf.algorithm, FlgoConf):
        return ""
    if conf.engine.backend != "auto":  # one was asked for
        return ""
    values = {**compose.deciding(conf), "engine": asdict(conf.engine)}
    option = values["option"]
    for name in _VALUES:
        option.pop(name)
    for name in _VALUES_OR_0:
        option[name] = option[name] == 0
    values["algorithm"] = {
        name: None if isinstance(value, int | float) and not isinstance(value, bool) else value
        for name, value in values["algorithm"].items()
    }
    return compose.hash_of(values)


def job_group(jobs: Sequence[reporter.GroupJob], is_auto: bool) -> None:
    """Runs jobs of one `fuse_key` as one program; each has the folder, records and end that it would have alone.

    Args:
        is_auto: train as many of them at once as pays; else all.
    """
    from flgo_hydra.federated.backend.fused import CannotFuse, FusedBackend, Member
    from flgo_hydra.federated.rounds import RoundWork
    from flgo_hydra.federated.together import run_together
    from flgo_hydra.federated.training import LocalWork, ServerState

    runs: dict[int, _Run] = {}
    members: dict[int, Member] = {}
    stopped: list[int] = []
    never = threading.Event()

    def fail(i: int, error: Exception) -> None:
        with jobs[i].logging():
            _record_failure(RunPaths(jobs[i].folder), error)
            _log.exception("the job failed", exc_info=error)
        jobs[i].fail(error)

    def ended(i: int, how: "Status | Exception") -> None:
        if isinstance(how, Exception):
            return fail(i, how)
        with jobs[i].logging():
            try:
                result = runs[i].end(how)
            except KeyboardInterrupt as stop:
                _log.info("%s", stop)
                stopped.append(i)
                return
            result = replace(result, engine={**result.engine, **backend.note})
            write_result(runs[i].paths, result)
            _log.info("%s", describe(result))
        jobs[i].finish(result.objective)

    task, data = None, None
    for i, job in enumerate(jobs):
        paths = RunPaths(job.folder)
        try:
            conf = compose.to_conf(job.cfg)
            finished = _read_finished(conf, paths)
            if finished is not None:
                jobs[i].finish(finished.objective)
                continue
            task = check(conf) or task
            with jobs[i].logging():
                run = _prepare(conf, paths, task, job.reporter, never, data)
                data = run.data
        except Exception as error:
            fail(i, error)
            continue
        runs[i] = run
        work = LocalWork(conf.batch_size, conf.num_epochs, conf.num_steps, conf.seed)
        numbers = (conf.optimizer, conf.momentum, conf.weight_decay, conf.clip_grad)
        members[i] = Member(run.algorithm, *numbers, work, run.backend.loop)
    if not runs:
        return
    first = next(iter(runs.values()))
    engine = first.conf.engine
    switches = (switch == "auto" for switch in (engine.compile, engine.dual, engine.graph))
    backend = FusedBackend(first.model, first.data, members, is_auto, *switches)

    def train(works: Mapping[int, RoundWork]) -> dict[int, ServerState]:
        if backend.is_not_worth_it:
            for i in works:
                runs[i].watcher.save(runs[i].state)
            raise reporter.RunApart("two at once are no faster than one after the other")
        return backend.train(works)

    try:
        run_together({i: run.rounds for i, run in runs.items()}, train, backend.evaluate, ended)
    except CannotFuse as error:
        raise reporter.RunApart(str(error)) from error
    if stopped:
        raise KeyboardInterrupt


def run(conf: Conf, folder: Path) -> RunResult:
    """Runs a job in its folder, or goes on from the folder's checkpoint; a finished one is read back.

    Raises:
        ValueError: the config cannot be run; the folder holds a run of another config.
        KeyboardInterrupt: stopped by request at a round boundary, with a checkpoint.
    """
    paths = RunPaths(folder)
    finished = _read_finished(conf, paths)
    if finished is not None:
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    try:
        result = _train(conf, paths, check(conf))
    except Exception as error:
        _record_failure(paths, error)
        raise
    write_result(paths, result)
    _log.info("%s", describe(result))
    return result


def _read_finished(conf: Conf, paths: RunPaths) -> RunResult | None:
    """The result that the folder has already.

    Raises:
        ValueError: it is another config's.
    """
    finished = read_result(paths)
    if finished is not None:
        if finished.fingerprint != compose.fingerprint(conf):
            raise ValueError(
                f"{paths.folder} holds the result of another config. Choose another folder (`hydra.run.dir=…`)."
            )
        _log.info("already finished: %s", describe(finished))
    return finished


def _record_failure(paths: RunPaths, error: Exception) -> None:
    text = "".join(traceback.format_exception(error))
    write_failure(paths, Failure(type(error).__name__, str(error), text))


_checked: set[str] = set()


def check(conf: Conf) -> "Task | None":
    """Checks what the config refers to: a user's own functions and classes, data files, and the task they make.

    Returns:
        the task, which was built (or found in the cache), since a partition that its data do not allow shows only
        there; None when this process has checked such a task before.

    Raises:
        ValueError: something is missing or impossible; the error says what to do.
    """
    from flgo_hydra.federated.task import build_task

    if isinstance(conf.algorithm, FlgoConf):  # FLGo reads the task
        from flgo_hydra.federated import flgo_runner

        flgo_runner.check(conf, conf.task, conf.algorithm, compose.parameters(conf.model))
        return None
    task = None
    if repr(conf.task) not in _checked:
        task = build_task(conf.task)
        _checked.add(repr(conf.task))
    if conf.metrics is not None and conf.metrics not in _checked:
        reference.load(conf.metrics, "metrics")
        _checked.add(conf.metrics)
    if conf.metrics is None:
        one_of("monitor", conf.monitor, METRICS)  # of one's own, only round 0 can say
    for key in ("model", "algorithm"):
        part = getattr(conf, key)
        target = str(part["_target_"] if isinstance(part, dict) else part._target_)
        # Ours are there; to import them would import torch.
        if not target.startswith("flgo_hydra.") and target not in _checked:
            reference.load(target, f"{key}._target_")
            _checked.add(target)
    return task


def describe(result: RunResult) -> str:
    """One line on how a run ended."""
    if result.status == "diverged":
        return f"diverged: {result.message}"
    others = {name: value for name, value in result.best.items() if name == "test_accuracy"}
    extra = f" ({summarize(others)})" if others else ""
    return (
        f"{result.status.replace('_', ' ')} after round {result.last_round}: best {result.monitor} "
        f"{result.objective:.6f} at round {result.best_round}{extra}, {duration(result.seconds)}"
    )


@dataclass
class _Run:
    """A run that is ready to go, or under way."""

    conf: Conf
    paths: RunPaths
    device: "torch.device"
    data: "Data"
    model: "torch.nn.Module"
    algorithm: "Algorithm"
    backend: "ChosenBackend"
    state: "RunState"
    watcher: "_Watcher"
    rounds: "Run"

    def end(self, status: "Status") -> RunResult:
        """Returns the result of a run that ended so.

        Raises:
            KeyboardInterrupt: it was stopped, and has written a checkpoint.
        """
        if status == "stopped":
            self.watcher.save(self.state)
            again = f"python -m flgo_hydra.resume {shlex.quote(str(self.paths.folder))}"
            raise KeyboardInterrupt(f"stopped after round {self.state.round_num}; {again} goes on")
        reason = self.watcher.prune_reason or ""
        return _result(self.conf, self.state, status, self.device, reason, self.backend.note)


def _train(conf: Conf, paths: RunPaths, task: "Task | None") -> RunResult:
    if isinstance(conf.algorithm, FlgoConf):
        return _train_with_flgo(conf, conf.algorithm, paths)
    with without_garbage_collection():
        import torch  # noqa: F401  # here, where it is quick

    from flgo_hydra.federated.rounds import drive

    with _ctrl_c_at_round_boundary() as is_interrupted:
        run = _prepare(conf, paths, task, reporter.current(), is_interrupted)
        try:
            status = drive(run.rounds, run.backend, run.data)
        finally:
            run.watcher.progress.close()
    return run.end(status)


def _prepare(
    conf: Conf,
    paths: RunPaths,
    task: "Task | None",
    line: reporter.Reporter,
    is_interrupted: threading.Event,
    data: "Data | None" = None,
) -> _Run:
    """Makes a run ready: a new one, or one that goes on from its folder's checkpoint.

    Args:
        task: the config's, if it has been built already.
        line: to the launcher.
        is_interrupted: set when the run shall end at its next round boundary.
        data: of the task, if another run has them on the device already.
    """
    import torch

    from flgo_hydra.federated.backend.choice import build_backend
    from flgo_hydra.federated.client_state import ClientStates
    from flgo_hydra.federated.cohort import count_drawn
    from flgo_hydra.federated.data import to_data
    from flgo_hydra.federated.metrics import OwnMetrics
    from flgo_hydra.federated.model import arrange_for_cpu, build_model
    from flgo_hydra.federated.optimizer import build_optimizer
    from flgo_hydra.federated.patience import Patience
    from flgo_hydra.federated.rounds import RunState, rounds
    from flgo_hydra.federated.task import build_task
    from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

    device = resolve_device(conf.device)
    dtype = getattr(torch, conf.dtype)
    task = task or build_task(conf.task)
    data = data or to_data(task, device, dtype)
    model = build_model(compose.parameters(conf.model), task.input_shape, task.num_outputs, conf.seed, dtype)
    if conf.initial_weights:
        _load_weights(model, conf.initial_weights)
    model.to(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the one whose generator a model's dropout draws from
    if device.type == "cpu":
        arrange_for_cpu(model)
        torch.set_num_threads(_count_threads(conf, model, task.input_shape, dtype))
    algorithm, numbers = build_algorithm(compose.parameters(conf.algorithm))
    optimizer = build_optimizer(conf.optimizer, conf.momentum, conf.weight_decay)
    step = LocalStep(algorithm, optimizer, conf.clip_grad)
    work = LocalWork(conf.batch_size, conf.num_epochs, conf.num_steps, conf.seed)
    proportion = 1.0 if conf.sample == "full" else conf.proportion
    cohort_size = count_drawn(task.num_clients, proportion)
    backend = build_backend(conf.engine, model, data, step, work, cohort_size, conf.num_rounds * proportion)
    server = server_state(model, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), task.num_clients, paths.folder)
    state = RunState(server, clients, patience=Patience.start(conf.is_maximized))
    watcher = _Watcher(conf, paths, device, line, is_interrupted, backend)
    watcher.resume(state)
    own = OwnMetrics(conf.metrics, task, data) if conf.metrics is not None else None
    measure = None if own is None else lambda model, state: own(model, watcher.record_with(state))
    steps = rounds(backend, data, algorithm, numbers, conf, state, watcher, measure)
    return _Run(conf, paths, device, data, model, algorithm, backend, state, watcher, steps)


def _train_with_flgo(conf: Conf, algorithm: FlgoConf, paths: RunPaths) -> RunResult:
    """The same with FLGo in our training's place. It cannot go on from a checkpoint: none is written."""
    from flgo_hydra.federated import flgo_runner
    from flgo_hydra.federated.client_state import ClientStates
    from flgo_hydra.federated.patience import Patience
    from flgo_hydra.federated.rounds import RunState
    from flgo_hydra.federated.training import ServerState

    device = resolve_device(conf.device)
    state = RunState(ServerState({}, {}), ClientStates({}, 0), patience=Patience.start(conf.is_maximized))
    model = compose.parameters(conf.model)
    with _ctrl_c_at_round_boundary() as is_interrupted:
        watcher = _Watcher(replace(conf, checkpoint_interval=0), paths, device, reporter.current(), is_interrupted)
        watcher.resume(state)
        try:
            status = flgo_runner.run_rounds(conf, conf.task, algorithm, model, str(device), state, watcher)
        finally:
            watcher.progress.close()
    if status == "stopped":
        raise KeyboardInterrupt(f"stopped after round {state.round_num}; a run of FLGo's starts again from round 0")
    return _result(conf, state, status, device, watcher.prune_reason or "", {"backend": "flgo"})


class _Watcher:
    """Writes rounds and checkpoints, shows progress, and passes on requests to stop."""

    def __init__(
        self,
        conf: Conf,
        paths: RunPaths,
        device: "torch.device",
        line: reporter.Reporter,
        is_interrupted: threading.Event,
        backend: "ChosenBackend | None" = None,
    ) -> None:
        from flgo_hydra.record.checkpoint import CheckpointClock

        self._option: OptionConf = conf
        self._paths = paths
        self._device = device
        self._fingerprint = compose.fingerprint(conf)
        self._line = line
        self._is_interrupted = is_interrupted
        self._backend = backend
        self.prune_reason: str | None = None
        self._record: list[dict[str, float]] = []
        self._due = CheckpointClock(conf.checkpoint_interval, time.perf_counter)
        self.progress = Progress(conf.num_rounds, conf.eval_interval, sys.stdout)

    def resume(self, state: "RunState") -> None:
        """Goes on from the folder's checkpoint, if there is one: rounds recorded after it are run again."""
        from flgo_hydra.federated.patience import Patience
        from flgo_hydra.federated.training import ServerState
        from flgo_hydra.record.checkpoint import load_checkpoint

        files.remove_leftovers(self._paths.checkpoint)
        saved = load_checkpoint(self._paths.checkpoint, self._fingerprint, self._device)
        if saved is not None:
            state.server = ServerState(**saved["server"])
            state.clients.restore(saved["clients"])
            state.round_num = saved["round_num"]
            state.patience = Patience(**saved["patience"])
            state.best, state.last, state.seconds = saved["best"], saved["last"], saved["seconds"]
            if self._backend is not None and saved.get("backend") is not None:
                self._backend.choose(saved["backend"], "checkpoint")
            _log.info("going on after round %d", state.round_num)
        files.keep_json_lines(self._paths.rounds, lambda line: line["round"] <= state.round_num)
        self._record = read_rounds(self._paths)
        self._lines = files.JsonLines(self._paths.rounds)

    def record_with(self, state: "RunState") -> list[dict[str, float]]:
        """The evaluated rounds, the present one, which is not written yet, last."""
        return [*self._record, _line(state)]

    def evaluated(self, state: "RunState", is_best: bool) -> None:
        line = _line(state)
        self._record.append(line)
        self._lines.append(line)
        if is_best and self._option.save_best:
            self._save_best_model(state)
        best = state.patience
        self.progress.show(state.round_num, state.last, best.best, best.best_round, self._option.monitor)
        self._line.report(
            "round",
            round=state.round_num,
            num_rounds=self._option.num_rounds,
            best=best.best,
            best_round=best.best_round,
            monitor=self._option.monitor,
            is_maximized=self._option.is_maximized,
            **state.last,
        )

    def finished_round(self, state: "RunState") -> "Status | None":
        from flgo_hydra.federated.rounds import Status

        self.prune_reason = self._line.prune_reason()
        if self.prune_reason is not None:
            return Status.PRUNED
        if state.round_num > 0 and self._due.is_due(state.round_num):
            self._due.timed(lambda: self.save(state))
        return Status.STOPPED if self._is_interrupted.is_set() or self._line.stop_requested() else None

    def save(self, state: "RunState") -> None:
        """Writes a checkpoint of the last finished round."""
        from flgo_hydra.record.checkpoint import save_checkpoint

        content = {
            "server": vars(state.server),
            "clients": state.clients.export(),
            "round_num": state.round_num,
            "patience": vars(state.patience),
            "best": state.best,
            "last": state.last,
            "seconds": state.seconds,
            "backend": None if self._backend is None else self._backend.choice,
        }
        save_checkpoint(self._paths.checkpoint, self._fingerprint, content)

    def _save_best_model(self, state: "RunState") -> None:
        from safetensors.torch import save

        tensors = {**state.server.params, **state.server.buffers}
        with files.replacing(self._paths.best_model, is_durable=False) as file:
            file.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def _line(state: "RunState") -> dict[str, float]:
    """A line of rounds.jsonl."""
    return {"round": state.round_num, **state.last, "seconds": round(state.seconds, 6)}


def build_algorithm(parameters: dict[str, Any]) -> tuple["Algorithm", dict[str, float]]:
    """Returns the algorithm that a choice names, and its hyper-parameters.

    The choice's numbers are hyper-parameters, given to the algorithm's functions with each call; whatever else it
    has (strings, booleans, lists) goes to the class's constructor.

    Raises:
        ValueError: the reference is wrong, or is no `Algorithm`.
    """
    from flgo_hydra.federated.algorithm.base import Algorithm

    target = str(parameters["_target_"])
    rest = {key: value for key, value in parameters.items() if key not in ("_target_", "name")}
    numbers = {key: v for key, v in rest.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    given = {key: value for key, value in rest.items() if key not in numbers}
    kind = reference.load(target, "algorithm._target_")
    if not (isinstance(kind, type) and issubclass(kind, Algorithm)):
        raise ValueError(
            f"`algorithm._target_={target}` must be a subclass of flgo_hydra.federated.algorithm.base.Algorithm."
        )
    algorithm: Algorithm = reference.call(kind, given, {}, "algorithm")
    return algorithm, numbers


def resolve_device(name: str) -> "torch.device":
    """The device that `device` names; `auto` is a GPU where there is one.

    Raises:
        ValueError: there is no such device on this machine.
    """
    import torch

    num_gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if num_gpus else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise ValueError(f"`device={name}`: torch sees {num_gpus} GPUs here. Set `device=cpu` or `device=auto`.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("`device=mps`: torch has no Apple GPU here. Set `device=cpu` or `device=auto`.")
    return device


_allowed_threads: int | None = None


def _count_threads(conf: Conf, model: "torch.nn.Module", input_shape: tuple[int, ...], dtype: "torch.dtype") -> int:
    """`num_threads`, or by the size of a local step: small ones gain nothing from a second thread, and lose all when
    something else runs on its core (measured: an MLP's round 1.1 times as fast on two idle cores, 6 times as slow on
    two busy ones). The choice depends on the config alone, so that a run's numbers do."""
    import torch

    from flgo_hydra.federated.model import count_multiplications

    global _allowed_threads
    if _allowed_threads is None:
        _allowed_threads = torch.get_num_threads()  # OMP_NUM_THREADS, or the cores
    if conf.num_threads is not None:
        return conf.num_threads
    samples = conf.batch_size if conf.batch_size >= 1 else 64
    per_step = samples * count_multiplications(model, input_shape, dtype)
    return 1 if per_step < _SMALL_STEP else _allowed_threads


_SMALL_STEP = 2e7  # multiplications of a forward pass


def _load_weights(model: "torch.nn.Module", path: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"`initial_weights={path}` cannot be read as safetensors: {error}.") from error
    own = model.state_dict()
    wrong = [
        f"{name} {tuple(weights[name].shape) if name in weights else 'is missing'}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name not in weights or weights[name].shape != tensor.shape
    ] + [f"{name} is not in the model" for name in weights if name not in own]
    if wrong:
        raise ValueError(f"`initial_weights={path}` does not fit the model: {'; '.join(wrong[:5])}.")
    model.load_state_dict(weights)


def _result(
    conf: Conf,
    state: "RunState",
    status: "Status",
    device: "torch.device",
    prune_reason: str,
    engine: dict[str, Any],
) -> RunResult:
    import numpy as np
    import torch

    parts = compose.parts(conf)
    message = prune_reason
    if status == "diverged":
        losses = {name: value for name, value in state.last.items() if name.endswith("_loss")}
        what = f"the loss is not finite at round {state.round_num} ({summarize(losses)})"
        is_told = not all(map(math.isfinite, losses.values()))
        message = what if is_told else f"every client's model has nan parameters at round {state.round_num}"
    on_gpu = device.type == "cuda"
    return RunResult(
        status=str(status),
        best_valid_loss=state.best.get("valid_loss", math.inf),
        best_round=state.patience.best_round,
        last_round=state.round_num,
        best=state.best,
        last=state.last,
        seconds=round(state.seconds, 3),
        peak_memory_mib=round(
            torch.cuda.max_memory_reserved(device) / 2**20
            if on_gpu
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
            1,
        ),
        device=torch.cuda.get_device_name(device) if on_gpu else device.type,
        seed=conf.seed,
        task=parts["task"],
        model=compose.parameters(conf.model),
        algorithm=compose.parameters(conf.algorithm),
        option=parts["option"],
        versions={
            "flgo_hydra": flgo_hydra.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            **({"flgo": importlib.metadata.version("flgo")} if isinstance(conf.algorithm, FlgoConf) else {}),
        },
        fingerprint=compose.fingerprint(conf),
        message=message,
        engine=engine,
        monitor=conf.monitor,
        is_maximized=conf.is_maximized,
    )


@contextmanager
def _ctrl_c_at_round_boundary() -> Iterator[threading.Event]:
    """Ctrl-C once sets the event, which ends the run at the next round boundary; twice ends it now."""
    is_interrupted = threading.Event()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield is_interrupted  # somebody else (a launcher, a notebook) decides what Ctrl-C means
        return

    def interrupt(number: int, frame: object) -> None:
        if is_interrupted.is_set():
            raise KeyboardInterrupt
        is_interrupted.set()
        os.write(2, b"\nstopping after this round, with a checkpoint; Ctrl-C again stops now\n")

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield is_interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
