"""Early stopping: when the best finite value has not improved for a number of rounds."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """The best value so far and its round. Ties, NaN and inf are no improvement."""

    best: float = math.inf
    best_round: int = 0
    is_maximized: bool = False
    """more is better; `best` then begins at -inf"""

    @staticmethod
    def start(is_maximized: bool) -> "Patience":
        """Before the first round."""
        return Patience(best=-math.inf if is_maximized else math.inf, is_maximized=is_maximized)

    def update(self, round_num: int, value: float) -> "Patience":
        """Returns the state after the value of a round is known."""
        is_better = value > self.best if self.is_maximized else value < self.best
        return Patience(value, round_num, self.is_maximized) if math.isfinite(value) and is_better else self

    def is_over(self, round_num: int, early_stop: int | None) -> bool:
        """Whether `early_stop` rounds (not evaluations) in a row, up to `round_num`, brought nothing better."""
        return early_stop is not None and round_num - self.best_round >= early_stop
