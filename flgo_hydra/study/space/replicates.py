"""Replicates: jobs that differ in nothing but a seed make one point, whose value is their mean."""

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence

from flgo_hydra.report.rows import Row
from flgo_hydra.study.space.grid import Grid


def split_replicates(grid: Grid, keys: Sequence[str]) -> tuple[Grid, list[tuple[str, ...]]]:
    """Takes the replicate keys out of a grid; returns what is left, and their combinations (one, empty, if none).

    Raises:
        ValueError: a key is not one that varies over a list of values.
    """
    for key in keys:
        if key in {interval.name for interval in grid.intervals}:
            raise ValueError(f"`hydra.sweeper.replicate={key}` needs single values of `{key}`: `{key}=0,1,2`.")
        if key not in {axis.name for axis in grid.axes}:
            raise ValueError(
                f"`hydra.sweeper.replicate={key}` must name a key that varies, but `{key}` does not: `{key}=0,1,2`."
            )
    rest, own = grid.split(keys)
    return rest, own.points()


def identity_of(identities: Sequence[str]) -> str:
    """Of a point with these jobs, in any order. Another seed makes another point of it."""
    return hashlib.sha256(" ".join(sorted(identities)).encode()).hexdigest()[:16]


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the sample standard deviation; None of a single value."""
    largest = max(map(abs, values))
    if largest > 1e100:  # whose squares are no numbers
        mean, std = mean_and_std([value / largest for value in values])
        return mean * largest, None if std is None else std * largest
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def mean_curve(curves: Sequence[Sequence[Mapping[str, float]]], metric: str) -> dict[int, float]:
    """The mean of a metric by round, over the rounds that every replicate has."""
    by_round = [{int(line["round"]): line[metric] for line in curve if metric in line} for curve in curves]
    common = set.intersection(*(set(curve) for curve in by_round)) if by_round else set()
    return {number: statistics.fmean(curve[number] for curve in by_round) for number in sorted(common)}


def reason_of(outcome: Row) -> str | None:
    """Why a job that has ended has no value to compare; None where it has one."""
    if outcome.status == "failed":
        return outcome.message
    if outcome.status == "diverged":
        return f"diverged: {outcome.message}"
    return None if math.isfinite(outcome.value) else "its value is not finite"
