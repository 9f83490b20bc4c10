"""The tables of a report: points, groups over seeds, and the comparison."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flgo_hydra.report.comparison import Difference
from flgo_hydra.report.formats import Interval, KeyValue, Spread, Table, number_text
from flgo_hydra.report.groups import Group, Point
from flgo_hydra.report.runs import ABSENT, Run, value_text

_FEW_SEEDS = 5
_MOST_SAID = 8


@dataclass(frozen=True)
class Question:
    """What a report is about."""

    keys: tuple[str, ...]
    """columns of the points"""
    over: tuple[str, ...]
    """keys whose values are replicates"""
    compared: tuple[str, ...]
    metrics: tuple[str, ...]
    """the first one decides what is best"""
    is_max: bool

    @property
    def metric(self) -> str:
        return self.metrics[0]


def points_table(runs: Sequence[Run], question: Question, top: int | None = None) -> Table:
    """A row per run, already in order."""
    shown = runs[:top]
    columns = ("job", *question.keys, "status", question.metric, "best_round", "last_round", *question.metrics[1:])
    rows = [
        (
            run.name,
            *(KeyValue(run.values.get(key, ABSENT)) for key in question.keys),
            status_of(run),
            run.metric(question.metric),
            run.row.best_round,
            run.row.last_round,
            *(run.metric(name) for name in question.metrics[1:]),
            None if run.row.seconds is None else round(run.row.seconds, 3),
            run.row.peak_memory_mib,
            run.row.message,
            str(run.row.folder),
        )
        for run in shown
    ]
    notes = []
    if len(shown) < len(runs):
        notes.append(f"… and {len(runs) - len(shown)} more")
    num_best = 1 if shown and shown[0].row.is_valid else 0
    columns = (*columns, "seconds", "peak_memory_mib", "message", "folder")
    return Table(headline(runs), columns, rows, tuple(notes), num_best, hidden=("message", "folder"))


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
    """Failed runs with reason and log."""
    rows = [
        (
            run.name,
            *(KeyValue(run.values.get(key, ABSENT)) for key in question.keys),
            run.row.message.partition("\n")[0],
            relative(log_of(run.row.folder)),
        )
        for run in runs
        if run.row.status == "failed"
    ]
    return (
        Table(f"failed: {len(rows)} of {len(runs)}", ("job", *question.keys, "reason", "log"), rows) if rows else None
    )


def log_of(folder: Path) -> Path:
    """The newest log of a run."""
    attempts = sorted(folder.glob("attempt-*.log"), key=lambda path: path.stat().st_mtime)
    logs = attempts or sorted(folder.glob("*.log"))
    return logs[-1] if logs else folder / "failure.json"


def relative(path: Path) -> str:
    """From the current folder where it lies below it: shorter, and as the user would write it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def groups_table(groups: Sequence[Group], keys: Sequence[str], question: Question, top: int | None = None) -> Table:
    """A row per point, over its seeds."""
    shown = groups[:top]
    columns = (*keys, "runs", question.metric, "interval_95", *question.metrics[1:], "left_out")
    rows = []
    for group in shown:
        main = group.estimates.get(question.metric)
        others = [group.estimates.get(name) for name in question.metrics[1:]]
        rows.append(
            (
                *map(KeyValue, group.point),
                main.count if main else 0,
                Spread(main.mean, main.std) if main else Spread(math.nan, math.nan),
                Interval(main.low, main.high) if main else Interval(math.nan, math.nan),
                *(Spread(other.mean, other.std) if other else Spread(math.nan, math.nan) for other in others),
                group.left_out,
            )
        )
    notes = [f"mean ± standard deviation; the interval is Student's for the mean, over {', '.join(question.over)}"]
    if len(shown) < len(groups):
        notes.insert(0, f"… and {len(groups) - len(shown)} more")
    if any(group.left_out for group in shown):
        notes.append("a mean over what was left is kinder than one over all: see left_out")
    num_best = 1 if shown and question.metric in shown[0].estimates else 0
    return Table(f"over {', '.join(question.over)}", columns, rows, tuple(notes), num_best)


def comparison_table(differences: Sequence[Difference], others: Sequence[str], question: Question) -> Table:
    """A row per two values compared, first averaged over settings, then each at its best."""
    rows = []
    for found in differences:
        if found.at_best:
            where = _setting(others, found.first_setting)
            if found.second_setting != found.first_setting:
                where += f" / {_setting(others, found.second_setting)}"
            where = f"each at its best: {where}"
        else:
            where = f"mean over {found.num_settings} settings" if found.num_settings > 1 else "matched"
        rows.append(
            (
                _called(question.compared, found.first),
                _called(question.compared, found.second),
                where,
                found.estimate.mean,
                Interval(found.estimate.low, found.estimate.high),
                found.estimate.count,
                found.p,
                found.p_holm,
                math.nan if found.p_exact is None else found.p_exact,
                found.verdict,
            )
        )
    columns = ("first", "second", "where", "difference", "interval_95", "seeds", "p", "p_holm", "p_exact", "verdict")
    return Table(
        f"{', '.join(question.compared)} compared: {question.metric} of the first less that of the second",
        columns,
        rows,
        tuple(_notes(differences, question)),
    )


def _notes(differences: Sequence[Difference], question: Question) -> list[str]:
    over = ", ".join(question.over)
    notes = [
        f"at equal {over}; p of the paired t-test, p_holm corrected for the number of comparisons of a kind, "
        "p_exact of the sign-flip test"
    ]
    counts = {found.estimate.count for found in differences if found.estimate.count > 1}
    if any(found.estimate.count < 2 for found in differences):
        notes.append(f"a single {over} says nothing about noise: add some (`seed=range(5)`)")
    if counts and min(counts) < _FEW_SEEDS:
        few = min(counts)
        notes.append(
            f"{few} replicates are few: the t-test then rests on differences being normal (p_exact cannot be below "
            f"{number_text(2 / 2**few)})"
        )
    if any(found.at_best for found in differences):
        notes.append("the best settings were chosen by the same runs, which flatters whoever had more settings to try")
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
            where = "each at its best setting" if found.at_best else "at equal settings"
            half = (found.estimate.high - found.estimate.low) / 2
            said.append(
                f"{better} has a {'higher' if question.is_max else 'lower'} {question.metric} than {worse} by "
                f"{number_text(abs(found.estimate.mean))} ± {number_text(half)} {where}: larger than seed noise"
            )
    if not said and all(found.estimate.count < 2 for found in differences):
        return ["with one seed nobody knows which differences are larger than seed noise"]
    if len(said) > _MOST_SAID:
        return [f"{len(said)} of {len(differences)} differences are larger than seed noise: see verdict"]
    return said or ["no difference is larger than seed noise"]


def _setting(keys: Sequence[str], point: Point) -> str:
    return " ".join(f"{key}={value_text(value)}" for key, value in zip(keys, point, strict=True))


def _called(keys: Sequence[str], point: Point) -> str:
    """`fedprox`, or with its parameters `fedprox algorithm.mu=0.1`."""
    rest = [f"{key}={value_text(value)}" for key, value in zip(keys[1:], point[1:], strict=True) if value != ABSENT]
    return " ".join([value_text(point[0]), *rest])
