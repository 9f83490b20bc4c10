"""What a reader asks for: keys, metrics and runs by name, each mistake answered with the nearest name there is."""

import math
from collections.abc import Iterable, Sequence

from flgo_hydra.mistakes import nearest
from flgo_hydra.report.runs import ABSENT, Run, Value, keys_that_vary, value_text

_NOT_BETTER = ("seconds", "peak_memory_mib")
_RISES = ("accuracy", "auc", "f1", "precision", "recall", "score", "r2", "iou")


def is_maximized(metric: str) -> bool:
    """Whether more is better, by the metric's name: accuracies rise, losses and costs fall."""
    return any(word in _RISES for word in metric.lower().split("_"))


def metrics_of(runs: Iterable[Run]) -> list[str]:
    """Metrics that runs have at their best round, as they recorded them; `best_valid_loss` is called so first."""
    numbers = (name for run in runs for name, value in run.row.best.items() if isinstance(value, int | float))
    names = dict.fromkeys(name for name in numbers if name != "valid_loss")
    order = ["test_loss", "test_accuracy", "valid_accuracy"]
    return ["best_valid_loss", *sorted(names, key=lambda name: order.index(name) if name in order else len(order))]


def check_metric(name: str, runs: Sequence[Run]) -> str:
    """The metric's full name.

    Raises:
        ValueError: no run has it.
    """
    name = "best_valid_loss" if name == "valid_loss" else name
    known = [*metrics_of(runs), *_NOT_BETTER, "best_round", "last_round"]
    if name not in known:
        raise ValueError(f"No run has the metric `{name}`. {_advice(name, known)}")
    return name


def curves_of(runs: Iterable[Run]) -> list[str]:
    """Metrics that some run has recorded round by round."""
    return list(dict.fromkeys(key for run in runs for line in run.rounds for key in line if key != "round"))


def check_curve(name: str, runs: Sequence[Run]) -> str:
    """A metric that is recorded round by round.

    Raises:
        ValueError: no run has recorded it.
    """
    known = curves_of(runs)
    if not known:
        raise ValueError("No run has recorded a round yet: there is no curve to draw.")
    if name not in known:
        raise ValueError(f"No run has recorded `{name}` in its rounds. {_advice(name, known)}")
    return name


def check_keys(keys: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Raises ValueError for a config key that no run has."""
    known = dict.fromkeys(key for run in runs for key in run.values)
    for key in keys:
        if key not in known:
            # A group's own key says the same as its name.
            named = [name for name in known if name.rpartition(".")[2] not in ("name", "_target_")]
            raise ValueError(f"No run has the key `{key}`. {_advice(key, named, keys_that_vary(runs))}")
    return list(dict.fromkeys(keys))


def choose(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """Runs that meet every condition: `lr=0.1,0.01` asks for one of the values.

    Raises:
        ValueError: a condition is not `key=value`, its key is unknown, or no run meets them all.
    """
    kept = list(runs)
    for condition in conditions:
        key, equals, text = condition.partition("=")
        if not equals or not text:
            raise ValueError(f"`{condition}` must be `key=value` or `key=value,value`.")
        if key != "status":
            check_keys([key], runs)
        wanted = {_normal(value) for value in (text, *text.split(","))}  # `model.hidden=[200,100]` is one value
        there = {run.row.status if key == "status" else value_text(run.values.get(key, ABSENT)) for run in kept}
        kept = [
            run
            for run in kept
            if _normal(run.row.status if key == "status" else value_text(run.values.get(key, ABSENT))) in wanted
        ]
        if not kept:
            raise ValueError(f"No run has `{condition}`. `{key}` is {', '.join(sorted(there))}.")
    return kept


def _normal(text: str) -> str:
    try:
        return f"{float(text):.12g}"
    except ValueError:
        return text.replace(" ", "").lower()


def best_first(runs: Sequence[Run], metric: str, is_max: bool) -> list[Run]:
    """Valid runs from best to worst, then those that cannot be the optimum: unfinished, pruned, diverged, failed."""
    kinds = {"running": 1, "interrupted": 1, "pruned": 2, "diverged": 3, "failed": 4}

    def place(run: Run) -> tuple[int, float]:
        value = run.metric(metric)
        order = (-value if is_max else value) if math.isfinite(value) else math.inf
        return (0 if run.row.is_valid else kinds.get(run.row.status, 2), order)

    return sorted(runs, key=place)


def sorted_values(values: Iterable[Value]) -> list[Value]:
    """Distinct values, numbers by size, then words in the order they came."""
    distinct = list(dict.fromkeys(values))
    numbers = [value for value in distinct if isinstance(value, int | float) and not isinstance(value, bool)]
    return [*sorted(numbers), *(value for value in distinct if value not in numbers or isinstance(value, bool))]


def varying(runs: Sequence[Run]) -> str:
    """A sentence for whoever chose a key that is the same everywhere."""
    keys = keys_that_vary(runs)
    return f"What varies: {', '.join(f'`{key}`' for key in keys)}." if keys else "Nothing varies."


def _advice(name: str, known: Sequence[str], instead: Sequence[str] = ()) -> str:
    names = nearest(name, known)
    if names:
        return f"Did you mean {' or '.join(f'`{name}`' for name in names)}?"
    listed = instead or known
    return f"{'Those that vary are' if instead else 'There are'} {', '.join(f'`{key}`' for key in listed)}."
