"""Whether what a config refers to is there, before anything runs."""

from typing import TYPE_CHECKING

from flgo_hydra import compose, reference
from flgo_hydra.config import Conf, FlgoConf, one_of
from flgo_hydra.monitor import KNOWN

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    from flgo_hydra.federated.task import Task

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
        one_of("monitor", conf.monitor, tuple(KNOWN))  # of one's own, only round 0 can say
    for key in ("model", "algorithm"):
        part = getattr(conf, key)
        target = str(part["_target_"] if isinstance(part, dict) else part._target_)
        # Ours are there; to import them would import torch.
        if not target.startswith("flgo_hydra.") and target not in _checked:
            reference.load(target, f"{key}._target_")
            _checked.add(target)
    return task
