"""The tables of a report: points, groups over seeds, and the comparison."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from flgo_hydra.record.paths import RunPaths
from flgo_hydra.report.comparison import Difference
from flgo_hydra.report.formats import Interval, KeyValue, Spread, Table, number_text
from flgo_hydra.report.over_seeds import Group, Point, named, point_of
from flgo_hydra.report.question import Question
from flgo_hydra.report.replicates import LEAST, LEAST_TO_CHOOSE
from flgo_hydra.report.rows import COSTS, DAMAGED, NO_BEST, ROUNDS, TEXTS
from flgo_hydra.report.runs import ABSENT, Run, value_text

_FEW_SEEDS = 5
_MOST_SAID = 8
_T = TypeVar("_T")


def points_table(runs: Sequence[Run], question: Question, top: int | None = None) -> Table:
    """A row per run, already in order: condition after condition, the best first.

    Args:
        top: rows of each condition.
    """
    shown, best = _tops(runs, lambda run: point_of(run, question.conditions), lambda run: run.row.is_valid, top)
    metrics = dict.fromkeys((question.metric, question.selection.metric))
    others = [name for name in question.metrics if name not in metrics]
    columns = ["job", *question.keys, "status", *metrics, *(column.name for column in ROUNDS), *others]
    columns += [column.name for column in (*COSTS, *TEXTS)]
    rows = [
        (
            run.name,
            *(KeyValue(run.values.get(key, ABSENT)) for key in question.keys),
            status_of(run),
            *map(run.metric, metrics),
            *(column.of(run.row) for column in ROUNDS),
            *map(run.metric, others),
            *(column.of(run.row) for column in (*COSTS, *TEXTS)),
            str(run.row.folder),
            question.selection.words,
        )
        for run in shown
    ]
    notes = []
    if len(shown) < len(runs):
        notes.append(f"… and {len(runs) - len(shown)} more")
    notes += question.notes
    hidden = ("folder", "chosen_by")
    texts = tuple(column.name for column in TEXTS)
    return Table(headline(runs), (*columns, *hidden), rows, tuple(notes), best, hidden=(*texts, *hidden))


def _tops(
    rows: Sequence[_T], condition: Callable[[_T], Point], can_be_best: Callable[[_T], bool], top: int | None
) -> tuple[list[_T], frozenset[int]]:
    """The first rows of each condition, and which of all those are a condition's best."""
    shown: list[_T] = []
    best: list[int] = []
    counts: Counter[Point] = Counter()
    for row in rows:
        at = condition(row)
        if counts[at] == 0 and can_be_best(row):
            best.append(len(shown))
        if top is None or counts[at] < top:
            shown.append(row)
        counts[at] += 1
    # Where each condition has a single row, nothing was chosen.
    return shown, frozenset(best if len(counts) == 1 or max(counts.values()) > 1 else ())


_TROUBLES = ("failed", NO_BEST, DAMAGED)


def headline(runs: Sequence[Run]) -> str:
    """`27 runs: 25 completed, 2 failed`."""
    counts = Counter(run.row.status.replace("_", " ") for run in runs)
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {told}"


def status_of(run: Run) -> str:
    """With how far an unfinished one has come: `running (5 of 20)`."""
    status = run.row.status
    if status in ("running", "interrupted") and run.num_rounds is not None:
        status += f" ({run.row.last_round or 0} of {run.num_rounds})"
    return status


def troubles_table(runs: Sequence[Run], question: Question) -> Table | None:
    """Runs that failed, never had a value, or cannot be believed, with reason and log."""
    rows = [
        (
            run.name,
            *(KeyValue(run.values.get(key, ABSENT)) for key in question.keys),
            run.row.message.partition("\n")[0],
            relative(RunPaths(run.row.folder).newest_log()),
        )
        for run in runs
        if run.row.end in _TROUBLES
    ]
    kinds = " or ".join(dict.fromkeys(run.row.end for run in runs if run.row.end in _TROUBLES))
    return (
        Table(f"{kinds}: {len(rows)} of {len(runs)}", ("job", *question.keys, "reason", "log"), rows) if rows else None
    )


def relative(path: Path) -> str:
    """From the current folder where it lies below it: shorter, and as the user would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def groups_table(groups: Sequence[Group], keys: Sequence[str], question: Question, top: int | None = None) -> Table:
    """A row per point, over its seeds: condition after condition, the best first."""
    at = [keys.index(key) for key in question.conditions]
    metrics = tuple(dict.fromkeys((question.metric, question.selection.metric, *question.metrics)))
    shown, best = _tops(
        groups,
        lambda group: tuple(group.point[i] for i in at),
        lambda group: question.selection.metric in group.estimates,
        top,
    )
    columns = (*keys, "runs", metrics[0], "interval_95", *metrics[1:], "left_out", "chosen_by")
    rows = []
    for group in shown:
        main = group.estimates.get(question.metric)
        others = [group.estimates.get(name) for name in metrics[1:]]
        rows.append(
            (
                *map(KeyValue, group.point),
                main.count if main else 0,
                Spread(main.mean, main.std) if main else Spread(math.nan, math.nan),
                Interval(main.low, main.high) if main else Interval(math.nan, math.nan),
                *(Spread(other.mean, other.std) if other else Spread(math.nan, math.nan) for other in others),
                group.left_out,
                question.selection.words,
            )
        )
    notes = [f"mean ± standard deviation; the interval is Student's for the mean, over {', '.join(question.over)}"]
    if any(found.num_units < found.count for group in shown for found in group.estimates.values()):
        notes[0] += ": runs that share a value of the outer one are no independent ones"
    if len(shown) < len(groups):
        notes.insert(0, f"… and {len(groups) - len(shown)} more")
    if any(group.left_out for group in shown):
        notes.append(
            "a mean over what was left is kinder than one over all, and comes after those over all: see left_out"
        )
    notes += question.notes
    return Table(f"over {', '.join(question.over)}", columns, rows, tuple(notes), best, hidden=("chosen_by",))


def comparison_table(differences: Sequence[Difference], others: Sequence[str], question: Question) -> Table:
    """A row per two values compared, first averaged over settings, then each at its best."""
    rows = []
    for found in differences:
        rows.append(
            (
                _called(question.compared, found.first),
                _called(question.compared, found.second),
                named(question.conditions, found.condition),
                _where(found, others, question),
                found.estimate.mean,
                Interval(found.estimate.low, found.estimate.high),
                found.estimate.num_units,
                found.p,
                found.p_holm,
                math.nan if found.p_exact is None else found.p_exact,
                found.verdict,
                question.selection.words,
            )
        )
    columns = ("first", "second", "under", "where", "difference", "interval_95", "seeds", "p", "p_holm", "p_exact")
    return Table(
        f"{', '.join(question.compared)} compared: {question.metric} of the first less that of the second",
        (*columns, "verdict", "chosen_by"),
        rows,
        tuple([*_notes(differences, question), *question.notes]),
        hidden=("chosen_by",),
    )


def _where(found: Difference, others: Sequence[str], question: Question) -> str:
    """`mean over 2 settings`, `each at its best: lr=0.1 / lr=0.01, chosen on seed 0`."""
    if not found.at_best:
        return f"mean over {found.num_settings} settings" if found.num_settings > 1 else "matched"
    where = named(others, found.first_setting) or ABSENT
    if found.second_setting != found.first_setting:
        where += f" / {named(others, found.second_setting) or ABSENT}"
    if found.num_settings == 1:
        return f"each at its only setting: {where}"
    on = ""
    if found.chosen_on:
        values = [list(dict.fromkeys(level[i] for level in found.chosen_on)) for i in range(len(question.over))]
        told = [f"{key} {','.join(map(value_text, own))}" for key, own in zip(question.over, values, strict=True)]
        on = f", chosen on {' '.join(told)}"
    return f"each at its best: {where}{on}"


def _notes(differences: Sequence[Difference], question: Question) -> list[str]:
    over = ", ".join(question.over)
    notes = [
        f"at equal {over}; p of a paired t-test, p_holm corrected for the number of comparisons, "
        "p_exact of the sign-flip test"
    ]
    counts = {found.estimate.num_units for found in differences if found.is_tested}
    if any(count < 2 for count in counts):
        notes.append(f"a single {over} says nothing about noise: add some (`seed=range(5)`)")
    few = min((count for count in counts if count > 1), default=_FEW_SEEDS)
    if few < LEAST:
        notes.append(f"two replicates are too few to tell a difference from noise: {LEAST} are the least")
    elif few < _FEW_SEEDS:
        notes.append(
            f"{few} replicates are few: the t-test then rests on differences being normal (p_exact cannot be below "
            f"{number_text(2 / 2**few)})"
        )
    if "task.seed" in question.conditions:
        notes.append("each data split is compared by itself: `--over seed,task.seed` takes splits for replicates too")
    if any(found.estimate.count > found.estimate.num_units for found in differences):
        notes.append(
            f"{over} are crossed: a mean's variance is the sum of those between its means by each of them, with "
            "Cochran and Cox's quantiles"
            if any(found.estimate.is_crossed for found in differences)
            else f"seeds are counted by the outer unit of {over}: those that share it are averaged first"
        )
    if any(found.chosen_on for found in differences):
        notes.append("each at its best: some replicates choose the settings, the others are compared")
    if not all(found.is_tested for found in differences):
        notes.append(
            "each at its best is not tested: whoever had more settings to try is luckier on the seeds that chose. "
            f"With {LEAST_TO_CHOOSE} replicates or more some choose, and the others are compared"
        )
    left_out = sum(found.num_left_out for found in differences)
    if left_out:
        notes.append(f"{left_out} matched pairs are not used: not every setting has their seed (yet)")
    return notes


def sentences(differences: Sequence[Difference], question: Question) -> list[str]:
    """What the comparison comes to, in plain words."""
    said = []
    for found in differences:
        if found.verdict == "larger than seed noise":
            is_first = (found.estimate.mean > 0) == question.is_max
            names = (found.first, found.second) if is_first else (found.second, found.first)
            better, worse = (_called(question.compared, name) for name in names)
            where = "at equal settings"
            if found.at_best:
                where = "each at its only setting" if found.num_settings == 1 else "each at its best setting"
            under = f" with {named(question.conditions, found.condition)}" if question.conditions else ""
            half = (found.estimate.high - found.estimate.low) / 2
            said.append(
                f"{better} has a {'higher' if question.is_max else 'lower'} {question.metric} than {worse} by "
                f"{number_text(abs(found.estimate.mean))} ± {number_text(half)} {where}{under}: larger than seed noise"
            )
    most = max((found.estimate.num_units for found in differences if found.is_tested), default=1)
    if most < LEAST:
        few = "one seed" if most < 2 else "two seeds"
        return [f"with {few} nobody knows which differences are larger than seed noise"]
    if len(said) > _MOST_SAID:
        return [f"{len(said)} of {len(differences)} differences are larger than seed noise: see verdict"]
    return said or ["no difference is larger than seed noise"]


def _called(keys: Sequence[str], point: Point) -> str:
    """`fedprox`, or with its parameters `fedprox algorithm.mu=0.1`."""
    return " ".join(filter(None, (value_text(point[0]), named(keys[1:], point[1:]))))
