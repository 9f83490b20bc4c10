"""Makes a sweep's study anew from its run folders: `scripts/rebuild_study <folder>`.

Run folders are the truth. A run's overrides say which point it is (composed again, as the sweep did), its result.json
and rounds.jsonl or failure.json what became of it. A study made anew has one trial a point, in the order of the run
folders; earlier attempts and times of day are not recorded there, and so not in it.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import open_dict

from flgo_hydra import compose
from flgo_hydra.config import Conf
from flgo_hydra.launch.composing import SweepComposer
from flgo_hydra.record.paths import RunPaths, SweepPaths
from flgo_hydra.record.result import Failure, RunResult, read_failure, read_result, read_rounds
from flgo_hydra.study import recorded
from flgo_hydra.study.grid import Value, parse_point
from flgo_hydra.study.objective import Common
from flgo_hydra.study.ownership import owning
from flgo_hydra.study.points import Point, keys_apart, tell_apart
from flgo_hydra.study.typed_points import TypedPoints


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
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{number} trials in the study {name!r} of {where}")
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
    from flgo_hydra.study import storage as storages  # these import optuna
    from flgo_hydra.study.study import SweepStudy

    paths = SweepPaths(folder.resolve())
    if not (paths.folder / "multirun.yaml").is_file():
        raise ValueError(f"{folder} is no sweep folder: it has no multirun.yaml.")
    hydra = recorded.read_hydra(paths.folder / "multirun.yaml")
    with owning(paths):
        name = name or hydra["sweeper"].get("study_name") or storages.name_in(paths.study)
        name = name or "_".join(paths.folder.parts[-2:])
        where = storage or str(paths.study)
        if not is_forced and (paths.study.exists() if storage is None else storages.exists(storage, name)):
            raise ValueError(f"There is a study {name!r} in {where}. To overwrite it: --force.")
        runs = _read_runs(paths, hydra)
        if not runs:
            raise ValueError(f"{folder} has no run folder with a result.json or a failure.json.")
        made: Path | str = paths.folder / ".study.journal.new"
        if storage is not None:
            made = storage
            storages.delete(storage, name)
        else:
            Path(made).unlink(missing_ok=True)
        _fill(SweepStudy(made, name), runs, _axes(runs, hydra))
        if storage is None:
            Path(made).replace(paths.study)
    return name, len(runs), where


def _fill(study: Any, runs: Sequence[_Run], axes: Sequence[str]) -> None:
    common = Common(axes)
    swept = [tuple(text for text in run.overrides if _key(text) in axes) for run in runs]
    grid: dict[str, list[str]] = {key: [] for key in axes}
    choices: dict[str, list[Value]] = {}
    for run, point in zip(runs, swept, strict=True):
        common.add(compose.settings(run.conf), run.conf.followed)
        study.follow(common.monitor)
        for text in point:
            key, _, value = text.partition("=")
            grid[key] = list(dict.fromkeys([*grid[key], value]))
        for key, typed in parse_point(point).items():
            values = choices.setdefault(key, [])
            if not any(typed == value and type(typed) is type(value) for value in values):
                values.append(typed)
    study.describe({"grid": grid, "fixed": common.values})
    study.declare(choices)
    identities = [
        Point(point, compose.fingerprint(run.conf), how=compose.not_deciding(run.conf))
        for run, point in zip(runs, swept, strict=True)
    ]
    apart = keys_apart(identities)
    if apart:
        study.describe({"apart": sorted(apart)})
    for run, point, known in zip(runs, swept, identities, strict=True):
        told = tell_apart(known, apart)
        attributes = {
            **({"fingerprint": told.fingerprint} if told.fingerprint else {}),
            "identity": told.identity,
            "job": run.job,
            "overrides": list(point),
            "attempt": 1,
            "group": compose.group(run.conf),
        }
        values_of = parse_point(point)
        number = study.start(values_of, {key: choices[key] for key in values_of}, attributes)
        if isinstance(run.ended, Failure):
            study.fail(number, f"{run.ended.kind}: {run.ended.message}", read_rounds(run.paths))
        else:
            study.finish(number, run.ended, read_rounds(run.paths))
    study.close()


def _axes(runs: Sequence[_Run], hydra: dict[str, Any]) -> list[str]:
    """The keys that a sweep varied: in its last command, or from run folder to run folder."""
    written = [f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items()]
    parser = OverridesParser.create()
    axes: list[str] = []
    for text in [*written, *hydra["overrides"]["task"]]:
        key = _key(text)
        seen = {next((t for t in run.overrides if _key(t) == key), None) for run in runs}
        if key not in axes and (len(seen) > 1 or parser.parse_override(text).is_sweep_override()):
            axes.append(key)
    first = runs[0].overrides
    for run in runs:  # what earlier commands varied, and the last one leaves out
        for text in {*run.overrides}.symmetric_difference(first):
            if _key(text) not in axes:
                axes.append(_key(text))
    return axes


def _read_runs(paths: SweepPaths, hydra: dict[str, Any]) -> list[_Run]:
    numbers = sorted(int(path.name) for path in paths.folder.iterdir() if path.name.isdecimal() and path.is_dir())
    runs = []
    with _composer(hydra) as composer:
        typed = TypedPoints(composer)
        for number in numbers:
            run = paths.run(number)
            ended = read_result(run) or read_failure(run)
            overrides = recorded.read_overrides(run.folder)
            if ended is None or overrides is None:
                continue
            conf = typed.make(overrides) or _compose(composer, typed, overrides, run)
            if isinstance(ended, RunResult) and ended.fingerprint != compose.fingerprint(conf):
                raise ValueError(
                    f"{run.folder} has the result of another config than its overrides make today: a preset or "
                    "default has changed since. Use the version it was made with."
                )
            runs.append(_Run(number, run, tuple(overrides), conf, ended))
    return runs


def _compose(composer: SweepComposer, typed: TypedPoints, overrides: list[str], run: RunPaths) -> Conf:
    cfg = composer.compose(overrides)
    if not compose.is_ours(cfg):
        raise ValueError(f"{run.folder} is of another Hydra app: what its jobs returned is in its study only.")
    with open_dict(cfg):
        del cfg["hydra"]
    conf = compose.to_conf(cfg)
    typed.learn(overrides, cfg, conf)
    return conf


@contextmanager
def _composer(hydra: dict[str, Any]) -> Iterator[SweepComposer]:
    """Composes as the recorded command did."""
    compose.prepare()
    own = recorded.config_dir(hydra)
    if own is not None and not own.is_dir():
        raise ValueError(f"The sweep was started with --config-dir {own}, which is gone.")
    searched = [f"hydra.searchpath=[file://{own}]"] if own is not None else []
    given = [text for text in hydra["overrides"]["hydra"] if text.startswith("hydra.searchpath=")]
    base = {key: value for key, value in compose.hydra_main_arguments().items() if key == "version_base"}
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(compose.conf_dir()), **base):
        loader = GlobalHydra.instance().config_loader()
        name = hydra["job"].get("config_name") or "config"
        yield SweepComposer(loader, loader.load_configuration(name, given or searched, RunMode.MULTIRUN))


def _key(text: str) -> str:
    return text.partition("=")[0]
