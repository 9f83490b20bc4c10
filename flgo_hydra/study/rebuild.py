"""Makes a sweep's study anew from its run folders: `scripts/rebuild_study <folder>`.

Run folders are the truth. A run's overrides say which point it is (composed again, as the sweep did), its result.json
and rounds.jsonl or failure.json what became of it. A study made anew has one trial a point, in the order of the run
folders; earlier attempts, points that a sampler chose again, points that broke a law and times of day are not recorded
there, and so not in it.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode

from flgo_hydra import compose, machine_errors
from flgo_hydra.composer import Composer
from flgo_hydra.config.conf import Conf
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.config.sweeper import SweeperConf
from flgo_hydra.overrides import Override, texts_of
from flgo_hydra.record import files
from flgo_hydra.record.paths import RunPaths, SweepPaths
from flgo_hydra.record.result import Failure, RunResult, defect_of, read_failure, read_result
from flgo_hydra.record.secrets import masked
from flgo_hydra.streams import tell_error
from flgo_hydra.study import hydra_records
from flgo_hydra.study.data_sets import DataSets
from flgo_hydra.study.folders import RunFolders
from flgo_hydra.study.jobs import Job, PointTrial
from flgo_hydra.study.ownership import owning
from flgo_hydra.study.space.common import Common
from flgo_hydra.study.space.grid import (
    Axis,
    Grid,
    Value,
    description,
    give_axes,
    parse_point,
    read_choices,
    read_grid,
    read_points,
    write_axis,
)
from flgo_hydra.study.space.points import Point, keys_apart, tell_apart
from flgo_hydra.study.space.replicates import identity_of, split_replicates
from flgo_hydra.study.trials import Trials

if TYPE_CHECKING:  # imports optuna
    from flgo_hydra.study.stored.study import SweepStudy


_log = logging.getLogger(__name__)
_UNFINISHED = "is_being_rebuilt"


@dataclass(frozen=True)
class _Run:
    """A finished run folder."""

    job: int
    paths: RunPaths
    overrides: tuple[str, ...]
    """all of them"""
    conf: Conf
    ended: RunResult | Failure


def main(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="rebuild_study", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of a sweep: it holds the run folders 0, 1, …")
    parser.add_argument("--storage", help="an Optuna URL (sqlite:///…, postgresql://…); without it study.journal")
    parser.add_argument("--study-name", help="without it the name it had")
    parser.add_argument("--force", action="store_true", help="overwrite a study that is there")
    given = parser.parse_args(arguments)
    try:
        name, number, where = rebuild(given.folder, given.storage, given.study_name, given.force)
    except (ValueError, HydraException) as error:
        return tell_error(str(error))
    except OSError as error:
        said = machine_errors.in_words(error) if not isinstance(error, machine_errors.CannotWrite) else str(error)
        if said is None:
            raise
        return tell_error(said)
    print(f"{number} trials in the study {name!r} of {masked(where)}")
    return 0


def rebuild(
    folder: Path, storage: str | None = None, name: str | None = None, is_forced: bool = False
) -> tuple[str, int, str]:
    """Makes the study anew. Returns its name, its number of trials, and its storage.

    Args:
        storage: an Optuna URL; None: the journal in the folder.
        name: of the study; None: the one that it had.
        is_forced: a study that is there is overwritten.
    Raises:
        ValueError: no sweep, nothing to rebuild from, or a study is there.
    """
    from flgo_hydra.study.stored import storage as storages  # it imports optuna

    paths = SweepPaths(folder.resolve())
    if not (paths.folder / "multirun.yaml").is_file():
        raise ValueError(f"{folder} is no sweep folder: it has no multirun.yaml.")
    hydra = hydra_records.read_hydra(paths.folder / "multirun.yaml")
    with owning(paths):
        name = name or hydra["sweeper"].get("study_name") or storages.name_in(paths.study)
        name = name or "_".join(paths.folder.parts[-2:])
        where = storage or str(paths.study)
        if not is_forced and (paths.study.exists() if storage is None else storages.exists(storage, name)):
            raise ValueError(f"There is a study {name!r} in {masked(where)}. To overwrite it: --force.")
        with _composer(hydra) as composer:
            runs = _read_runs(paths, composer, hydra.get("output_subdir"))
            if not runs:
                raise ValueError(f"{folder} has no run folder with a result.json or a failure.json.")
            num_trials = _make(runs, hydra, composer, paths, storage, name)
    return name, num_trials, where


def take_over(paths: SweepPaths, storage: str | None, name: str, composer: Composer) -> int:
    """Makes a study from the run folders of its sweep where it is gone, or kept in another storage from now on.

    Args:
        storage: an Optuna URL; None: the journal in the folder.
    Returns:
        how many trials it has got; 0 where there is nothing to do.
    """
    record = paths.folder / "multirun.yaml"
    if not record.is_file() or (paths.study.exists() if storage is None else _is_whole(storage, name)):
        return 0
    try:
        hydra = hydra_records.read_hydra(record)
        runs = _read_runs(paths, composer, hydra.get("output_subdir"), is_lenient=True)
        if not runs:
            return 0
        num_trials = _make(runs, hydra, composer, paths, storage, name)
    except (ValueError, HydraException) as error:
        _log.warning("The study %r cannot be made from the run folders in %s: %s", name, paths.folder, error)
        return 0
    _log.warning("The study %r was made anew from %d runs in %s.", name, len(runs), paths.folder)
    return num_trials


def _make(
    runs: "Sequence[_Run]",
    hydra: dict[str, Any],
    composer: Composer,
    paths: SweepPaths,
    storage: str | None,
    name: str,
) -> int:
    """Makes the study in place of one that is there; returns how many trials it has got."""
    from flgo_hydra.study.stored import storage as storages
    from flgo_hydra.study.stored.study import SweepStudy

    command = _read_command(hydra, composer)
    new = paths.folder / ".study.journal.new"
    if storage is not None:
        storages.delete(storage, name)
    else:
        new.unlink(missing_ok=True)
    num_trials = _fill(SweepStudy(storage or new, name), runs, command, composer, paths, storage is not None)
    if storage is None:
        if paths.study.is_symlink() or (paths.study.exists() and not paths.study.is_file()):
            _log.warning("%s is no study: it is kept as %s.", paths.study, files.set_aside(paths.study).name)
        files.rename(new, paths.study)
    return num_trials


def _is_whole(storage: str, name: str) -> bool:
    """Whether a database has a study that nobody was making from run folders when he was killed."""
    from flgo_hydra.study.stored import storage as storages
    from flgo_hydra.study.stored.study import SweepStudy

    if not storages.exists(storage, name):
        return False
    study = SweepStudy(storage, name)
    try:
        return not study.description.get(_UNFINISHED)
    finally:
        study.close()


@dataclass(frozen=True)
class _Recorded:
    """What the last command asked for."""

    settings: SweeperConf
    space: Grid
    """without the replicate keys"""
    replicates: list[tuple[str, ...]]
    swept: frozenset[str]
    """keys that it varied, listed points included"""


def _read_command(hydra: dict[str, Any], composer: Composer) -> _Recorded:
    known = {field.name for field in fields(SweeperConf)}
    sweeper = {key: value for key, value in hydra["sweeper"].items() if key in known}
    settings = SweeperConf(**sweeper)
    written = [write_axis(key, value) for key, value in (sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=composer.loader)
    grid = read_grid(parser.parse_overrides([*written, *hydra["overrides"]["task"]]))
    grid = replace(grid, listed=read_points(sweeper.get("points") or []))
    grid = give_axes(grid, settings.replicate_keys)
    space, replicates = split_replicates(grid, settings.replicate_keys)
    listed = {name for point in grid.listed for name in texts_of(point)}
    return _Recorded(settings, space, replicates, frozenset({*grid.keys(), *listed}))


def _fill(
    study: "SweepStudy",
    runs: Sequence[_Run],
    command: _Recorded,
    composer: Composer,
    paths: SweepPaths,
    is_database: bool,
) -> int:
    """Puts a trial for each point into the study, with the sweep's own code; returns how many.

    Args:
        is_database: a study of which a part may be seen, until it is whole; a journal gets its name then only.
    """
    listed = {name for point in command.space.listed for name in texts_of(point)}
    swept = _swept(runs, command)
    space = _grown(command, runs, [key for key in swept if key not in listed])
    common = Common([*space.keys(), *command.settings.replicate_keys])
    points = []
    for run in runs:
        common.add(compose.settings(run.conf), run.conf.followed)
        overrides = tuple(
            text for text in run.overrides if Override.read(text).name in swept or _replicates(command, text)
        )
        how = compose.not_deciding(run.conf)
        task = compose.hash_of(compose.deciding(run.conf)["task"])
        known = (run.ended.data_sha256, run.ended.source) if isinstance(run.ended, RunResult) else ("", "")
        fingerprint, group = compose.fingerprint(run.conf), compose.group(run.conf)
        points.append(Point(overrides, fingerprint, group, how=how, task=task, data_sha256=known[0], source=known[1]))
    apart = keys_apart(points)
    points = [tell_apart(point, apart) for point in points]
    study.follow(common.monitor)
    if is_database:
        study.describe({_UNFINISHED: True})
    study.describe(description({}, space, common.values))
    DataSets({}, apart, f"{study.name!r}", study.describe).add(points)
    for name, value in {
        "apart": sorted(apart),
        "sampler": None if command.settings.sampler == "grid" else command.settings.sampler,
        "replicates": [list(more) for more in command.replicates] if command.settings.replicate_keys else None,
    }.items():
        if value:
            study.describe({name: value})
    jobs = [
        Job(run.job, point, str(run.paths.folder.relative_to(paths.folder)))
        for run, point in zip(runs, points, strict=True)
    ]
    trials = Trials(study, paths, RunFolders(composer, composer.config, paths, ()))
    for job, run in zip(jobs, runs, strict=True):
        trials.note(job, run.ended)
    made = _trials(jobs, command)
    choices = read_choices([trial.overrides for trial in made], composer.group_options)
    if command.settings.sampler == "grid":
        study.declare(choices)
    for choice, trial in _numbered(made, max(1, len(command.replicates))):
        if command.settings.sampler == "grid":
            trials.open(trial, choices)
        else:
            trial.number = study.ask_again(space, parse_point(trial.overrides), None)
            study.annotate(trial.number, {**trials.attributes(trial), "choice": choice})
        trials.close(trial)
    if is_database:
        study.describe({_UNFINISHED: False})
    study.close()
    return len(made)


def _numbered(made: Sequence[PointTrial], jobs_each: int) -> list[tuple[int, PointTrial]]:
    """The trials with the number of the choice that each was: jobs are numbered in that order. Where runs are lost
    there are holes, which a search fills.

    Args:
        jobs_each: jobs of a point.
    """
    used: set[int] = set()
    found = []
    for trial in made:
        number = min(job.number for job in trial.jobs) // jobs_each
        while number in used:
            number += 1
        used.add(number)
        found.append((number, trial))
    return found


def _trials(jobs: Sequence[Job], command: _Recorded) -> list[PointTrial]:
    """A trial a job; with replicates one for each point that has all that the last command asked for."""
    if not command.settings.replicate_keys:
        return [PointTrial(job.point.overrides, job.point.identity, (job,)) for job in jobs]
    by_point: dict[frozenset[tuple[str, Value]], list[Job]] = {}
    for job in jobs:
        point = parse_point([text for text in job.point.overrides if not _replicates(command, text)])
        by_point.setdefault(frozenset(point.items()), []).append(job)
    is_search = command.settings.sampler != "grid"
    asked = [] if is_search else [frozenset(parse_point(point).items()) for point in command.space.points()]
    made = []
    for values, own in by_point.items():
        there = {tuple(text for text in job.point.overrides if _replicates(command, text)) for job in own}
        is_asked = is_search or any(point <= values for point in asked)
        if there >= set(command.replicates) or not is_asked:
            overrides = tuple(text for text in own[0].point.overrides if not _replicates(command, text))
            made.append(PointTrial(overrides, identity_of([job.point.identity for job in own]), tuple(own), True))
    return made


def _replicates(command: _Recorded, text: str) -> bool:
    return Override.read(text).key in command.settings.replicate_keys


def _swept(runs: Sequence[_Run], command: _Recorded) -> list[str]:
    """The keys that points are told apart by: varied by the last command, or from run folder to run folder."""
    keys = [*command.space.keys(), *command.swept]
    first = set(runs[0].overrides)
    for run in runs:  # what earlier commands varied, and the last one leaves out
        keys += texts_of(text for text in run.overrides if text not in first)
        keys += texts_of(text for text in runs[0].overrides if text not in run.overrides)
    return [key for key in dict.fromkeys(keys) if not _replicates(command, key)]


def _grown(command: _Recorded, runs: Sequence[_Run], keys: Sequence[str]) -> Grid:
    """The last command's space, with what earlier commands varied."""
    intervals = {interval.key for interval in command.space.intervals}
    written = {axis.key: axis for axis in command.space.axes}
    axes = []
    for key in keys:
        if key not in intervals:
            ran = [texts[key] for texts in (texts_of(run.overrides) for run in runs) if key in texts]
            axis = written.get(key, Axis(key, ()))
            # In the order of the sweeps: runs tell it, unless they were chosen at random, or lack the key.
            is_told = command.settings.sampler == "grid" and len(ran) == len(runs)
            values = (*ran, *axis.values) if is_told else (*axis.values, *ran)
            axes.append(replace(axis, values=tuple(dict.fromkeys(values))))
    return replace(command.space, axes=tuple(axes))


def _read_runs(paths: SweepPaths, composer: Composer, record: str | None, is_lenient: bool = False) -> list[_Run]:
    """Finished run folders, by job number.

    Args:
        is_lenient: one with the result of another config is left out; else all is refused.
    """
    runs = []
    for run in map(RunPaths, sorted(_folders(paths.folder))):
        ended = read_result(run) or read_failure(run)
        if ended is None:
            print(f"left out: {run.folder}: {defect_of(run)}", file=sys.stderr)
            continue
        try:
            number, overrides = hydra_records.read_job(run.folder, record)
        except hydra_records.SingleRun as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        conf = composer.point(overrides).conf
        if conf is None:
            raise ValueError(f"{run.folder} is of another Hydra app: what its jobs returned is in its study only.")
        if isinstance(ended, RunResult) and ended.fingerprint != compose.fingerprint(conf):
            if is_lenient:
                _log.warning("left out: %s has the result of another config", run.folder)
                continue
            raise ValueError(
                f"{run.folder} has the result of another config than its overrides make today: a preset or "
                "default has changed since. Use the version it was made with."
            )
        runs.append(_Run(number, run, tuple(overrides), conf, ended))
    return sorted(runs, key=lambda run: run.job)


def _folders(folder: Path) -> Iterator[Path]:
    """Run folders below a sweep's: they need not lie directly in it (`hydra.sweep.subdir`)."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            # Also what is no file, or a link to nowhere, in the place of one: that run is named as damaged.
            if any(os.path.lexists(path / name) for name in ("result.json", "failure.json")):
                # A point that broke a law has no record of Hydra's: it never ran.
                if (
                    os.path.lexists(path / "result.json")
                    or (path / "rounds.jsonl").is_file()
                    or (path / ".hydra").is_dir()
                ):
                    yield path
            else:
                yield from _folders(path)


@contextmanager
def _composer(hydra: dict[str, Any]) -> Iterator[Composer]:
    """Composes as the recorded command did."""
    compose.prepare()
    own = hydra_records.config_dir(hydra)
    if own is not None and not own.is_dir():
        raise ValueError(f"The sweep was started with --config-dir {own}, which is gone.")
    searched = [f"hydra.searchpath=[file://{own}]"] if own is not None else []
    given = [text for text in hydra["overrides"]["hydra"] if Override.read(text).key == "hydra.searchpath"]
    base = {key: value for key, value in compose.hydra_main_arguments().items() if key == "version_base"}
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(conf_dir()), **base):
        loader = GlobalHydra.instance().config_loader()
        name = hydra["job"].get("config_name") or "config"
        yield Composer(loader, loader.load_configuration(name, given or searched, RunMode.MULTIRUN))
