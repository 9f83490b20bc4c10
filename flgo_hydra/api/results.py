"""What `run` and `sweep` return: runs with their rounds, read from their folders."""

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import RunResult, read_failure, read_result, read_rounds
from flgo_hydra.report.table import Row


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
        return math.nan if self.result is None else self.result.objective

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
class Sweep:
    """The runs of a grid, in its order."""

    by_point: dict[tuple[str, ...], Run]
    folder: Path
    storage: str = field(repr=False)
    study_name: str = field(repr=False)

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
        """The run with the best value.

        Raises:
            ValueError: no run has one.
        """
        valid = [run for run in self.runs if math.isfinite(run.value)]
        if not valid:
            whys = [f"{run.status}: {run.error or (run.result.message if run.result else '')}" for run in self.runs]
            raise ValueError(f"No run of {self.folder} has a finite value ({'; '.join(whys[:3])}).")
        return min(valid, key=lambda run: run.result.score if run.result else math.inf)

    @property
    def study(self) -> Any:
        """The sweep's Optuna study (`optuna.Study`)."""
        from flgo_hydra.study.storage import open_study

        return open_study(self.storage, self.study_name)

    def frame(self) -> Any:
        """A pandas frame with a row for each run: what varied, how it ended, and the best round's metrics."""
        rows = []
        for run in self.runs:
            varied = dict(text.split("=", 1) for text in run.overrides)
            row = {"job": run.job, **varied, "status": run.status, "best_round": run.round}
            rows.append({**row, **{name: value for name, value in run.best.items() if name != "round"}})
        return _pandas().DataFrame(rows)


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
