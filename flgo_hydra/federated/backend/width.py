"""How many runs to train at once: found by trying, while every try is a round that counts."""

TRIES = 2
"""Rounds at a width; the first one at a new width also pays for what is done once."""
GAIN = 1.1


class WidthSearch:
    """Doubles the width while runs per second grow by a tenth or more.

    Args:
        most: largest width.
        is_fixed: `most` is the width, whatever it gains.
    """

    def __init__(self, most: int, is_fixed: bool = False) -> None:
        self._most = most
        self.width = most if is_fixed else 1
        self.is_done = is_fixed or most == 1
        self._times: list[float] = []
        self._before: tuple[int, float] | None = None  # the last width and its seconds a run
        self.seconds: float | None = None
        """of a run's round at the width that was found"""

    def learn(self, seconds_per_run: float) -> None:
        """Takes note of a round at the present width."""
        if self.is_done:
            return
        self._times.append(seconds_per_run)
        if len(self._times) < TRIES:
            return
        seconds, self._times = min(self._times), []
        if self._before is not None and self._before[1] < GAIN * seconds:
            self.width, self.seconds = self._before
            self.is_done = True
        elif self.width == self._most:
            self.is_done, self.seconds = True, seconds
        else:
            self._before = self.width, seconds
            self.width = min(2 * self.width, self._most)

    def does_not_fit(self) -> bool:
        """Halves the width for good after memory ran out; False when it cannot be halved."""
        if self.width == 1:
            return False
        self.width = self.width // 2
        self.is_done, self.seconds = True, self._before[1] if self._before is not None else None
        return True
