"""What a report is about."""

from collections.abc import Sequence
from dataclasses import dataclass

from flgo_hydra.objective import Objective
from flgo_hydra.report.runs import Run, keys_that_vary
from flgo_hydra.report.selection import Selection


@dataclass(frozen=True)
class Question:
    """Which keys have which part, what is shown, and what chooses."""

    shown: Objective
    """what is compared, averaged and drawn; its metric is a column of the tables"""
    selection: Selection
    others: tuple[str, ...] = ()
    """columns of what is told besides"""
    over: tuple[str, ...] = ("seed",)
    """keys whose values are replicates"""
    compared: tuple[str, ...] = ()
    """usually `algorithm` and what varies below it"""
    conditions: tuple[str, ...] = ()
    """keys that all is chosen, averaged and compared within"""
    keys: tuple[str, ...] = ()
    """columns of the points"""

    @property
    def metric(self) -> str:
        return self.shown.metric

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric, *self.others)

    @property
    def is_max(self) -> bool:
        """Whether more of what is shown is better."""
        return self.shown.is_maximized

    @property
    def notes(self) -> list[str]:
        """How the best were chosen, where a reader might think otherwise."""
        return self.selection.notes(self.metric)

    def settings(self, runs: Sequence[Run], besides: Sequence[str] = ()) -> list[str]:
        """The keys that vary and have no other part: what the best is chosen of."""
        taken = (*self.compared, *self.over, *self.conditions, *besides)
        return [key for key in keys_that_vary(runs) if key not in taken]
