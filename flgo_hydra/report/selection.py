"""What a reader asks for: keys, metrics and runs by name, each mistake answered with the nearest name there is."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flgo_hydra.mistakes import nearest
from flgo_hydra.objective import BEST_VALID_LOSS, KNOWN, VALID_LOSS, Objective, metric_of
from flgo_hydra.overrides import Override
from flgo_hydra.report.rows import DAMAGED, FACTS
from flgo_hydra.report.runs import ABSENT, Run, Value, keys_that_vary, value_text


def is_maximized(column: str, runs: Iterable[Run]) -> bool:
    """Whether more is better: as the runs say of what they followed, and as is known of our own metrics.

    Raises:
        ValueError: it is another metric of the user's own.
    """
    metric = metric_of(column)
    if column in FACTS or column == BEST_VALID_LOSS:
        return False
    said = {run.row.monitor.is_maximized for run in runs if run.row.monitor.metric == metric}
    if len(said) == 1:
        return said.pop()
    if metric not in KNOWN:
        raise ValueError(
            f"`{metric}` is a metric of your own that the runs did not follow: say which way it is better, "
            "`--maximize` or `--minimize`."
        )
    return KNOWN[metric]


def check_direction(is_max: bool, columns: Sequence[str], runs: Iterable[Run]) -> None:
    """Whether `--maximize` or `--minimize` can be about the metrics.

    Raises:
        ValueError: runs followed one of them the other way: their best rounds are of that direction already.
    """
    monitors = dict.fromkeys(run.row.monitor for run in runs)
    against = next((one for one in monitors if one.column in columns and one.is_maximized != is_max), None)
    if against is not None:
        option, better = ("--maximize", "less") if is_max else ("--minimize", "more")
        raise ValueError(
            f"`{option}` would be of {against.column}, but the runs followed `monitor={against.metric}` "
            f"({against.mode}): {better} of it is better, and their best rounds were chosen so. Drop `{option}`, or "
            "name another metric that it is about: `--metric` or `--select`."
        )


@dataclass(frozen=True)
class Selection:
    """What settings are chosen by: what the runs followed (`monitor`), or what `--select` names instead.

    Never what is only shown: a rate chosen by its test accuracy has a test accuracy that is too good.
    """

    by: Objective
    """its metric is a column of the tables"""
    followed: tuple[Objective, ...] = (VALID_LOSS,)
    """what the runs' best rounds were chosen by"""
    is_asked: bool = False

    @property
    def metric(self) -> str:
        return self.by.metric

    @property
    def words(self) -> str:
        """`best_valid_loss`, and where it is not measured on validation samples what it is: for titles."""
        return self.metric if self.by.samples == "validation" else f"{self.metric} ({self.by.samples} samples)"

    def notes(self, shown: str) -> list[str]:
        """What a reader of a table of `shown` must know of how its rows were chosen."""
        who = "as asked for" if self.is_asked else "which the runs followed"
        notes = []
        samples = self.by.samples
        if samples == "validation":
            if shown != self.metric:
                notes.append(f"the best are chosen by {self.metric}, {who}, on validation samples")
        else:
            notes.append(
                f"the best are chosen by {self.metric}, {who}, on test samples: test metrics of what was chosen are "
                "better than they would be on new data"
                if samples == "test"
                else f"the best are chosen by {self.metric}, {who}, on {samples} samples"
            )
        others = [one.metric for one in self.followed if one.metric != metric_of(self.metric) and one.samples == "test"]
        if others:
            whose = "each run's best round is" if len(self.followed) == 1 else "some runs' best rounds are"
            notes.append(f"{whose} chosen by {' and '.join(others)}, on test samples")
        return notes


def selection_of(runs: Sequence[Run], asked: str | None = None, is_max: bool | None = None) -> Selection:
    """What the runs followed, or with `asked` that metric.

    Args:
        is_max: the direction of `asked`; None: as the runs followed it, or as is known.
    Raises:
        ValueError: runs followed different metrics, or none has the one asked for.
    """
    valid = [run.row for run in runs if run.row.is_valid] or [run.row for run in runs]
    followed = tuple(dict.fromkeys(row.monitor for row in valid))
    if asked is not None:
        name = check_metric(asked, runs)
        return Selection(Objective(name, is_maximized(name, runs) if is_max is None else is_max), followed, True)
    if len(followed) > 1:
        told = " and ".join(f"`monitor={monitor.metric}` ({monitor.mode})" for monitor in followed)
        raise ValueError(
            f"The runs followed different metrics: {told}. Say which one chooses among them, as in "
            f"`--select {BEST_VALID_LOSS}`, or take the runs of one only."
        )
    (monitor,) = followed
    return Selection(Objective(monitor.column, monitor.is_maximized), followed)


def metrics_of(runs: Iterable[Run]) -> list[str]:
    """Columns of what runs have at their best rounds, as they recorded it; `best_valid_loss` comes first."""
    found = {
        run.row.monitor.at_best(name): name
        for run in runs
        for name, value in run.row.best.items()
        if isinstance(value, int | float)
    }
    found.pop(VALID_LOSS.at_best("valid_loss"), None)  # that is best_valid_loss
    order = ["valid_loss", "test_loss", "test_accuracy", "valid_accuracy"]
    places = {column: order.index(name) if name in order else len(order) for column, name in found.items()}
    return [BEST_VALID_LOSS, *sorted(found, key=places.__getitem__)]


def check_metric(name: str, runs: Sequence[Run]) -> str:
    """The metric's column; a metric's own name means it at the runs' best rounds.

    Raises:
        ValueError: no run has it, or runs that followed different metrics have it at different best rounds.
    """
    columns = metrics_of(runs)
    meant = [column for column in columns if metric_of(column) == name]
    if name in columns or (name in FACTS and not meant):
        return name
    if not meant:
        short = dict.fromkeys(metric_of(column) for column in columns[1:])
        raise ValueError(f"No run has the metric `{name}`. {_advice(name, [BEST_VALID_LOSS, *short, *FACTS])}")
    if len(meant) > 1:
        told = " or ".join(f"`{column}`" for column in meant)
        raise ValueError(f"The runs' best rounds were chosen by different metrics: of `{name}`, is {told} meant?")
    return meant[0]


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
        one = Override.read(condition)
        key, text = one.name, one.text
        if not text:
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


def best_first(runs: Sequence[Run], selection: Selection, conditions: Sequence[str] = ()) -> list[Run]:
    """Condition after condition, valid runs from best to worst, then those that cannot be the optimum: unfinished,
    pruned, diverged, failed."""
    kinds = {"running": 1, "interrupted": 1, "pruned": 2, "diverged": 3, "failed": 4, DAMAGED: 5}
    ranks = ranks_of(runs, conditions)

    def place(run: Run) -> tuple[list[int], int, float]:
        value = run.metric(selection.metric)
        return (ranks(run), 0 if run.row.is_valid else kinds.get(run.row.status, 2), selection.by.rank(value))

    return sorted(runs, key=place)


def ranks_of(runs: Sequence[Run], keys: Sequence[str]) -> Callable[[Run], list[int]]:
    """Where a run stands by its values of the keys: numbers by size, words in the order they came."""
    places = [{value: i for i, value in enumerate(sorted_values(values_of(runs, key)))} for key in keys]
    return lambda run: [own[run.values.get(key, ABSENT)] for own, key in zip(places, keys, strict=True)]


def values_of(runs: Iterable[Run], key: str) -> list[Value]:
    """The runs' values of a key, each once."""
    return list(dict.fromkeys(run.values.get(key, ABSENT) for run in runs))


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
