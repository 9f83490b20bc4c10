"""Early stopping: when the best finite value has not improved for a number of rounds."""

import math
from dataclasses import dataclass, replace

from flgo_hydra.objective import VALID_LOSS, Objective


@dataclass(frozen=True)
class Patience:
    """The best value so far and its round. Ties, NaN and inf are no improvement."""

    monitor: Objective = VALID_LOSS
    best: float = math.nan
    """nan before the first finite value"""
    best_round: int = 0

    def update(self, round_num: int, value: float) -> "Patience":
        """Returns the state after the value of a round is known."""
        is_better = self.monitor.is_better(value, self.best)
        return replace(self, best=value, best_round=round_num) if is_better else self

    def is_over(self, round_num: int, early_stop: int | None) -> bool:
        """Whether `early_stop` rounds (not evaluations) in a row, up to `round_num`, brought nothing better."""
        return early_stop is not None and round_num - self.best_round >= early_stop
