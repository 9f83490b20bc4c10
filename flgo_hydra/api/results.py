"""What `run` and `sweep` return: runs with their rounds, read from their folders."""

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flgo_hydra.config.option import OptionConf
from flgo_hydra.objective import BEST_VALID_LOSS, OF_SERVER, VALID_LOSS, Objective
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import RunResult, read_failure, read_result, read_rounds
from flgo_hydra.report.rows import COSTS, ROUNDS, TEXTS, Column, Row
from flgo_hydra.study.space.grid import parse_point


@dataclass(frozen=True)
class Run:
    """One run."""

    folder: Path
    overrides: tuple[str, ...]
    """what was asked for, or in a sweep what varied"""
    status: str
    """completed, early_stopped, pruned, diverged or failed; `not run` where the sweep was stopped before"""
    rounds: list[dict[str, float]] = field(repr=False)
    """a dict per evaluated round, the untrained model first: `round`, `valid_loss`, `test_accuracy`, …, `seconds`"""
    result: RunResult | None = field(repr=False)
    """everything in result.json; None without a result"""
    error: str | None = None
    """why there is no result"""
    job: int | None = None
    """number in its sweep"""

    @property
    def best(self) -> dict[str, float]:
        """The metrics of the best round, and `round`."""
        if self.result is None:
            return {}
        return {"round": self.result.best_round, **self.result.best}

    @property
    def value(self) -> float:
        """The best valid_loss, or what `monitor` names; nan where the run diverged or failed."""
        return math.nan if self.result is None else self.result.value

    @property
    def round(self) -> int | None:
        """The best round."""
        return None if self.result is None else self.result.best_round

    def frame(self) -> Any:
        """The rounds as a pandas frame."""
        return _pandas().DataFrame(self.rounds)

    def column(self, name: str) -> list[float]:
        """A metric over the evaluated rounds."""
        return [line[name] for line in self.rounds if name in line]

    def output(self, option: Mapping[str, Any] | None = None, **names: str) -> dict[str, Any]:
        """The record as FLGo returns it: a list for each metric, index 0 before training, and `option`.

        Validation metrics are there under FLGo's names too (`val_loss` is `valid_loss`).

        Args:
            option: what the caller asked for, where the result does not say.
            names: of task, algorithm and model, for `option`.
        """
        metrics = dict.fromkeys(name for line in self.rounds for name in line)
        lists: dict[str, Any] = {name: self.column(name) for name in metrics}
        lists |= {f"val_{name[6:]}": lists[name] for name in metrics if name.startswith("valid_")}
        own = {} if self.result is None else dict(self.result.option)
        lists["option"] = {**own, **(option or {}), **names}
        lists |= {"status": self.status, "folder": str(self.folder)}
        if self.error is not None:
            lists["error"] = self.error
        return lists


@dataclass(frozen=True)
class Point:
    """A point whose runs are replicates (`hydra.sweeper.replicate`)."""

    overrides: tuple[str, ...]
    mean: float
    """of the runs' values"""
    std: float | None
    """sample standard deviation; None of a single run"""
    runs: list[Run] = field(repr=False)


@dataclass(frozen=True)
class Sweep:
    """The runs of a grid, in its order."""

    by_point: dict[tuple[str, ...], Run]
    folder: Path
    storage: str = field(repr=False)
    study_name: str = field(repr=False)
    monitor: Objective = field(default=VALID_LOSS, repr=False)
    """what decides which run is best"""
    points: list[Point] = field(default_factory=list, repr=False)
    """where runs are replicates: the points that have a mean, the best first"""

    @property
    def runs(self) -> list[Run]:
        """Each run once."""
        return list({run.folder: run for run in self.by_point.values()}.values())

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def best(self) -> Run:
        """The run with the best value; of replicates, the best run of the point with the best mean (`points[0]`).

        Raises:
            ValueError: no run has one.
        """
        runs = self.points[0].runs if self.points else self.runs
        valid = [run for run in runs if math.isfinite(run.value)]
        if not valid:
            whys = [f"{run.status}: {run.error or (run.result.message if run.result else '')}" for run in self.runs]
            raise ValueError(f"No run of {self.folder} has a finite value ({'; '.join(whys[:3])}).")
        return min(valid, key=lambda run: self.monitor.rank(run.value))

    @property
    def study(self) -> Any:
        """The sweep's Optuna study (`optuna.Study`)."""
        from flgo_hydra.study.stored.storage import open_study

        return open_study(self.storage, self.study_name)

    def frame(self) -> Any:
        """A pandas frame with a row for each run: what varied, how it ended, and the metrics at its best round.

        Its columns are those of results.csv; `folder` is a whole path.

        Columns have the types of their values (`lr` floats, `seed` integers), also where some runs have none: nan
        among floats, `pandas.NA` among integers and truths.
        Metrics are called `test_loss@best(valid_loss)`; runs without a result have nan, and no best round.
        """
        pandas = _pandas()
        runs = self.runs
        varied = [_varied(run) for run in runs]
        columns: dict[str, Any] = {"job": [run.job for run in runs]}
        for key in dict.fromkeys(key for values in varied for key in values):
            column = [values.get(key) for values in varied]
            columns[key] = pandas.Series(column, dtype=_dtype(column))
        rows = [_row_of(run) for run in runs]

        def add(column: Column) -> None:
            dtype = {int: "Int64", float: "float64", str: object}[column.kind]
            columns[column.name] = pandas.array([column.of(row) for row in rows], dtype=dtype)

        columns["status"] = [row.status for row in rows]
        columns[BEST_VALID_LOSS] = [row.best_valid_loss for row in rows]
        for fact in ROUNDS:
            add(fact)
        for name in dict.fromkeys(name for row in rows for name in row.best) or OF_SERVER:
            columns[self.monitor.at_best(name)] = [row.best.get(name, math.nan) for row in rows]
        for fact in (*COSTS, *TEXTS):
            add(fact)
        columns["folder"] = [str(row.folder) for row in rows]
        return pandas.DataFrame(columns)


def _row_of(run: Run) -> Row:
    job = -1 if run.job is None else run.job
    if run.result is None:
        return Row(job, run.overrides, run.folder, run.status, message=run.error or "")
    return Row.of_result(job, run.overrides, RunPaths(run.folder), run.result)


def _dtype(column: Sequence[Any]) -> Any:
    """Of a column where some values may be missing: None leaves it to pandas."""
    kinds = {type(value) for value in column if value is not None}
    if None not in column or not kinds:
        return object if None in column else None
    if kinds <= {int, float}:
        return "Int64" if kinds == {int} else "float64"
    return "boolean" if kinds == {bool} else object


def _varied(run: Run) -> dict[str, Any]:
    """What varied, typed: as the run's config has it, and where there is no result, as it was written."""
    config = {} if run.result is None else run.result.config
    values: dict[str, Any] = {}
    for key, written in parse_point(run.overrides).items():
        found: Any = config
        for part in key.split("."):
            found = found.get(part, _ABSENT) if isinstance(found, dict) else _ABSENT
        is_scalar = found is None or isinstance(found, bool | int | float | str)
        values[key] = found if is_scalar else _as_declared(key, written)  # of a group or a list what was written
    return values


def _as_declared(key: str, value: Any) -> Any:
    """1 is 1.0 for a key that is a float."""
    declared = OptionConf.__dataclass_fields__.get(key)
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if declared is not None and declared.type is float and is_int else value


_ABSENT = object()


def read_run(folder: Path, overrides: tuple[str, ...], job: int | None = None, row: Row | None = None) -> Run:
    """A run from its folder.

    Args:
        row: of the sweep's table, where it is of a sweep: the folder may hold what another sweep left.
    """
    paths = RunPaths(folder)
    result = read_result(paths)
    rounds = read_rounds(paths)
    if job is not None and row is None:
        return Run(folder, overrides, "not run", rounds, None, "the sweep was stopped before", job)
    if result is not None and (row is None or row.status != "failed"):
        return Run(folder, overrides, result.status, rounds, result, None, job)
    failure = read_failure(paths)
    message = f"{failure.kind}: {failure.message}" if failure else (row.message if row else "there is no result")
    return Run(folder, overrides, "failed", rounds, None, message, job)


def _pandas() -> Any:
    try:
        return importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("frame() needs pandas: pip install pandas") from error
