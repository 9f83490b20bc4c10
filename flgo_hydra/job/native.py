"""Runs computed by our own engine: what is checked of them before anything runs, and how one is driven."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from flgo_hydra import compose, own_code, reference, where_typed
from flgo_hydra.config.conf import Conf
from flgo_hydra.config.laws import one_of
from flgo_hydra.config.task import TaskConf
from flgo_hydra.importing import without_garbage_collection
from flgo_hydra.job.imports import load
from flgo_hydra.job.interrupt import ctrl_c_at_round_boundary
from flgo_hydra.job.isolation import modules_kept
from flgo_hydra.job.preparation import prepare
from flgo_hydra.launch import reporter
from flgo_hydra.objective import KNOWN
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import RunResult

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    from flgo_hydra.federated.data.task import Task

_checked: set[str] = set()
_log = logging.getLogger("flgo_hydra")


def check(conf: Conf, data: dict[str, tuple[str, str]] | None = None) -> "Task | None":
    """As `Engine.check`. The task is built (or found in the cache), unless `data` has it."""
    from flgo_hydra.federated.data.task import build_task

    task, known = None, {} if data is None else data
    if repr(conf.task) not in known:
        task = build_task(conf.task)
        known[repr(conf.task)] = task.data_sha256, task.source
    if conf.metrics is not None and conf.metrics not in _checked:
        load(conf.metrics, "metrics")
        _checked.add(conf.metrics)
    if conf.metrics is None:
        one_of("monitor", conf.monitor, tuple(KNOWN))  # of one's own, only round 0 can say
    if conf.parts:
        from flgo_hydra.federated.parts.build import build_parts
        from flgo_hydra.federated.parts.in_a_run import require_fitting

        require_fitting(build_parts(conf.parts)[0], conf)
    for key, part in {"model": conf.model, "algorithm": conf.algorithm}.items():
        target = str(part["_target_"] if isinstance(part, dict) else part._target_)
        # Ours are there; to import them would import torch.
        if not target.startswith("flgo_hydra.") and target not in _checked:
            load(target, f"{key}._target_")
            _checked.add(target)
    return task


def check_model(conf: Conf, task: "Task | None" = None) -> None:
    """As `Engine.check_model`, as every job does before its first round: a grid then fails before it begins. Our models
    fit, and are not built for it."""
    model = compose.parameters(conf.model)
    algorithm = str(compose.parameters(conf.algorithm)["_target_"])
    if str(model["_target_"]).startswith("flgo_hydra."):
        return
    work = (conf.batch_size, conf.num_epochs, conf.num_steps)
    tried = repr((conf.task, model, algorithm, work, conf.dtype))
    if tried in _checked:
        return
    import torch

    from flgo_hydra.federated.algorithm.base import Algorithm
    from flgo_hydra.federated.data.dependencies import Record, reads_of, recording
    from flgo_hydra.federated.data.task import build_task
    from flgo_hydra.federated.fit import build_fitting_model
    from flgo_hydra.federated.training import LocalWork

    has_own_loss = getattr(reference.load(algorithm, "algorithm._target_"), "loss", None) is not Algorithm.loss
    local_work, dtype = LocalWork(*work, conf.seed), getattr(torch, conf.dtype)
    task = task or build_task(conf.task)
    try:
        with recording() as record, modules_kept(targets(conf)):
            build_fitting_model(model, task, local_work, dtype, torch.device("cpu"), has_own_loss)
        # What is imported here is not imported again by a job of this process.
        own_code.remember(str(model["_target_"]), reads_of(Record(modules=record.modules)))
    except ValueError:
        raise
    except Exception:  # it may want a GPU, or fail as only a job can show: with its traceback, in its log
        _log.debug("the model could not be tried here", exc_info=True)
    _checked.add(tried)


def data_sha256(task: TaskConf) -> str:
    from flgo_hydra.federated.data.task import build_task

    return build_task(task).data_sha256


def targets(conf: Conf) -> Mapping[str, str]:
    """Of model, algorithm, parts and metrics."""
    found = {key: str(compose.parameters(getattr(conf, key))["_target_"]) for key in ("model", "algorithm")}
    found |= {f"parts.{name}": str(part["_target_"]) for name, part in conf.parts.items()}
    return found if conf.metrics is None else {**found, "metrics": conf.metrics}


def can_fuse(conf: Conf) -> bool:
    """Unless a backend was asked for, or a run has parts: its data or cohorts may be its own."""
    return conf.engine.backend == "auto" and not conf.parts


def train(conf: Conf, paths: RunPaths, task: "Task | None") -> RunResult:
    """As `Engine.train`. A run that was stopped has written a checkpoint, and goes on from it."""
    with without_garbage_collection():
        import torch  # noqa: F401  # here, where it is quick

    from flgo_hydra.federated.backend.watch import ChangedLate
    from flgo_hydra.federated.rounds import drive

    with ctrl_c_at_round_boundary() as is_interrupted:
        with where_typed.entered():
            run = prepare(conf, paths, task, reporter.current(), is_interrupted)
        try:
            status = drive(run.rounds, run.backend, run.data)
        except ChangedLate as why:
            _log.warning("the run begins anew, by plain steps: %s", why)
            run.watcher.progress.close()
            run.backend.loop.put_back()
            with where_typed.entered():
                run = prepare(conf, paths, task, reporter.current(), is_interrupted, why_plain=str(why))
            status = drive(run.rounds, run.backend, run.data)
        finally:
            run.watcher.progress.close()
    return run.end(status)
