"""Means over replicates, and by which units their noise is counted.

Runs of one data split (`task.seed`) share its luck, so ten seeds of one split are not ten independent runs. Where
replicates vary in several keys (`--over seed,task.seed`), a mean's variance is that between the units of each key:

- a key that lies within another one (seeds of their own for each split) adds nothing of its own: the inner values are
  averaged first, and the outer unit counts, however many each has;
- keys that are crossed (the same seeds in each split) both count, as a seed may share its luck across splits too
  (initial weights): the variance is the sum of what the means by split and the means by seed say. That is a little
  more than the unbiased estimate, and holds its level with few of either (Clark 1973 took the same sum for words and
  readers). With splits alone, a shared luck of five seeds made 73 % of null cases significant at 5 %.

The outer unit is the split: keys of the task come before others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flgo_hydra.report.runs import Value
from flgo_hydra.report.selection import sorted_values
from flgo_hydra.report.statistics import sign_flip_p, t_test

LEAST = 3
"""units: with two of them nothing is ever said to be larger than noise"""
LEAST_TO_CHOOSE = LEAST + 1
"""units: one to choose a setting by, the others to compare it on"""

_SQUARED = 1e100
"""Larger numbers have squares that are no numbers."""

Level = tuple[Value, ...]
"""values of the keys whose values are replicates"""


@dataclass(frozen=True)
class Estimate:
    """A mean over replicates and its 95 % interval."""

    mean: float
    """of the outer units' means"""
    std: float
    """of the single values (n - 1 in the denominator); nan for a single one"""
    count: int
    """of the single values"""
    low: float
    high: float
    num_units: int
    """that are independent of each other: the values themselves where replicates vary in one key"""
    p: float = math.nan
    """two-sided, that the mean is 0; nan for a single unit"""
    p_exact: float | None = None
    """of the sign-flip test over units, the largest where keys are crossed"""
    is_crossed: bool = False
    """several keys have units of their own"""


def estimate(values: Sequence[float]) -> Estimate:
    """Of independent values: Student's interval and t-test, which a single value does not have (nan)."""
    return estimate_over([((i,), value) for i, value in enumerate(values)], ("",))


def estimate_over(values: Sequence[tuple[Level, float]], over: Sequence[str]) -> Estimate:
    """Of values with what they are replicates by."""
    numbers = [value for _, value in values]
    largest = max(map(abs, numbers))
    if largest > _SQUARED:
        shrunk = estimate_over([(level, value / largest) for level, value in values], over)
        sizes = {name: getattr(shrunk, name) * largest for name in ("mean", "std", "low", "high")}
        return replace(shrunk, **sizes)
    count = len(numbers)
    keys = independent_keys([level for level, _ in values], over)
    by_key = [_means([(level[key], value) for level, value in values]) for key in keys]
    by_key = by_key or [[math.fsum(numbers) / count]]
    mean = math.fsum(by_key[0]) / len(by_key[0])
    std = math.sqrt(_variance(numbers)) if count > 1 else math.nan
    num_units = len(by_key[0])
    if num_units < 2:
        return Estimate(mean, std, count, math.nan, math.nan, num_units)
    variances = [_variance(means) / len(means) for means in by_key]
    p_exact = max((p for means in by_key if (p := sign_flip_p(means)) is not None), default=None)
    if math.sqrt(math.fsum(variances)) <= 1e-12 * abs(mean) or not any(variances):  # rounding alone
        # Without any spread there is no t: all units are the same number, which has the chance of equal signs.
        p = 1.0 if mean == 0 else 2.0 ** (1 - num_units)
        return Estimate(mean, std, count, mean, mean, num_units, p, p_exact, len(keys) > 1)
    half, p = t_test(mean, variances, [len(means) - 1 for means in by_key])
    return Estimate(mean, std, count, mean - half, mean + half, num_units, p, p_exact, len(keys) > 1)


def independent_keys(levels: Sequence[Level], over: Sequence[str]) -> list[int]:
    """Which keys' values are units of their own, the outer one first: those that lie within no other one.

    None where all levels are alike.
    """
    order = sorted(range(len(over)), key=lambda key: not over[key].startswith("task"))
    varying = [key for key in order if len({level[key] for level in levels}) > 1]
    kept: list[int] = []
    for i, key in enumerate(varying):
        others = [other for other in varying if other != key and _is_within(levels, key, other)]
        # Of keys that vary as one the first stands for all.
        if not any(not _is_within(levels, other, key) or varying.index(other) < i for other in others):
            kept.append(key)
    return kept


def halves(levels: Sequence[Level], over: Sequence[str]) -> tuple[list[Level], list[Level]] | None:
    """Replicates to choose settings by, and others to compare them on, that share no unit. None where they are too few.

    The first third of each key's units, in order, and the rest: three units at least, two of a crossed inner key.
    (Choosing for each seed by the other seeds, which would use all of them, came to 20 % false positives at 5 % with
    ten settings on ten seeds: what is low here is high among the others.)
    """
    keys = independent_keys(levels, over)
    first: list[set[Value]] = []
    for i, key in enumerate(keys):
        units = sorted_values(level[key] for level in levels)
        if len(units) < LEAST_TO_CHOOSE - (i > 0):
            return None
        first.append(set(units[: max(1, len(units) // 3)]))
    choosing: list[Level] = []
    comparing: list[Level] = []
    for level in levels:
        is_first = {level[key] in own for key, own in zip(keys, first, strict=True)}
        if len(is_first) == 1:
            (choosing if True in is_first else comparing).append(level)
    return (choosing, comparing) if choosing and comparing else None


def _is_within(levels: Sequence[Level], key: int, other: int) -> bool:
    """Whether each value of a key comes with a single one of another: seeds that differ from split to split."""
    return len({(level[key], level[other]) for level in levels}) == len({level[key] for level in levels})


def _means(pairs: Sequence[tuple[Value, float]]) -> list[float]:
    by_value: dict[Value, list[float]] = {}
    for value, number in pairs:
        by_value.setdefault(value, []).append(number)
    return [math.fsum(numbers) / len(numbers) for numbers in by_value.values()]


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
