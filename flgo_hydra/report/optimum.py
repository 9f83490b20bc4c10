"""The best point of a sweep, as its end prints it; of each condition where those vary."""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from flgo_hydra.objective import Objective
from flgo_hydra.overrides import Override
from flgo_hydra.record.plain_text import printable
from flgo_hydra.report.conditions import by_condition, conditions_of, is_condition
from flgo_hydra.report.point_rows import PointRow, print_best_point
from flgo_hydra.report.rows import Row, best_row
from flgo_hydra.report.runs import keys_that_vary, runs_of_rows, value_text

_MOST_CONDITIONS = 8
_T = TypeVar("_T")


def print_optimum(rows: Sequence[Row], best: Row) -> None:
    """Prints what is best, at which round, and what it came to there.

    Under the easiest data everything is better: where task or model vary, each condition has an optimum of its own.
    """
    _print_each(
        [(condition, found) for condition, own in conditions_apart(rows) if (found := best_row(own)) is not None],
        best,
        _print_one,
    )
    _tell_of_test(best.monitor)


def print_optimal_point(rows: Sequence[Row], points: Sequence[PointRow]) -> None:
    """The same where jobs are replicates of points.

    Args:
        points: those that have a mean, the best first.
    """
    _print_each(
        [(condition, own[0]) for condition, own in points_apart(rows, points) if own],
        points[0],
        print_best_point,
    )
    _tell_of_test(points[0].monitor)


def _tell_of_test(monitor: Objective) -> None:
    if monitor.samples == "test":
        print(f"                     chosen by {monitor.metric}, on test samples: better than on new data")


def conditions_apart(rows: Sequence[Row], over: Collection[str] = ()) -> list[tuple[dict[str, str], list[Row]]]:
    """Rows by the values of the conditions that were swept.

    Args:
        over: keys of replicates, besides the seed.
    """
    keys = _keys_of(rows)
    if not any(is_condition(key) and key not in over for key in keys):
        return [({}, list(rows))]
    runs = runs_of_rows(rows)
    conditions = conditions_of(keys_that_vary(runs), ["seed", *over])
    apart = []
    for own in by_condition(runs, conditions):
        told = {key: value_text(own[0].values[key]) for key in conditions if key in own[0].values}
        apart.append((told, [run.row for run in own]))
    return apart


def points_apart(rows: Sequence[Row], points: Sequence[PointRow]) -> list[tuple[dict[str, str], list[PointRow]]]:
    """Points by the values of the conditions that were swept, in their order."""
    apart = []
    for condition, own in conditions_apart(rows, _keys_of(rows) - _keys_of(points)):
        jobs = {row.job for row in own}
        apart.append((condition, [point for point in points if jobs.issuperset(point.jobs)]))
    return apart


def _keys_of(rows: Sequence[Row | PointRow]) -> set[str]:
    return {Override.read(text).key for row in rows for text in row.overrides}


def _print_each(optima: Sequence[tuple[dict[str, str], _T]], best: _T, show: Callable[[_T, str], None]) -> None:
    if 1 < len(optima) <= _MOST_CONDITIONS:
        for condition, found in optima:
            told = " ".join(f"{key}={value}" for key, value in condition.items())
            show(found, f" with {told}" if told else "")
        return
    show(best, "")
    if len(optima) > 1:
        print(f"                     of {len(optima)} conditions: the report has the best of each")


def _print_one(best: Row, under: str) -> None:
    print(f"optimal combination{under}:", best.label or "(a single point)")
    at = f" at round {best.best_round}" if best.best_round is not None else ""
    print(f"{f'{best.monitor.label}:':20} {best.value:.6g}{at} (job {best.job})")
    others = [f"{printable(name)} {value:.4f}" for name, value in best.best.items() if name != best.monitor.metric]
    if others:
        print(f"at that round:       {', '.join(others)}")
