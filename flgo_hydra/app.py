"""One job: a config in, a result out. The only place where config, training and record meet."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flgo_hydra import compose, where_typed
from flgo_hydra.chosen import check_identities
from flgo_hydra.config.conf import Conf
from flgo_hydra.federated.users_code import no_silent_end
from flgo_hydra.job.engines import engine_of
from flgo_hydra.job.fused import fuse_key, job_group
from flgo_hydra.job.isolation import modules_kept
from flgo_hydra.job.outcome import describe, read_finished, record_failure
from flgo_hydra.overrides import Override
from flgo_hydra.record.files import writing
from flgo_hydra.record.paths import RunPaths, run_of_sweep
from flgo_hydra.record.plain_text import traceback_of
from flgo_hydra.record.result import RunResult, write_result

__all__ = ["fuse_key", "job", "job_group", "preload", "run"]
"""The launcher looks for `preload`, `fuse_key` and `job_group` beside the task function, `job`."""

_log = logging.getLogger("flgo_hydra")


def preload() -> None:
    """Imports what a job needs, for the process that a launcher forks jobs from. Computes nothing: a process that has
    used autograd cannot be forked."""
    import numpy.ma  # noqa: F401  # np.unique asks for it

    import flgo_hydra.federated.algorithm.build
    import flgo_hydra.federated.algorithm.ditto
    import flgo_hydra.federated.algorithm.fedavg
    import flgo_hydra.federated.algorithm.fedprox
    import flgo_hydra.federated.algorithm.fedsam
    import flgo_hydra.federated.algorithm.moon
    import flgo_hydra.federated.algorithm.scaffold
    import flgo_hydra.federated.backend.choice
    import flgo_hydra.federated.data.task
    import flgo_hydra.federated.fit
    import flgo_hydra.federated.model
    import flgo_hydra.federated.rounds
    import flgo_hydra.federated.weights
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
    if hydra.mode == RunMode.RUN:
        _check_unused(hydra)
    try:
        check_identities(cfg, hydra)
        folder = Path(hydra.runtime.output_dir)
        paths = run_of_sweep(folder) if hydra.mode == RunMode.MULTIRUN else RunPaths(folder)
        with where_typed.known(str(hydra.runtime.cwd)):
            return _run(compose.to_conf(cfg), paths).value
    except Exception as error:
        if hydra.mode == RunMode.MULTIRUN:  # a single run's error is printed by the command line
            _log.error("the job failed\n%s", traceback_of(error).rstrip())
        raise


def _check_unused(hydra: Any) -> None:
    """Makes what only a sweep needs, where some of it was typed: a wrong value is refused now, not on the day of `-m`.

    Raises:
        InstantiationException: launcher or sweeper refuse their values.
    """
    from hydra.core.plugins import Plugins

    for part in ("launcher", "sweeper"):
        if any(Override.read(text).key.startswith(f"hydra.{part}.") for text in hydra.overrides.hydra):
            Plugins.instance()._instantiate(hydra[part])  # as Hydra makes it for `-m`


def run(conf: Conf, folder: Path) -> RunResult:
    """Runs a job in its folder, or goes on from the folder's checkpoint; a finished one is read back.

    Raises:
        ValueError: the config cannot be run; the folder holds a run of another config.
        CannotWrite: the storage refused.
        KeyboardInterrupt: stopped by request at a round boundary, with a checkpoint.
    """
    return _run(conf, RunPaths(folder))


def _run(conf: Conf, paths: RunPaths) -> RunResult:
    engine = engine_of(conf)
    with where_typed.entered():
        finished = read_finished(conf, paths, engine.data_sha256)
    if finished is not None:
        return finished
    with writing(paths.folder):
        paths.folder.mkdir(parents=True, exist_ok=True)
    from flgo_hydra.federated.randomness import generators_kept  # imports numpy, which --help can do without
    from flgo_hydra.federated.torch_settings import torch_kept

    try:
        # The generators are the caller's, whom a run in this process leaves as they were.
        with no_silent_end(), generators_kept(), torch_kept(), modules_kept(engine.targets(conf)):
            with where_typed.entered():
                task = engine.check(conf)
            result = engine.train(conf, paths, task)
        write_result(paths, result)
    except Exception as error:
        record_failure(paths, error)
        raise
    _log.info("%s", describe(result))
    return result
