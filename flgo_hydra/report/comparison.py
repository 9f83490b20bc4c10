"""Which of two algorithms is lower, and whether by more than the noise of seeds.

The seed is the unit of replication. Runs are matched on every other key, the differences of a seed are averaged over
the settings it was run in, and the paired t-test is taken over seeds. (Counting each matched pair as a replicate would
call the settings' own variation noise, and seeds that share a split independent.)
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flgo_hydra.report.groups import Point, group_runs, point_of
from flgo_hydra.report.runs import Run, keys_that_vary
from flgo_hydra.report.statistics import Estimate, estimate, holm, paired_t_p, sign_flip_p

_ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """The metric of `first` less that of `second`, at equal seeds."""

    first: Point
    second: Point
    at_best: bool
    """each at its own best setting, instead of averaged over the settings of both"""
    estimate: Estimate
    num_settings: int
    first_setting: Point = ()
    """with `at_best`: values of the other keys"""
    second_setting: Point = ()
    p: float = math.nan
    p_holm: float = math.nan
    """corrected for the number of comparisons of its kind"""
    p_exact: float | None = None
    """of the sign-flip test, which does not assume normal differences"""
    num_left_out: int = 0
    """matched pairs that could not be used because other settings have not their seed"""

    @property
    def verdict(self) -> str:
        if self.estimate.count < 2:
            return "one seed: noise unknown"
        if self.estimate.mean == 0 and self.estimate.std == 0:
            return "equal"
        return "larger than seed noise" if self.p_holm < _ALPHA else "within seed noise"


def compare(
    runs: Sequence[Run], keys: Sequence[str], over: Sequence[str], metric: str, is_max: bool
) -> list[Difference]:
    """Compares every two values of `keys` with each other.

    Args:
        keys: usually `algorithm`, `with_parameters`.
        over: the keys whose values are replicates: usually `seed`.
    Returns:
        For each two values the difference averaged over common settings and, where there are several, the one with
        each at its own best; each kind Holm-corrected.
    """
    others = [key for key in keys_that_vary(runs) if key not in keys and key not in over]
    members: dict[Point, list[Run]] = {}
    for run in runs:
        if run.row.is_valid and math.isfinite(run.metric(metric)):
            members.setdefault(point_of(run, keys), []).append(run)
    averaged, tuned = [], []
    for first, second in itertools.combinations(members, 2):
        cells = [_cells(members[value], others, over, metric) for value in (first, second)]
        pairs = {at: cells[0][at] - cells[1][at] for at in cells[0] if at in cells[1]}
        if pairs:
            averaged.append(_over_seeds(first, second, pairs))
        if others:
            found = _at_best(first, second, members, others, over, metric, is_max)
            if found is not None:
                tuned.append(found)
    return [*_corrected(averaged), *_corrected(tuned)]


def with_parameters(keys: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """The keys and what varies below them: fedprox with another `algorithm.mu` is another algorithm to compare."""
    below = tuple(f"{key.replace('/', '.')}." for key in keys)
    return [*keys, *(key for key in keys_that_vary(runs) if key not in keys and key.startswith(below))]


def _cells(
    runs: Sequence[Run], others: Sequence[str], over: Sequence[str], metric: str
) -> dict[tuple[Point, Point], float]:
    """The metric by (setting, seed)."""
    return {(point_of(run, others), point_of(run, over)): run.metric(metric) for run in runs}


def _over_seeds(first: Point, second: Point, pairs: dict[tuple[Point, Point], float]) -> Difference:
    """One difference a seed: the mean over settings. Only settings that have all of the seeds used count, so that
    seeds of a half-finished sweep do not differ by what they were run in."""
    seeds_of: dict[Point, set[Point]] = {}
    for setting, seed in pairs:
        seeds_of.setdefault(setting, set()).add(seed)

    def whole(seeds: set[Point]) -> list[Point]:
        return [setting for setting, own in seeds_of.items() if seeds <= own]

    # The choice of seeds with the most pairs; of equals the one with more seeds.
    seeds = max(seeds_of.values(), key=lambda own: (len(own) * len(whole(own)), len(own)))
    settings = whole(seeds)
    differences = [
        math.fsum(pairs[setting, seed] for setting in settings) / len(settings) for seed in sorted(seeds, key=str)
    ]
    return Difference(
        first,
        second,
        False,
        estimate(differences),
        len(settings),
        p=paired_t_p(differences),
        p_exact=sign_flip_p(differences),
        num_left_out=len(pairs) - len(seeds) * len(settings),
    )


def _at_best(
    first: Point,
    second: Point,
    members: dict[Point, list[Run]],
    others: Sequence[str],
    over: Sequence[str],
    metric: str,
    is_max: bool,
) -> Difference | None:
    """Each at the setting whose mean over seeds is best, among those with as many seeds as any."""
    values, settings = [], []
    for value in (first, second):
        groups = group_runs(members[value], others, [metric], is_max)
        most = max(len(group.valid) for group in groups)
        best = next(group for group in groups if len(group.valid) == most)
        settings.append(best.point)
        values.append({point_of(run, over): run.metric(metric) for run in best.valid})
    seeds = sorted((seed for seed in values[0] if seed in values[1]), key=str)
    if not seeds:
        return None
    differences = [values[0][seed] - values[1][seed] for seed in seeds]
    return Difference(
        first,
        second,
        True,
        estimate(differences),
        1,
        settings[0],
        settings[1],
        paired_t_p(differences),
        p_exact=sign_flip_p(differences),
    )


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    corrected = holm([difference.p for difference in differences])
    return [replace(difference, p_holm=p) for difference, p in zip(differences, corrected, strict=True)]
