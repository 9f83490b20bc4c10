"""One row a job: results.csv, and best.yaml for the best of them."""

import csv
import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from omegaconf import OmegaConf

from flgo_hydra.objective import BEST_VALID_LOSS, VALID_LOSS, Objective
from flgo_hydra.overrides import texts_of
from flgo_hydra.record.files import write_text
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.plain_text import csv_cell, first_line, printable
from flgo_hydra.record.result import Failure, RunResult

_T = TypeVar("_T")
RETURNED = Objective("value")
"""what decides between jobs of another Hydra app"""
NO_BEST = "without a best"
DAMAGED = "damaged"
NOT_VALID = ("pruned", "diverged", "failed", "running", "interrupted", DAMAGED)
"""statuses of runs that cannot be the optimum: a pruned or unfinished one might have come lower, and is not compared"""


@dataclass(frozen=True, slots=True)
class Row:
    """What became of a job: what a table shows of it, and all that a sweep keeps of one that has ended."""

    job: int
    overrides: tuple[str, ...]
    folder: Path
    status: str
    """of the result, or failed; where a folder is read without a sweep also running, interrupted and damaged"""
    best_valid_loss: float = math.nan
    best_round: int | None = None
    last_round: int | None = None
    best: Mapping[str, float] = field(default_factory=dict)
    """metrics at the best round"""
    seconds: float | None = None
    peak_memory_mib: float | None = None
    message: str = ""
    num_rounds: int | None = None
    """how many it would have trained, had nothing ended it"""
    monitor: Objective = VALID_LOSS
    """what decides"""
    warnings: Sequence[str] = ()
    """of its settings, for people"""

    @property
    def is_valid(self) -> bool:
        """Whether it may be the optimum."""
        return self.status not in NOT_VALID and math.isfinite(self.value)

    @property
    def end(self) -> str:
        """Its status; `without a best` where it came to its end, and what decides was finite in no round."""
        return self.status if self.is_valid or self.status in NOT_VALID else NO_BEST

    @property
    def label(self) -> str:
        """Its point, on a line."""
        return printable(" ".join(self.overrides))

    @property
    def reason(self) -> str:
        """The first line of its message."""
        return first_line(self.message)

    @property
    def value(self) -> float:
        """The monitored metric at the best round."""
        return self.monitor.of(self.best)

    @property
    def rank(self) -> float:
        """A key to sort by, the best first."""
        return self.monitor.rank(self.value)

    def metric(self, column: str) -> float:
        """A number by its column: a metric at the best round, `best_valid_loss`, `seconds`; nan without."""
        value: Any = None
        if column == BEST_VALID_LOSS:
            value = self.best_valid_loss
        elif column in FACTS:
            value = FACTS[column].of(self)
        else:
            at_best = self.monitor.at_best
            value = next((value for name, value in self.best.items() if at_best(name) == column), None)
        return float(value) if isinstance(value, int | float) else math.nan

    @staticmethod
    def of_result(job: int, overrides: tuple[str, ...], run: RunPaths, result: RunResult) -> "Row":
        said = {field.name: getattr(result, field.name) for field in fields(Row) if hasattr(result, field.name)}
        more = {"num_rounds": result.option.get("num_rounds"), "warnings": tuple(result.warnings)}
        more |= {"status": _one(result.status), "monitor": _one(result.monitor)}
        return Row(job, overrides, run.folder, **(said | more))

    @staticmethod
    def of_value(job: int, overrides: tuple[str, ...], run: RunPaths, value: float) -> "Row":
        """Of another Hydra app's job, of which nothing is known but the number that it has returned."""
        return Row(job, overrides, run.folder, "completed", best={RETURNED.metric: value}, monitor=RETURNED)

    @staticmethod
    def of_failure(job: int, overrides: tuple[str, ...], run: RunPaths, failure: Failure) -> "Row":
        return Row(job, overrides, run.folder, "failed", message=f"{failure.kind}: {failure.message}")


@functools.cache
def _one(value: _T) -> _T:
    """The first of its equals: a sweep has many rows, which say the same of nearly all jobs."""
    return value


class Column(NamedTuple):
    """What tables say of every job besides its point, its status and its metrics."""

    name: str
    kind: type
    """int, float or str; any may be missing"""
    of: Callable[[Row], Any]


ROUNDS = (
    Column("best_round", int, lambda row: row.best_round),
    Column("last_round", int, lambda row: row.last_round),
)
"""beside the metrics"""
COSTS = (
    Column("seconds", float, lambda row: row.seconds),
    Column("peak_memory_mib", float, lambda row: row.peak_memory_mib),
)
"""after them"""
TEXTS = (Column("message", str, lambda row: row.message),)
"""last. results.csv, the points of a report and `frame()` have the columns of these three: a new one is a line here"""
FACTS = {column.name: column for column in (*COSTS, *ROUNDS)}
"""numbers of a run that belong to no round; less is better"""


def best_row(rows: Sequence[Row]) -> Row | None:
    """The row with the best value; the first of equals."""
    return min((row for row in rows if row.is_valid), key=lambda row: row.rank, default=None)


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Rewrites results.csv: a column for each swept key between status and metrics.

    Of ten thousand rows it makes one at a time: a sweep does this again and again, and memory comes back in pieces.
    """

    def swept(row: Row) -> dict[str, str]:
        return texts_of(row.overrides)

    def at_best(row: Row) -> dict[str, float]:
        return {row.monitor.at_best(name): value for name, value in row.best.items()}

    keys = list(dict.fromkeys(key for row in rows for key in swept(row)))
    metrics = dict.fromkeys(name for row in rows for name in at_best(row))
    metrics.pop(VALID_LOSS.at_best("valid_loss"), None)  # that is best_valid_loss
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        csv_cell(head)
        for head in ["job", "status", *keys, BEST_VALID_LOSS]
        + [column.name for column in ROUNDS]
        + [*metrics]
        + [column.name for column in (*COSTS, *TEXTS)]
        + ["folder"]
    )
    for row in rows:
        values, best = swept(row), at_best(row)
        cells = (
            [str(row.job), row.status, *(values.get(key, "") for key in keys), _cell(row.best_valid_loss)]
            + [_cell(column.of(row)) for column in ROUNDS]
            + [_cell(best.get(name)) for name in metrics]
            + [_cell(column.of(row)) for column in (*COSTS, *TEXTS)]
            + [_below(path.parent, row.folder)]
        )
        writer.writerow(map(csv_cell, cells))
    write_text(path, buffer.getvalue())


def write_best(
    path: Path,
    rows: Sequence[Row],
    fixed: Sequence[str],
    apart: Sequence[tuple[Mapping[str, str], Sequence[Row]]] = (),
) -> None:
    """Rewrites best.yaml; there is none while no job has a valid result.

    Args:
        apart: rows by condition, where conditions were swept.
    """
    best = best_row(rows)
    if best is None:
        path.unlink(missing_ok=True)
        return
    content = {
        "overrides": list(best.overrides),
        "fixed": list(fixed),
        "monitor": asdict(best.monitor),
        BEST_VALID_LOSS: best.best_valid_loss,
        "best_round": best.best_round,
        "at_best_round": dict(best.best),
        "job": best.job,
        "folder": _below(path.parent, best.folder),
    }
    if len(apart) > 1:
        content["best_under"] = [
            {
                "condition": dict(condition),
                "overrides": list(found.overrides),
                found.monitor.column: found.value,
                "best_round": found.best_round,
                "job": found.job,
            }
            for condition, own in apart
            if (found := best_row(own)) is not None
        ]
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(content)))


def _below(sweep: Path, folder: Path) -> str:
    return str(folder.relative_to(sweep)) if folder.is_relative_to(sweep) else folder.name


def _cell(value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None or math.isnan(value) else repr(value)
