"""The best point of a sweep, as its end prints it; of each condition where those vary."""

from collections.abc import Sequence

from flgo_hydra.report.conditions import by_condition, conditions_of, is_condition
from flgo_hydra.report.runs import keys_that_vary, runs_of_rows, value_text
from flgo_hydra.report.table import Row, best_row

_MOST_CONDITIONS = 8


def print_optimum(rows: Sequence[Row], best: Row) -> None:
    """Prints what is best, at which round, and what it came to there.

    Under the easiest data everything is better: where task or model vary, each condition has an optimum of its own.
    """
    apart = _apart(rows)
    if not 1 < len(apart) <= _MOST_CONDITIONS:
        _print_one("", best)
        if len(apart) > 1:
            print(f"                     of {len(apart)} conditions: the report has the best of each")
    else:
        for condition, own in apart:
            found = best_row(own)
            if found is not None:
                _print_one(f" with {condition}", found)
    if "test" in best.monitor.metric.lower():
        print(f"                     chosen by {best.monitor.metric}, on test samples: better than on new data")


def _print_one(under: str, best: Row) -> None:
    print(f"optimal combination{under}:", " ".join(best.overrides) or "(a single point)")
    at = f" at round {best.best_round}" if best.best_round is not None else ""
    print(f"{f'best {best.monitor.metric}:':20} {best.value:.6g}{at} (job {best.job})")
    others = [f"{name} {value:.4f}" for name, value in best.best.items() if name != best.monitor.metric]
    if others:
        print(f"at that round:       {', '.join(others)}")


def _apart(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows by the conditions that were swept, with their values."""
    keys = {text.partition("=")[0].lstrip("+") for row in rows for text in row.overrides}
    if not any(is_condition(key) for key in keys):
        return [("", list(rows))]
    runs = runs_of_rows(rows)
    conditions = conditions_of(keys_that_vary(runs), ["seed"])
    apart = []
    for own in by_condition(runs, conditions):
        told = " ".join(f"{key}={value_text(own[0].values[key])}" for key in conditions if key in own[0].values)
        apart.append((told, [run.row for run in own]))
    return apart
