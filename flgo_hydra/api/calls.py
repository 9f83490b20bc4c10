"""What the command line does, done from Python: `run` and `sweep` compose, launch and study with the same code."""

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flgo_hydra import app, chosen, compose, explain
from flgo_hydra.api.alone import one_at_a_time
from flgo_hydra.api.results import Point, Run, Sweep, read_run
from flgo_hydra.api.shipped import JobWithObjects, ship_own, write_objects
from flgo_hydra.config.conf import Conf
from flgo_hydra.job import engines
from flgo_hydra.job.device import resolve_device
from flgo_hydra.launch.launcher import PackingLauncher
from flgo_hydra.launch.scheduling.scheduler import Scheduler
from flgo_hydra.overrides import override, setting
from flgo_hydra.record.paths import free_folder
from flgo_hydra.report.point_rows import sort_points
from flgo_hydra.streams import going_on
from flgo_hydra.study import sweeper as sweeper_module
from flgo_hydra.study.sweep import Outcome
from flgo_hydra.study.sweeper import StudySweeper

Objects = dict[str, Callable[..., Any]]
_SHIPPED = "given_in_python.pickle"
"""in the sweep folder, what workers cannot import"""


def run(*overrides: str) -> Run:
    """Runs one job in this process and returns what came out.

        from flgo_hydra import run

        result = run("algorithm=fedprox", "lr=0.05", "num_rounds=10")
        print(result.best["valid_loss"], result.best["round"])
        for line in result.rounds:
            print(line["round"], line["test_accuracy"])

    Calls from several threads come one after another. The process's random generators are seeded meanwhile, and are
    afterwards as they were.

    Args:
        overrides: as on the command line; `hydra.run.dir=…` chooses the folder, and goes on with a run in it.
    Raises:
        ValueError: an override is wrong; nothing has trained.
    """
    return run_job(list(overrides))


def sweep(*overrides: str, scheduler: Scheduler | None = None) -> Sweep:
    """Runs a grid, as `python -m flgo_hydra -m` does, and returns its runs in the grid's order.

        from flgo_hydra import sweep

        found = sweep("lr=0.1,0.01", "algorithm=fedavg,fedprox")
        print(found.best.overrides, found.best.value, found.best.round)
        table = found.frame()                                              # with pandas

    A job that fails does not stop the others: its run has `status` "failed" and an `error`.

    Args:
        overrides: as on the command line; `hydra.sweep.dir=…` chooses the folder, and goes on with a sweep in it.
        scheduler: which job starts where; None: as `hydra.launcher.scheduler` says.
    Raises:
        ValueError: an override is wrong; nothing has trained.
    """
    named, objects = ship_own(overrides)
    return run_sweep(named, objects, scheduler)


@one_at_a_time
def run_job(overrides: list[str], is_quiet: bool = False) -> Run:
    """`run`, perhaps without a word."""
    chosen = _value_of(overrides, "hydra.run.dir")
    folder = Path(chosen or new_folder("outputs"))
    if chosen is None:
        overrides = [*overrides, override("hydra.run.dir", str(folder))]
    num_threads = _torch_threads()
    try:
        with _hydra(overrides) as hydra, _silence(is_quiet):
            returned = hydra.run("config", task_function=app.job, overrides=overrides)
            error = returned._return_value
            if isinstance(error, BaseException):
                raise error
    finally:
        _restore_threads(num_threads)
        _remove_empty(folder)
    return read_run(folder, tuple(text for text in overrides if not text.startswith("hydra.")))


@one_at_a_time
def run_sweep(
    overrides: list[str], objects: Objects | None = None, scheduler: Scheduler | None = None, is_quiet: bool = False
) -> Sweep:
    """`sweep`, with objects that the config names."""
    is_new = _value_of(overrides, "hydra.sweep.dir") is None
    if is_new:
        overrides = [*overrides, override("hydra.sweep.dir", new_folder("multirun"))]
    folder = Path(str(_value_of(overrides, "hydra.sweep.dir"))).absolute()
    task_function: Callable[..., Any] = app.job
    shipped = folder / _SHIPPED
    if objects:
        write_objects(shipped, objects)
        task_function = JobWithObjects(shipped)
    made: list[StudySweeper] = []

    def listen(sweeper: StudySweeper) -> None:
        made.append(sweeper)
        if scheduler is not None:
            if not isinstance(sweeper.job_launcher, PackingLauncher):
                raise ValueError("A scheduler object needs hydra/launcher=flgo_hydra.")
            sweeper.job_launcher.settings.scheduler = scheduler

    sweeper_module.set_up_listeners.append(listen)
    try:
        with _hydra(overrides) as hydra, _silence(is_quiet), contextlib.suppress(SystemExit):
            # SystemExit: some job has no result, which its run says.
            hydra.multirun("config", task_function=task_function, overrides=overrides)
    finally:
        sweeper_module.set_up_listeners.remove(listen)
        if not made or made[0].outcome is None:
            if is_new:  # of a call that was refused nothing stays
                shutil.rmtree(folder, ignore_errors=True)
    if not made or made[0].outcome is None:
        raise ValueError("`sweep` needs hydra/sweeper=flgo_hydra; run other sweepers from the command line.")
    return _collect(made[0].outcome)


@one_at_a_time
def check(overrides: list[str]) -> Conf:
    """Composes and checks a job's config, and what it refers to, without training.

    Raises:
        ValueError: something is wrong with it.
    """
    from omegaconf import open_dict

    with _hydra(overrides) as hydra:
        from hydra.types import RunMode

        cfg = hydra.compose_config("config", overrides=overrides, run_mode=RunMode.RUN)
        chosen.check_identities(cfg, cfg.hydra)
        with open_dict(cfg):
            del cfg["hydra"]
        conf = compose.to_conf(cfg)
        engines.check(conf)
        resolve_device(conf.device)
        return conf


def new_folder(root: str) -> str:
    """A folder by date and time that nobody has: calls from Python may come within one second."""
    return str(free_folder(Path(root, time.strftime("%Y-%m-%d"), time.strftime("%H-%M-%S"))))


def _remove_empty(folder: Path) -> None:
    """Of a call that was refused nothing stays."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _collect(outcome: Outcome) -> Sweep:
    rows = {row.job: row for row in outcome.rows()}
    runs = {
        written: read_run(outcome.folders[job], written, job, rows.get(job)) for written, job in outcome.jobs.items()
    }
    by_job = {run.job: run for run in runs.values()}
    points = []
    for point in sort_points(outcome.points() if outcome.points is not None else []):
        if any(job in by_job for job in point.jobs):  # of this call
            for job in point.jobs:
                row = rows[job]
                by_job[job] = by_job.get(job) or read_run(row.folder, row.overrides, job, row)
            points.append(Point(point.overrides, point.mean, point.std, [by_job[job] for job in point.jobs]))
    return Sweep(runs, outcome.paths.folder, outcome.storage, outcome.study_name, outcome.monitor, points)


def _value_of(overrides: Sequence[str], key: str) -> str | None:
    """The value that was typed for a key, without its quotes."""
    one = setting(overrides, key)
    return None if one is None else str(one.value)


@contextlib.contextmanager
def _hydra(overrides: Sequence[str]) -> Iterator[Any]:
    """Hydra as the command line starts it, and everything of the caller's as it was afterwards.

    Raises:
        ValueError: Hydra's errors, in the words of the command line.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.version import VersionBase
    from omegaconf.errors import OmegaConfBaseException

    explain.refuse_endless_numbers(overrides)
    compose.prepare()
    main = compose.hydra_main_arguments()
    base = {key: value for key, value in main.items() if key == "version_base"}
    before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg, VersionBase.instance().version_base
    GlobalHydra.instance().clear()
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        with (
            going_on(),
            _logging_as_it_was(),
            initialize_config_dir(main["config_path"], job_name="flgo_hydra", **base),
        ):
            yield GlobalHydra.instance().hydra
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain.explain(error, overrides)) from error
    finally:
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg, VersionBase.instance().version_base = before


@contextlib.contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """Hydra configures the root logger, which is a notebook's own."""
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, logging.root.manager.disable
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers, root.level, logging.root.manager.disable = handlers, level, disabled


@contextlib.contextmanager
def _silence(is_quiet: bool) -> Iterator[None]:
    if not is_quiet:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _torch_threads() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else torch.get_num_threads()


def _restore_threads(num_threads: int | None) -> None:
    """A run sets torch's threads by its model; the caller's own work goes on with the caller's."""
    if num_threads is not None:
        sys.modules["torch"].set_num_threads(num_threads)
