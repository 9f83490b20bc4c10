"""Runs that differ only in their seed, taken together: mean, spread and 95 % interval."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flgo_hydra.report.replicates import Estimate, estimate_over
from flgo_hydra.report.rows import DAMAGED, NO_BEST
from flgo_hydra.report.runs import ABSENT, Run, Value, value_text
from flgo_hydra.report.selection import Selection

Point = tuple[Value, ...]
"""values of the keys that groups are told apart by"""


@dataclass(frozen=True)
class Group:
    """The runs of a point over its seeds."""

    point: Point
    runs: tuple[Run, ...]
    """all of them, whatever their status"""
    estimates: Mapping[str, Estimate]
    """by metric, of the valid runs; empty when there is none"""

    @property
    def valid(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.row.is_valid)

    @property
    def left_out(self) -> str:
        """`1 diverged, 2 running`: runs that the mean does not know. What it says is then about the others only."""
        counts = Counter(run.row.end for run in self.runs if not run.row.is_valid)
        return ", ".join(f"{count} {status}" for status, count in counts.items())

    def place(self, selection: Selection) -> tuple[bool, bool, float]:
        """Orders groups: the best mean first, those that lack a run after those that lack none, as a study has it, and
        those without a valid run last. A run that is still to come is none that lacks."""
        found = self.estimates.get(selection.metric)
        lacks = any(run.row.end in ("failed", "diverged", NO_BEST, DAMAGED) for run in self.runs)
        return found is None, lacks, 0.0 if found is None else selection.by.rank(found.mean)


def group_runs(
    runs: Sequence[Run], keys: Sequence[str], metrics: Sequence[str], over: Sequence[str], selection: Selection
) -> list[Group]:
    """Groups by the keys' values, the best by the selection's mean first; those without a valid run last.

    Args:
        over: the keys whose values are replicates.
    """
    members: dict[Point, list[Run]] = {}
    for run in runs:
        members.setdefault(point_of(run, keys), []).append(run)
    groups = []
    for point, own in members.items():
        estimates = {}
        for metric in dict.fromkeys((selection.metric, *metrics)):
            found = [(point_of(run, over), run.metric(metric)) for run in own if run.row.is_valid]
            found = [(level, value) for level, value in found if value == value]  # nan: this run did not record it
            if found:
                estimates[metric] = estimate_over(found, over)
        groups.append(Group(point, tuple(own), estimates))
    return sorted(groups, key=lambda group: group.place(selection))


def point_of(run: Run, keys: Sequence[str]) -> Point:
    return tuple(run.values.get(key, ABSENT) for key in keys)


def named(keys: Sequence[str], point: Point) -> str:
    """`lr=0.1 algorithm.mu=1`, without the keys that the point does not have."""
    pairs = zip(keys, point, strict=True)
    return " ".join(f"{key}={value_text(value)}" for key, value in pairs if value != ABSENT)
