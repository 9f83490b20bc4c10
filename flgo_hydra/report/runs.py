"""Run folders read back, finished or not: the truth that every table and picture is made from."""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import starmap
from pathlib import Path
from typing import Any

from flgo_hydra.objective import VALID_LOSS, Objective
from flgo_hydra.overrides import Override, line_of, unquoted
from flgo_hydra.record.lock import is_held
from flgo_hydra.record.paths import RunPaths, SweepPaths
from flgo_hydra.record.result import defect_of, read_failure, read_result, read_rounds
from flgo_hydra.record.schema import Defect
from flgo_hydra.record.yaml_text import read_values
from flgo_hydra.report.rows import DAMAGED, Row

Value = str | int | float | bool | None
"""of a config key; lists are JSON text"""

ABSENT = "-"
"""the value of a key that a run does not have"""
DATA = "data_sha256"
"""a key whose value is the hash of what a run was trained and evaluated on, where it is known"""
CODE = "code"
"""the same of the user's own code"""
_HASH_DIGITS = 12

_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_RECENT_S = 600.0
_RECORDS = ("result.json", "failure.json", "rounds.jsonl")


@dataclass(frozen=True)
class Run:
    """A run folder."""

    name: str
    """how tables call it: its job number, or its path where several sweeps are read"""
    row: Row
    """what it came to so far; status `running` or `interrupted` without a result"""
    overrides: Mapping[str, str]
    """as given on the command line, swept and fixed"""
    values: Mapping[str, Value]
    """every config key; of a group (`algorithm`, `task/partition`) the choice"""
    fingerprint: str | None = None
    """of the config of a finished run: equal ones on the same data with the same code are repeats"""
    code: Mapping[str, str] = field(default_factory=dict)
    """hashes of the user's own files that it was computed by"""
    source: str = ""
    """what its task's source was and returned"""

    @cached_property
    def rounds(self) -> list[dict[str, float]]:
        """The evaluated rounds in order; what is not finite is nan."""
        return [] if self.row.status == DAMAGED else read_rounds(RunPaths(self.row.folder))

    @property
    def num_rounds(self) -> int | None:
        """How many it was to train."""
        value = self.values.get("num_rounds")
        return value if isinstance(value, int) else None

    def metric(self, name: str) -> float:
        """A number by its column, see `Row.metric`."""
        return self.row.metric(name)


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Reads every run in the folders: sweeps, folders of sweeps, or single runs. A run met twice counts once.

    Returns:
        The runs, in order of folders and jobs, and remarks for the reader.
    Raises:
        ValueError: a folder does not exist, cannot be read or holds no run.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        own = list(_find(folder, set()))
        if not own:
            raise ValueError(
                f"{folder} holds no run: neither it nor a folder below it has "
                f"{', '.join(_RECORDS[:2])} or {_RECORDS[2]}. Give the folder of a sweep (`hydra.sweep.dir`), of a "
                "single run (`hydra.run.dir`), or one above them."
            )
        found.update(dict.fromkeys(own))
    names = _names(list(found))
    runs = _told_apart(_of_sources(_with_choices([_read(path, name) for path, name in zip(found, names, strict=True)])))
    # The sweep that was met first has what another one repeats, if it came to its end there. Within a sweep those are
    # points of their own that differ in any key.
    owners: dict[tuple[Value, ...], Path] = {}
    firsts: dict[tuple[object, ...], Path] = {}
    for run in sorted(runs, key=lambda run: not run.row.is_valid):
        owners.setdefault(_identity(run), run.row.folder.parent)
        firsts.setdefault(_every_value(run), run.row.folder)
    kept = [
        run
        for run in runs
        if run.fingerprint is None
        or (owners[_identity(run)] == run.row.folder.parent and firsts[_every_value(run)] == run.row.folder)
    ]
    repeats = len(runs) - len(kept)
    remarks = [f"{repeats} of {len(runs)} runs repeat another one with the same config: left out."] if repeats else []
    return kept, [*remarks, *_versions(kept)]


def _identity(run: Run) -> tuple[Value, ...]:
    engine = tuple(value for key, value in sorted(run.values.items()) if key.startswith("engine."))
    return (run.fingerprint, run.values.get(DATA), run.values.get(CODE), *engine)


def _every_value(run: Run) -> tuple[object, ...]:
    return (
        run.row.folder.parent,
        _identity(run),
        tuple(sorted((key, repr(value)) for key, value in run.values.items())),
    )


def _of_sources(runs: list[Run]) -> list[Run]:
    """The same runs; where a source has returned other data to some of them, that is what their data are told by:
    tasks that split them in other ways differ anyway."""
    if _other_sources(runs):
        for run in runs:
            if run.source:
                run.values[DATA] = run.source.partition(":")[2][:_HASH_DIGITS]  # type: ignore[index]
    return runs


def _other_sources(runs: Iterable[Run]) -> bool:
    """Whether a source has returned other data to some runs than to others."""
    found: dict[str, str] = {}
    pairs = (run.source.partition(":")[::2] for run in runs if run.source)
    return any(found.setdefault(key, sha256) != sha256 for key, sha256 in pairs)


def _versions(runs: Sequence[Run]) -> list[str]:
    """Remarks on runs of one task with other data, and of other versions of the same files."""
    remarks = []
    if has_other_data(runs):
        told = _counted(run.values.get(DATA, ABSENT) for run in runs)
        remarks.append(f"Runs of the same task have other data: {told} ({DATA}). They are kept apart.")
    versions: dict[str, list[str]] = {}
    for run in runs:
        for name, sha256 in run.code.items():
            versions.setdefault(name, []).append(sha256[:_HASH_DIGITS])
    for name, found in versions.items():
        if len(set(found)) > 1:
            remarks.append(f"Runs are of {len(set(found))} versions of {name}: {_counted(found)}.")
    return remarks


def _counted(values: Iterable[Value]) -> str:
    """`3 of 1a2b, 2 of 3c4d`."""
    return ", ".join(f"{count} of {value}" for value, count in Counter(values).items())


def has_other_data(runs: Sequence[Run]) -> bool:
    """Whether runs with the same task in their configs had different data: a file was changed between them."""
    if len({run.values[DATA] for run in runs if DATA in run.values}) < 2:
        return False
    if _other_sources(runs):
        return True
    keys = [key for key in dict.fromkeys(key for run in runs for key in run.values) if _is_of_task(key)]
    found: dict[tuple[Value, ...], Value] = {}
    for run in runs:
        if DATA in run.values:
            task = tuple(run.values.get(key, ABSENT) for key in keys)
            if found.setdefault(task, run.values[DATA]) != run.values[DATA]:
                return True
    return False


def _is_of_task(key: str) -> bool:
    return key == "task" or (key.startswith(("task.", "task/")) and not _is_minor(key))


def runs_of_rows(rows: Sequence[Row]) -> list[Run]:
    """Runs as the sweep that ran them knows them, without reading their folders: values are as they were typed."""
    runs = []
    for row in rows:
        overrides = _by_key(row.overrides)
        runs.append(Run(str(row.job), row, overrides, {key: _parse(text) for key, text in overrides.items()}))
    return list(_told_apart(runs))


def value_text(value: Value) -> str:
    """As it is written on the command line: `0.1`, `fedavg`, `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _find(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Run folders below a folder, in the order of their job numbers. Links below it are not followed.

    Args:
        seen: folders that have been looked into, by device and inode: a mount can lead back, too.
    """
    if not folder.exists():
        hint = f" To choose runs by their config: `--where {folder}`." if Override.read(folder.name).is_set else ""
        raise ValueError(f"There is no folder {folder}.{hint}")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file. Give the folder of a sweep or of a run.")
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    try:
        names = os.listdir(folder)
    except PermissionError:
        raise ValueError(f"{folder} may not be read by this user.") from None
    # A job that has not come to its first round yet has Hydra's files only.
    if any(name in names for name in _RECORDS) or (".hydra" in names and "multirun.yaml" not in names):
        if any(name in names for name in (*_RECORDS, "checkpoint.pt")) or _is_ours(folder):
            yield folder.resolve()
        return
    for name in sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name)):
        below = folder / name
        if not name.startswith(".") and below.is_dir() and not below.is_symlink():
            yield from _find(below, seen)


def _is_ours(folder: Path) -> bool:
    """Whether Hydra's record in a folder is of this package: other apps' run folders are left alone."""
    config = read_yaml(folder / ".hydra" / "config.yaml")
    return isinstance(config, dict) and {"algorithm", "num_rounds", "lr"} <= set(config)


def _names(folders: Sequence[Path]) -> list[str]:
    parents = {folder.parent for folder in folders}
    if len(parents) == 1:
        return [folder.name for folder in folders]
    common = Path(os.path.commonpath(list(parents)))
    return [str(folder.relative_to(common)) for folder in folders]


def _read(folder: Path, name: str) -> Run:
    paths = RunPaths(folder)
    overrides = _read_overrides(folder)
    result = read_result(paths)
    if result is not None:
        config = result.config
    else:
        config = read_yaml(folder / ".hydra" / "config.yaml")
        config = config if isinstance(config, dict) else {}
    values = _flatten(config)
    for key, value in values.items():
        if isinstance(value, str) and (reference := _REFERENCE.fullmatch(value)):  # Hydra's record is not resolved
            values[key] = values.get(reference[1], value)
    for key, text in overrides.items():
        if key not in values or _is_group(key, values):
            values[key] = _parse(text)
    job = int(folder.name) if folder.name.isdecimal() else 0
    texts = tuple(starmap(line_of, overrides.items()))
    if result is not None:
        row = Row.of_result(job, texts, paths, result)
        code = result.code
        hashes = {DATA: result.data_sha256, CODE: code.get("sha256", "")}
        values |= {key: text[:_HASH_DIGITS] for key, text in hashes.items() if text}
        files = {**code.get("files", {}), **code.get("reads", {})}
        return Run(name, row, overrides, values, result.fingerprint or None, files, result.source)
    return Run(name, _unfinished(job, texts, paths, _monitor(values)), overrides, values)


def _unfinished(job: int, overrides: tuple[str, ...], paths: RunPaths, monitor: Objective) -> Row:
    """A run without a result, as far as its rounds go."""
    defect = defect_of(paths)
    if defect is not None:
        return Row(job, overrides, paths.folder, DAMAGED, message=str(defect), monitor=monitor)
    rounds = read_rounds(paths)
    best = monitor.best_of(rounds) or {}
    failure = read_failure(paths)
    if failure is not None:
        row = Row.of_failure(job, overrides, paths, failure)
    else:
        row = Row(job, overrides, paths.folder, "running" if _is_alive(paths) else "interrupted")
    return replace(
        row,
        monitor=monitor,
        best_valid_loss=VALID_LOSS.of(VALID_LOSS.best_of(rounds) or {}),
        best_round=int(best["round"]) if best else None,
        last_round=int(rounds[-1]["round"]) if rounds else None,
        best={name: value for name, value in best.items() if name not in ("round", "seconds")},
        seconds=round(rounds[-1]["seconds"], 3) if rounds and "seconds" in rounds[-1] else None,
    )


def _monitor(values: Mapping[str, Value]) -> Objective:
    """What an unfinished run follows, by its config."""
    metric, mode = values.get("monitor"), values.get("monitor_mode")
    try:
        return Objective.asked(str(metric), None if mode is None else str(mode)) if metric is not None else VALID_LOSS
    except ValueError:  # it was never started like that
        return VALID_LOSS


def _is_alive(paths: RunPaths) -> bool:
    """Whether somebody still works on a run: its sweep is held by a process, or it was written to lately."""
    owners = [owner for owner in (paths.owner, SweepPaths(paths.folder.parent).owner) if owner.exists()]
    if owners:
        return any(map(is_held, owners))
    times = [path.stat().st_mtime for path in (paths.rounds, paths.checkpoint, paths.folder) if path.exists()]
    return time.time() - max(times, default=0.0) < _RECENT_S


def _read_overrides(folder: Path) -> dict[str, str]:
    """Overrides by key. `~key` takes a default away, and the `+` of a new key is not part of its name."""
    lines = read_yaml(folder / ".hydra" / "overrides.yaml")
    return _by_key([str(line) for line in lines] if isinstance(lines, list) else [])


def _by_key(texts: Sequence[str]) -> dict[str, str]:
    read = [one for one in map(Override.read, texts) if one.sign != "~"]
    return {one.key: _unquoted(one.text) for one in read if one.text is not None}


def _unquoted(text: str) -> str:
    """A text without its quotes, unless they tell it from a number or the like: `"1"`."""
    inner = unquoted(text)
    if inner is None:
        return text
    return inner if isinstance(_parse(inner), str) else f'"{inner}"'


def read_yaml(path: Path) -> Any:
    """The file's content, or None when it is missing, unreadable or damaged."""
    try:
        return read_values(path)
    except Defect:
        return None


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """Every leaf by its full key (`task.partition.alpha`); a part with a name also by its group (`task/partition`)."""
    values: dict[str, Value] = {}
    for key, value in config.items():
        full = f"{prefix}{key}"
        if isinstance(value, dict):
            if isinstance(value.get("name"), str):
                values[full.replace(".", "/")] = value["name"]
            values.update(_flatten(value, f"{full}."))
        else:
            is_scalar = value is None or isinstance(value, str | int | float | bool)
            values[full] = _number(value) if is_scalar else json.dumps(value, default=str)
    return values


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text. Other texts that look like something else have their quotes: `"1"`, `"null"`."""
    if not isinstance(value, str):
        return value
    read = _parse(value)
    return read if isinstance(read, str | float) else f'"{value}"'


def _told_apart(runs: Sequence[Run]) -> Sequence[Run]:
    """The same runs, where a key that is a number in one and true in another is told in words: Python has 1 == True."""
    for key in dict.fromkeys(key for run in runs for key, value in run.values.items() if isinstance(value, bool)):
        if any(isinstance(run.values.get(key), int | float) and not isinstance(run.values[key], bool) for run in runs):
            for run in runs:
                if isinstance(run.values.get(key), bool):
                    run.values[key] = value_text(run.values[key])  # type: ignore[index]
    return runs


def _parse(text: str) -> Value:
    words: dict[str, Value] = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _is_group(key: str, values: Mapping[str, Value]) -> bool:
    return f"{key.replace('/', '.')}.name" in values


def _with_choices(runs: list[Run]) -> list[Run]:
    """Runs that did not choose in a group that others chose in (`option=fedavg_paper`) have its default."""
    chosen = {key for run in runs for key in run.overrides if key not in run.values or not _is_group(key, run.values)}
    missing = {key for key in chosen if any(key not in run.values for run in runs)}
    filled = []
    for run in runs:
        wanted = [key for key in missing if key not in run.values]
        if wanted:
            hydra = read_yaml(run.row.folder / ".hydra" / "hydra.yaml")
            try:
                choices = hydra["hydra"]["runtime"]["choices"]
                found = {key: choices[key] for key in wanted if key in choices}
            except (KeyError, TypeError):
                found = {}
            run = replace(run, values={**run.values, **found})
        filled.append(run)
    return filled


def keys_that_vary(runs: Sequence[Run]) -> list[str]:
    """The overridden keys in which the runs differ; of runs that those do not tell apart, also config keys, and config
    keys that differ for no reason that an override gives: a preset or a default was another one.
    """
    overridden = dict.fromkeys(key for run in runs for key in run.overrides)
    keys = [key for key in overridden if _varies(key, runs)]
    by_point: dict[tuple[Value, ...], list[Run]] = {}
    for run in runs:
        by_point.setdefault(tuple(run.values.get(key, ABSENT) for key in keys), []).append(run)
    for alike in by_point.values():
        if len(alike) > 1:
            candidates = dict.fromkeys(key for run in alike for key in run.values)
            differing = [key for key in candidates if not _is_minor(key) and _varies(key, alike)]
            groups = [key for key in differing if _is_group(key, alike[0].values)]
            under = tuple(f"{group.replace('/', '.')}." for group in groups)
            keys += [key for key in differing if key not in keys and not key.startswith(under)]
    keys += _unexplained(runs, overridden, keys)
    if DATA not in keys and has_other_data(runs):
        keys.append(DATA)
    return keys


def _unexplained(runs: Sequence[Run], overridden: Collection[str], keys: Collection[str]) -> list[str]:
    """Config keys that differ though nobody overrode them, nor a choice above them or a preset that sets such keys."""
    config = dict.fromkeys(key for run in runs for key in run.values)
    presets = [key for key in overridden if key not in config]
    groups = [key for key in overridden if any(_is_group(key, run.values) for run in runs)]
    found = []
    for key in config:
        if key in (CODE, *overridden, *keys) or _is_minor(key) or not _varies(key, runs):
            continue
        above = [group for group in groups if key.replace("/", ".").startswith(f"{group.replace('/', '.')}.")]
        if any(all(run.values.get(key) == run.values.get(other) for run in runs) for other in overridden):
            continue  # it repeats one
        ends: dict[tuple[Any, ...], set[Value]] = {}
        for run in runs:
            reason = tuple(run.overrides.get(one) for one in (*presets, *above))
            ends.setdefault(reason, set()).add(run.values.get(key, ABSENT))
        if any(len(values) > 1 for values in ends.values()):
            found.append(key)
    return found


def _varies(key: str, runs: Iterable[Run]) -> bool:
    return len({(type(value) is bool, value) for value in (run.values.get(key, ABSENT) for run in runs)}) > 1


def _is_minor(key: str) -> bool:
    """Whether a key decides where and how a run runs, not what it computes."""
    places = ("device", "num_threads", "checkpoint_interval", "save_best", "task.data_dir", "task.cache_dir")
    # Other data are what other keys of the task make; those that are not are found by `has_other_data`.
    return key in (*places, DATA) or key.rpartition(".")[2] in ("name", "_target_")
