"""Whether what a config refers to is there, before anything runs."""

import logging
from typing import TYPE_CHECKING

from flgo_hydra import compose, own_code, reference
from flgo_hydra.config import Conf, FlgoConf, one_of
from flgo_hydra.job.imports import load
from flgo_hydra.job.isolation import modules_kept
from flgo_hydra.objective import KNOWN

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    from flgo_hydra.federated.task import Task

_checked: set[str] = set()
_log = logging.getLogger("flgo_hydra")


def check(conf: Conf, data: dict[str, tuple[str, str]] | None = None) -> "Task | None":
    """Checks what the config refers to: a user's own functions and classes, data files, and the task they make.

    Args:
        data: hashes of the tasks that the caller has had checked, by `repr(conf.task)`; gets this one's.
    Returns:
        the task, which was built (or found in the cache), since a partition that its data do not allow shows only
        there; None where `data` has it, or where FLGo reads it.

    Raises:
        ValueError: something is missing or impossible; the error says what to do.
    """
    from flgo_hydra.federated.task import build_task

    task, known = None, {} if data is None else data
    if isinstance(conf.algorithm, FlgoConf):  # FLGo reads the task
        from flgo_hydra.federated import flgo_runner

        flgo_runner.check(conf, conf.task, conf.algorithm, compose.parameters(conf.model))
        if data is not None and repr(conf.task) not in data:
            data[repr(conf.task)] = flgo_runner.data_sha256(conf.task), ""
        return None
    if repr(conf.task) not in known:
        task = build_task(conf.task)
        known[repr(conf.task)] = task.data_sha256, task.source
    if conf.metrics is not None and conf.metrics not in _checked:
        load(conf.metrics, "metrics")
        _checked.add(conf.metrics)
    if conf.metrics is None:
        one_of("monitor", conf.monitor, tuple(KNOWN))  # of one's own, only round 0 can say
    composed = {f"parts.{name}": part for name, part in conf.parts.items()}
    for key, part in {"model": conf.model, "algorithm": conf.algorithm, **composed}.items():
        target = str(part["_target_"] if isinstance(part, dict) else part._target_)
        # Ours are there; to import them would import torch.
        if not target.startswith("flgo_hydra.") and target not in _checked:
            load(target, f"{key}._target_")
            _checked.add(target)
    return task


def check_model(conf: Conf, task: "Task | None" = None) -> None:
    """Tries a user's own model on the task, as every job does before its first round: a grid then fails before it
    begins. Ours fit, and are not built for it.

    Args:
        task: the config's, if it has been built already.
    Raises:
        ValueError: the model does not fit the task.
    """
    model = compose.parameters(conf.model)
    algorithm = str(compose.parameters(conf.algorithm)["_target_"])
    if isinstance(conf.algorithm, FlgoConf) or str(model["_target_"]).startswith("flgo_hydra."):
        return
    work = (conf.batch_size, conf.num_epochs, conf.num_steps)
    tried = repr((conf.task, model, algorithm, work, conf.dtype))
    if tried in _checked:
        return
    import torch

    from flgo_hydra.federated.algorithm.base import Algorithm
    from flgo_hydra.federated.dependencies import Record, reads_of, recording
    from flgo_hydra.federated.fit import build_fitting_model
    from flgo_hydra.federated.task import build_task
    from flgo_hydra.federated.training import LocalWork

    has_own_loss = getattr(reference.load(algorithm, "algorithm._target_"), "loss", None) is not Algorithm.loss
    local_work, dtype = LocalWork(*work, conf.seed), getattr(torch, conf.dtype)
    task = task or build_task(conf.task)
    try:
        with recording() as record, modules_kept(conf):
            build_fitting_model(model, task, local_work, dtype, torch.device("cpu"), has_own_loss)
        # What is imported here is not imported again by a job of this process.
        own_code.remember(str(model["_target_"]), reads_of(Record(modules=record.modules)))
    except ValueError:
        raise
    except Exception:  # it may want a GPU, or fail as only a job can show: with its traceback, in its log
        _log.debug("the model could not be tried here", exc_info=True)
    _checked.add(tried)
