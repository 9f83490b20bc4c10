"""What a sweep has come to, and where two of them differ.

Compared are, to the last digit:
- results.csv and points.csv: each row, but for job number, folder, seconds and memory;
- rounds.jsonl of each point: each line, but for seconds;
- best.yaml, but for job number and folder;
- the study, read with Optuna's own API: of each point exactly one trial with an outcome, its state, parameters,
  value, curve, best and last round and status; trials of attempts that were cut off (FAIL) may stand beside it, and
  none may be RUNNING; of a point that had to run again, as its records were damaged, two that are the same;
- best_model.safetensors, byte by byte, and that no checkpoint is left.

Of a sweep with a pruner it depends on which run ends first whose run is pruned. There a pruned run's lines must be the
first ones of the other's, runs that came to their end in both must be the same, and the best must be the best of the
rows that are there. Of a search whose study or runs were deleted, the points that come after may be others: those that
both have must be the same, and there must be as many.
"""

import csv
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from sweeps import DATABASE, Sweep

_UNSTEADY = {"job", "jobs", "folder", "seconds", "peak_memory_mib"}
_MOST_TOLD = 12
Point = tuple[tuple[str, str], ...]


@dataclass
class Found:
    """What a sweep's folder and study hold."""

    rows: dict[Point, dict[str, str]]
    """of results.csv, by point"""
    points: list[dict[str, str]]
    """of points.csv"""
    rounds: dict[Point, list[dict[str, Any]]]
    best: dict[str, Any]
    models: dict[Point, str]
    trials: list[dict[str, Any]] = field(default_factory=list)
    """with an outcome"""
    is_running: int = 0
    """how many trials have none, and are not told to have failed"""
    leftovers: list[str] = field(default_factory=list)
    """what is wrong with the files themselves"""


def read(folder: Path, sweep: Sweep, without_rounds: Collection[str] = ()) -> Found:
    """Reads a finished sweep.

    Args:
        without_rounds: run folders whose records were taken away: a result without its rounds stands alone.
    Raises:
        Exception: a file is missing, or nothing that its reader knows.
    """
    rows, rounds, models = {}, {}, {}
    left = [*folder.glob("*/checkpoint.pt"), *folder.glob("*/.*.????????")]
    # A folder that does not say any more which point it is stays as it was found, for who knows it.
    left = [path for path in left if path.parent == folder or (path.parent / ".hydra").exists()]
    leftovers = [f"left over: {path.relative_to(folder)}" for path in left if path.is_file()]
    for row in _table(folder / "results.csv"):
        point = tuple(item for item in row.items() if item[0] in _swept(row))
        run = folder / row["folder"]
        if point in rows:
            leftovers.append(f"a second row of {_name(point)} in results.csv")
        rows[point] = {key: value for key, value in row.items() if key not in _UNSTEADY}
        if (run / "rounds.jsonl").exists():
            lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
            rounds[point] = [_steady(line) for line in lines]
        elif run.name not in without_rounds:
            leftovers.append(f"no rounds.jsonl of {_name(point)}")
        if (run / "best_model.safetensors").exists():
            models[point] = hashlib.sha256((run / "best_model.safetensors").read_bytes()).hexdigest()
    points = [_steady(row) for row in _table(folder / "points.csv")] if (folder / "points.csv").exists() else []
    best = yaml.safe_load((folder / "best.yaml").read_text())
    trials, is_running = _read_trials(folder, sweep)
    return Found(rows, sorted(points, key=str), rounds, _steady(best), models, trials, is_running, leftovers)


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _swept(row: dict[str, str]) -> list[str]:
    keys = list(row)
    return keys[keys.index("status") + 1 : keys.index("best_valid_loss")]


def _steady(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in _UNSTEADY}


def _read_trials(folder: Path, sweep: Sweep) -> tuple[list[dict[str, Any]], int]:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage: Any = (
            f"sqlite:///{folder.parent / DATABASE}"
            if sweep.is_database
            else JournalStorage(JournalFileBackend(str(folder / "study.journal")))
        )
        found = optuna.load_study(study_name=None, storage=storage).trials
    trials = [
        {
            "point": " ".join(trial.user_attrs["overrides"]),
            "state": trial.state.name,
            "params": dict(sorted(trial.params.items())),
            "value": trial.value,
            "curve": dict(sorted(trial.intermediate_values.items())),
            **{key: trial.user_attrs.get(key) for key in ("best_round", "best_rounds", "last_round", "status")},
        }
        for trial in found
        if trial.state.name in ("COMPLETE", "PRUNED")
    ]
    return sorted(trials, key=str), sum(trial.state.name in ("RUNNING", "WAITING") for trial in found)


def differences(found: Found, alone: Found, sweep: Sweep, is_loose: bool = False) -> list[str]:
    """Where a sweep differs from the undisturbed one; a line each.

    Args:
        is_loose: study or runs of it were damaged or taken away: points ran again, and a search went on without what
            it knew.
    """
    told = list(found.leftovers)
    if found.is_running:
        told.append(f"{found.is_running} trials are RUNNING")
    if sweep.may_differ:
        told += _pruned(found, alone)
    elif is_loose and sweep.kind == "search":
        # A sampler that begins anew may choose points again that it had: those count as tried.
        if len(found.trials) < len(alone.trials):
            told.append(f"{len(found.trials)} trials with an outcome, undisturbed {len(alone.trials)}")
        both = set(found.rows) & set(alone.rows)
        told += _by_point(found, alone, both)
    else:
        told += [f"no {_name(point)}" for point in alone.rows if point not in found.rows]
        told += [f"{_name(point)} besides" for point in found.rows if point not in alone.rows]
        told += _by_point(found, alone, set(found.rows) & set(alone.rows))
        told += _values("points.csv", found.points, alone.points)
        told += _values("best.yaml", found.best, alone.best)
        told += _trials(found, alone, is_loose)
    return told[:_MOST_TOLD] + [f"and {len(told) - _MOST_TOLD} more"] * (len(told) > _MOST_TOLD)


def _by_point(found: Found, alone: Found, points: set[Point]) -> list[str]:
    told = []
    for point in sorted(points):
        told += _values(f"results.csv, {_name(point)}", found.rows[point], alone.rows[point])
        if point in found.rounds:
            told += _lines(point, found.rounds[point], alone.rounds[point])
        if found.models.get(point) != alone.models.get(point):
            told.append(f"best_model of {_name(point)} is another one")
    return told


def _lines(point: Point, here: list[dict[str, Any]], there: list[dict[str, Any]]) -> list[str]:
    told = [f"{_name(point)}: {len(here)} lines, undisturbed {len(there)}"] if len(here) != len(there) else []
    unlike = [i for i, (one, other) in enumerate(zip(here, there, strict=False)) if one != other]
    if unlike:
        i = unlike[0]
        told.append(
            f"{_name(point)}: {len(unlike)} lines differ, first line {i + 1}: {here[i]}, undisturbed {there[i]}"
        )
    return told


def _values(where: str, here: Any, there: Any) -> list[str]:
    if here == there:
        return []
    if isinstance(here, dict) and isinstance(there, dict):
        keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
        return [f"{where}: {key} is {here.get(key)!r}, undisturbed {there.get(key)!r}" for key in keys]
    return [f"{where}: {here!r}, undisturbed {there!r}"]


def _trials(found: Found, alone: Found, is_loose: bool) -> list[str]:
    trials = found.trials
    if is_loose:  # what ran again has a trial of before as well, of the same value (of its curve there may be less)
        trials = list(
            {(one["point"], one["value"]): one for one in sorted(trials, key=lambda one: len(one["curve"]))}.values()
        )
        trials.sort(key=str)
    here, there = (Counter(trial["point"] for trial in one) for one in (trials, alone.trials))
    told = [
        f"{here[point]} trials with an outcome of {point}, undisturbed {there[point]}"
        for point in sorted({*here, *there})
        if here[point] != there[point]
    ]
    if not told:
        for one, other in zip(trials, alone.trials, strict=True):
            if is_loose and not one["curve"]:  # made from a result whose rounds were taken away
                other = {**other, "curve": {}}
            told += _values(f"trial of {one['point']}", one, other)
    return told


def _pruned(found: Found, alone: Found) -> list[str]:
    if set(found.rows) != set(alone.rows):
        return [f"{len(found.rows)} points, undisturbed {len(alone.rows)}"]
    told = []
    ended = {point for point in found.rows if found.rows[point]["status"] == "completed"}
    told += _by_point(found, alone, {point for point in ended if alone.rows[point]["status"] == "completed"})
    for point in sorted(found.rounds):
        num = min(len(found.rounds[point]), len(alone.rounds[point]))
        told += _lines(point, found.rounds[point][:num], alone.rounds[point][:num])
    best = min((float(found.rows[point]["best_valid_loss"]) for point in ended), default=None)
    if best != found.best["best_valid_loss"]:
        told.append(f"best.yaml has {found.best['best_valid_loss']}, the best row {best}")
    # One whose folder was damaged has run again: what a study has ended stays in it beside.
    there = {(frozenset(trial["point"].split()), trial["state"]) for trial in found.trials}
    for point in found.rows:
        state = "COMPLETE" if point in ended else "PRUNED"
        if (frozenset(_name(point).split()), state) not in there:
            told.append(f"the study has no {state} trial of {_name(point)}")
    return told


def _name(point: Point) -> str:
    return " ".join(f"{key}={value}" for key, value in point)
