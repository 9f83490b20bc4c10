"""How a run ended: its result, read back or made, its failure, and a line that says so."""

import importlib.metadata
import logging
import math
import platform
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flgo_hydra
from flgo_hydra import compose, own_code
from flgo_hydra.config.conf import Conf
from flgo_hydra.config.task import TaskConf
from flgo_hydra.machine_errors import refused_by_storage
from flgo_hydra.objective import VALID_LOSS
from flgo_hydra.progress import duration
from flgo_hydra.record.files import set_aside
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.plain_text import message_of, traceback_of
from flgo_hydra.record.result import (
    Failure,
    RunResult,
    confirm_result,
    decimals,
    read_result,
    set_defects_aside,
    summarize,
    write_failure,
)

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    import torch

    from flgo_hydra.federated.rounds import RunState, Status

_log = logging.getLogger("flgo_hydra")


def read_finished(conf: Conf, paths: RunPaths, data_sha256: Callable[[TaskConf], str]) -> RunResult | None:
    """The result that the folder has already. Records that are not to be believed are set aside, with a warning.

    In a sweep's folder so is another config's result: nobody has chosen that folder for it.

    Args:
        data_sha256: of the engine that has computed it.
    Raises:
        ValueError: it is another config's, or of other data.
    """
    for told in set_defects_aside(paths):
        _log.warning("%s: %s. The run is done again.", paths.folder, told)
    finished = read_result(paths)
    if finished is not None:
        if finished.fingerprint != compose.fingerprint(conf) and paths.sweep is not None:
            kept = [set_aside(path).name for path in (paths.result, paths.rounds) if path.exists()]
            told = f"holds the result of another config (kept as {', '.join(kept)})"
            _log.warning("%s %s. The run is done again.", paths.folder, told)
            return None
        if finished.fingerprint != compose.fingerprint(conf):
            raise ValueError(
                f"{paths.folder} holds the result of another config. Choose another folder (`hydra.run.dir=…`)."
            )
        _check_data(conf, paths, finished, data_sha256)
        confirm_result(paths)
        _log.info("already finished: %s", describe(finished))
    return finished


def _check_data(conf: Conf, paths: RunPaths, finished: RunResult, data_sha256: Callable[[TaskConf], str]) -> None:
    if not finished.data_sha256:
        return
    try:
        now = data_sha256(conf.task)
    except ValueError:  # they are not here: a result can be read without them
        return
    if now != finished.data_sha256:
        raise ValueError(
            f"{paths.folder} holds the result of other data: data_sha256 was {finished.data_sha256[:16]} and is "
            f"{now[:16]} now. Choose another folder (`hydra.run.dir=…`), or put the data back."
        )


def record_failure(paths: RunPaths, error: Exception) -> None:
    """Writes failure.json, with the error's traceback; where that cannot be written, the error itself must do."""
    told = refused_by_storage(error) or error
    try:
        write_failure(paths, Failure(type(told).__name__, message_of(told), traceback_of(error)))
    except OSError as why:
        _log.warning("%s", why)


_NO_BEST = "`{}` was finite in no round, so there is no best one"


def describe(result: RunResult) -> str:
    """One line on how a run ended."""
    if result.status == "diverged":
        return f"diverged: {result.message}"
    end = f"{result.status.replace('_', ' ')} after round {result.last_round}"
    if not result.best:
        return f"{end}: {_NO_BEST.format(result.monitor.metric)}"
    others = {name: value for name, value in result.best.items() if name == "test_accuracy"}
    extra = f" ({summarize(others)})" if others else ""
    best = f"{result.monitor.label} {decimals(result.value)} at round {result.best_round}"
    return f"{end}: {best}{extra}, {duration(result.seconds)}"


def result_of(
    conf: Conf,
    state: "RunState",
    status: "Status",
    device: "torch.device",
    prune_reason: str,
    engine: dict[str, Any],
    record: Sequence[Mapping[str, float]],
    warnings: Sequence[str] = (),
    data_sha256: str = "",
    source: str = "",
    code: dict[str, Any] | None = None,
    packages: Sequence[str] = (),
) -> RunResult:
    """Returns the result of a run that ended in this state.

    Args:
        prune_reason: why it was pruned; empty where it was not.
        engine: what trained it, for people.
        record: the evaluated rounds.
        warnings: what its settings make of it, for people.
        data_sha256, source: of the task's content, and of what it was made of.
        code: the user's own; None: what it is now.
        packages: that have computed it besides ours, for their versions.
    """
    import numpy as np
    import torch

    parts = compose.parts(conf)
    message = prune_reason
    if status == "diverged":
        losses = {name: value for name, value in state.last.items() if name.endswith("_loss")}
        what = f"the loss is not finite at round {state.round_num} ({summarize(losses)})"
        is_told = not all(map(math.isfinite, losses.values()))
        message = what if is_told else f"every client's model has nan parameters at round {state.round_num}"
    elif not state.best and not message:
        message = _NO_BEST.format(state.patience.monitor.metric)
    on_gpu = device.type == "cuda"
    return RunResult(
        status=str(status),
        best_valid_loss=VALID_LOSS.of(VALID_LOSS.best_of(record) or {"valid_loss": math.inf}),
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
        parts=parts.get("parts", {}),
        versions={
            "flgo_hydra": flgo_hydra.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            **{name: importlib.metadata.version(name) for name in packages},
        },
        fingerprint=compose.fingerprint(conf),
        message=message,
        engine=engine,
        monitor=state.patience.monitor,
        warnings=list(warnings),
        data_sha256=data_sha256,
        source=source,
        code=own_code.behind(parts) if code is None else code,
    )
