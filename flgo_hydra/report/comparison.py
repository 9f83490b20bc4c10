"""Which of two algorithms is lower, and whether by more than the noise of seeds.

The seed is the unit of replication. Runs are matched on every other key within a condition, the differences of a seed
are averaged over the settings it was run in, and the t-test is taken over seeds (`replicates.py`: over data splits
where those are replicates too). Counting each matched pair as a replicate would call the settings' own variation noise,
and seeds that share a split independent.

Each at its best setting is compared on other seeds than those that chose it: the best of ten settings is lucky on the
seeds that chose it (11 % false positives at 5 % against a method with one, on ten seeds; 18 % with thirty). Where there
are too few seeds for both, the difference is shown and not tested.

All tests of a report are Holm-corrected as one family: at most 5 % of reports without any true difference tell of one.
"""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flgo_hydra.report.conditions import by_condition
from flgo_hydra.report.over_seeds import Point, point_of
from flgo_hydra.report.question import Question
from flgo_hydra.report.replicates import LEAST, Estimate, Level, estimate_over, halves
from flgo_hydra.report.runs import Run, keys_that_vary
from flgo_hydra.report.statistics import holm

_ALPHA = 0.05
_TOO_LARGE = 1e300


@dataclass(frozen=True)
class Difference:
    """The metric of `first` less that of `second`, at equal seeds, under one condition."""

    first: Point
    second: Point
    at_best: bool
    """each at its own best setting, instead of averaged over the settings of both"""
    estimate: Estimate
    num_settings: int
    """that the mean is over; with `at_best` the larger number that a method had to choose from"""
    condition: Point = ()
    first_setting: Point = ()
    """with `at_best`: values of the other keys"""
    second_setting: Point = ()
    chosen_on: tuple[Level, ...] = ()
    """replicates that chose the settings, and are not in the estimate"""
    is_tested: bool = True
    """False where the same replicates chose the settings: no interval and no p then"""
    p_holm: float = math.nan
    """corrected for the number of comparisons in the report"""
    num_left_out: int = 0
    """matched pairs that could not be used because other settings have not their seed"""

    @property
    def p(self) -> float:
        return self.estimate.p

    @property
    def p_exact(self) -> float | None:
        return self.estimate.p_exact

    @property
    def verdict(self) -> str:
        if not self.is_tested:
            return "not tested: the same seeds chose the settings"
        if self.estimate.num_units < 2:
            return "one seed: noise unknown"
        if self.estimate.mean == 0 and self.estimate.std == 0:
            return "equal"
        if self.estimate.num_units < LEAST:
            return "two seeds: too few to tell"
        if self.p_holm < _ALPHA:
            return "larger than seed noise"
        return (
            "within seed noise" if self.estimate.low < self.estimate.high else "the same in each seed: too few to tell"
        )


def compare(runs: Sequence[Run], question: Question) -> list[Difference]:
    """Compares every two values of the compared keys with each other, under each condition.

    Returns:
        For each two values the difference averaged over common settings and, where a setting could be chosen, the one
        with each at its own best.
    """
    settings = question.settings(runs)
    averaged, tuned = [], []
    # Differences of larger ones would be infinite.
    valid = [run for run in runs if run.row.is_valid and abs(run.metric(question.metric)) < _TOO_LARGE]
    for own in by_condition(valid, question.conditions):
        condition = point_of(own[0], question.conditions)
        members: dict[Point, _Cells] = {}
        for run in own:
            cells = members.setdefault(point_of(run, question.compared), {})
            cells.setdefault(point_of(run, settings), {})[point_of(run, question.over)] = run
        for first, second in itertools.combinations(members, 2):
            named = Difference(first, second, False, _NOTHING, 0, condition)
            averaged += _averaged(named, members[first], members[second], question)
            tuned += _at_best(named, members[first], members[second], question)
    return _corrected([*averaged, *tuned])


def with_parameters(keys: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """The keys and what varies below them: fedprox with another `algorithm.mu` is another algorithm to compare."""
    below = tuple(f"{key.replace('/', '.')}." for key in keys)
    return [*keys, *(key for key in keys_that_vary(runs) if key not in keys and key.startswith(below))]


_Cells = dict[Point, dict[Level, Run]]
"""runs by setting and replicate"""
_NOTHING = Estimate(math.nan, math.nan, 0, math.nan, math.nan, 0)


def _averaged(named: Difference, first: _Cells, second: _Cells, question: Question) -> list[Difference]:
    """One difference a replicate: the mean over the settings that both have."""
    pairs = {
        setting: {level: (run, second[setting][level]) for level, run in runs.items() if level in second[setting]}
        for setting, runs in first.items()
        if setting in second
    }
    pairs = {setting: own for setting, own in pairs.items() if own}
    if not pairs:
        return []
    settings, levels = _whole({setting: frozenset(own) for setting, own in pairs.items()})
    metric = question.metric
    differences = [
        (level, math.fsum(a.metric(metric) - b.metric(metric) for a, b in (pairs[s][level] for s in settings)))
        for level in levels
    ]
    found = estimate_over([(level, total / len(settings)) for level, total in differences], question.over)
    left_out = sum(map(len, pairs.values())) - len(levels) * len(settings)
    return [replace(named, estimate=found, num_settings=len(settings), num_left_out=left_out)]


def _at_best(named: Difference, first: _Cells, second: _Cells, question: Question) -> list[Difference]:
    """Each at the setting that is best on some replicates, compared on the others; nothing where none could choose."""
    whole = [_whole({setting: frozenset(own) for setting, own in cells.items()}) for cells in (first, second)]
    levels = [level for level in whole[0][1] if level in whole[1][1]]
    num_settings = max(len(settings) for settings, _ in whole)
    if not levels or (num_settings == 1 and whole[0][0] == whole[1][0]):
        return []
    parts = halves(levels, question.over) if num_settings > 1 else ([], levels)
    choosing, comparing = parts if parts is not None else (levels, levels)
    chosen = [
        _best_setting(cells, settings, choosing, question) if len(settings) > 1 else settings[0]
        for cells, (settings, _) in zip((first, second), whole, strict=True)
    ]
    values = [{level: cells[at][level].metric(question.metric) for level in comparing}
              for cells, at in zip((first, second), chosen, strict=True)]  # fmt: skip
    found = estimate_over([(level, values[0][level] - values[1][level]) for level in comparing], question.over)
    is_tested = parts is not None
    if not is_tested:
        found = replace(found, low=math.nan, high=math.nan, p=math.nan, p_exact=None)
    return [
        replace(
            named,
            at_best=True,
            estimate=found,
            num_settings=num_settings,
            first_setting=chosen[0],
            second_setting=chosen[1],
            chosen_on=tuple(choosing) if is_tested else (),
            is_tested=is_tested,
        )
    ]


def _best_setting(cells: _Cells, settings: Sequence[Point], levels: Sequence[Level], question: Question) -> Point:
    """The first of equals; what has no such metric is last."""
    selection = question.selection

    def mean(setting: Point) -> float:
        values = [(level, cells[setting][level].metric(selection.metric)) for level in levels]
        found = estimate_over(values, question.over).mean
        return selection.by.rank(found)

    return min(settings, key=mean)


def _whole(levels_of: dict[Point, frozenset[Level]]) -> tuple[list[Point], list[Level]]:
    """Settings that all have the same replicates, and those: seeds of a half-finished sweep shall not differ by what
    they were run in. The choice with the most runs; of equals the one with more replicates."""
    counts = Counter(levels_of.values())  # few, however many settings there are

    def place(levels: frozenset[Level]) -> tuple[int, int]:
        return len(levels) * sum(count for own, count in counts.items() if levels <= own), len(levels)

    levels = max(counts, key=place)
    return [setting for setting, own in levels_of.items() if levels <= own], sorted(levels, key=str)


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    corrected = holm([found.p if found.estimate.num_units >= LEAST else math.nan for found in differences])
    return [replace(found, p_holm=p) for found, p in zip(differences, corrected, strict=True)]
