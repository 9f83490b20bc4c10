"""Rounds as they pass: one live line on a terminal, plain lines elsewhere."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import TextIO

_log = logging.getLogger("flgo_hydra")
_MOST_LINES = 100


class Progress:
    """Shows loss, best and the time left of one run."""

    def __init__(
        self,
        num_rounds: int,
        eval_interval: int,
        stream: TextIO,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._num_rounds = num_rounds
        self._stream = stream
        self._clock = clock
        self._is_live = stream.isatty()
        self._first: tuple[int, float] | None = None  # round and time of the first evaluation of this attempt
        self._every = max(1, num_rounds // eval_interval // _MOST_LINES) * eval_interval

    def show(
        self, round_num: int, metrics: Mapping[str, float], best: float, best_round: int, monitor: str = "valid_loss"
    ) -> None:
        """Shows an evaluated round."""
        now = self._clock()
        if self._first is None:
            self._first = (round_num, now)
        is_line_due = round_num % self._every == 0 or round_num == self._num_rounds
        if not self._is_live and not is_line_due:
            return
        text = f"round {round_num}/{self._num_rounds}  valid_loss {metrics['valid_loss']:.4f}"
        if "test_accuracy" in metrics:
            text += f"  test_accuracy {metrics['test_accuracy']:.4f}"
        text += f"  best {'' if monitor == 'valid_loss' else f'{monitor} '}{best:.4f} at {best_round}"
        first_round, first_time = self._first
        if round_num > first_round:
            left = (now - first_time) / (round_num - first_round) * (self._num_rounds - round_num)
            text += f"  ETA {duration(left)}"
        if self._is_live:
            # Cut to the width: a line that wraps cannot be taken back.
            self._stream.write(f"\r\x1b[2K{text[: _width()]}")
            self._stream.flush()
        else:
            _log.info(text)

    def close(self) -> None:
        """Takes the live line away, so that what follows stands on a line of its own."""
        if self._is_live:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()


def duration(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 05 min`."""
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _width() -> int:
    import shutil

    return shutil.get_terminal_size().columns - 1
