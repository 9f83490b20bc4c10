"""FLGo in our training's place. It cannot go on from a checkpoint: none is written."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from flgo_hydra import compose, where_typed
from flgo_hydra.config.conf import Conf
from flgo_hydra.config.task import TaskConf
from flgo_hydra.job.device import resolve_device
from flgo_hydra.job.interrupt import ctrl_c_at_round_boundary
from flgo_hydra.job.outcome import result_of
from flgo_hydra.job.watcher import Watcher
from flgo_hydra.launch import reporter
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import RunResult

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    from flgo_hydra.federated.data.task import Task


def check(conf: Conf, data: dict[str, tuple[str, str]] | None = None) -> "Task | None":
    """Whether FLGo could run it. FLGo reads the task itself: none is built."""
    from flgo_hydra.federated import flgo_runner

    if conf.parts:
        raise ValueError(
            "`parts` are of our algorithms, but `algorithm.module` names one that FLGo trains. Drop one of them."
        )
    flgo_runner.check(conf, conf.task, conf.algorithm, compose.parameters(conf.model))
    if data is not None and repr(conf.task) not in data:
        data[repr(conf.task)] = data_sha256(conf.task), ""
    return None


def check_model(conf: Conf, task: "Task | None" = None) -> None:
    """FLGo makes it."""


def data_sha256(task: TaskConf) -> str:
    from flgo_hydra.federated import flgo_runner

    return flgo_runner.data_sha256(task)


def targets(conf: Conf) -> Mapping[str, str]:
    """None: one process runs one job of FLGo's."""
    return {}


def can_fuse(conf: Conf) -> bool:
    return False


def train(conf: Conf, paths: RunPaths, task: "Task | None") -> RunResult:
    from flgo_hydra.federated import flgo_runner
    from flgo_hydra.federated.clients.client_state import ClientStates
    from flgo_hydra.federated.patience import Patience
    from flgo_hydra.federated.rounds import RunState
    from flgo_hydra.federated.training import ServerState

    device = resolve_device(conf.device)
    state = RunState(ServerState({}, {}), ClientStates({}, 0), patience=Patience(conf.followed))
    model = compose.parameters(conf.model)
    # FLGo reads and writes below the task's folder, at any time
    with ctrl_c_at_round_boundary() as is_interrupted, where_typed.entered():
        content = data_sha256(conf.task)
        settings = replace(conf, checkpoint_interval=0)
        watcher = Watcher(settings, paths, device, reporter.current(), is_interrupted, data_sha256=content)
        watcher.resume(state)
        try:
            status = flgo_runner.run_rounds(conf, conf.task, conf.algorithm, model, str(device), state, watcher)
        finally:
            watcher.progress.close()
    if status == "stopped":
        raise KeyboardInterrupt(f"stopped after round {state.round_num}; a run of FLGo's starts again from round 0")
    reason, engine = watcher.prune_reason or "", {"backend": "flgo"}
    record, packages = watcher.record, ("flgo",)
    return result_of(conf, state, status, device, reason, engine, record, data_sha256=content, packages=packages)
