"""Early stopping: when the best finite loss has not improved for a number of rounds."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """The best loss so far and its round. Ties, NaN and inf are no improvement."""

    best: float = math.inf
    best_round: int = 0

    def update(self, round_num: int, loss: float) -> "Patience":
        """Returns the state after the loss of a round is known."""
        return Patience(loss, round_num) if math.isfinite(loss) and loss < self.best else self

    def is_over(self, round_num: int, early_stop: int | None) -> bool:
        """Whether `early_stop` rounds (not evaluations) in a row, up to `round_num`, brought nothing better."""
        return early_stop is not None and round_num - self.best_round >= early_stop
