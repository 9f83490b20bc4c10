"""What a study is to be told while its storage may be away: a full disk, a database that is restarted or locked.

Jobs go on meanwhile, and their folders are the truth; the study follows behind. What it is to be told is kept in order
and tried again after growing pauses. A storage that stays away longer than `MOST_S` is lost: whoever hears of it stops
at a round boundary, and the same command makes up for what the study lacks.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

from flgo_hydra.machine_errors import CannotWrite
from flgo_hydra.record.plain_text import printable
from flgo_hydra.record.secrets import masked

log = logging.getLogger(__name__)
T = TypeVar("T")
MOST_S = 60.0
_FIRST_PAUSE_S = 0.1
_MOST_PAUSE_S = 5.0


def is_trouble(error: BaseException) -> bool:
    """Whether an error is the storage's, and may pass: anything else is a mistake of ours."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, OSError | SQLAlchemyError | optuna.exceptions.StorageInternalError)


class Behind:
    """Tells a study what it is to be told, now or when that is possible."""

    def __init__(
        self,
        what: str,
        most_s: float = MOST_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Args:
        what: is written, for people.
        most_s: how long it may be away.
        """
        self.what = what
        self._most_s = most_s
        self._clock = clock
        self._sleep = sleep
        self._waiting: deque[Callable[[], None]] = deque()
        self._since: float | None = None  # when the trouble began
        self._pause_s = _FIRST_PAUSE_S
        self._not_before = 0.0
        self.reason = ""
        """the last trouble, as one line; empty: there was none"""

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_away(self) -> bool:
        return self._since is not None

    @property
    def is_lost(self) -> bool:
        """Whether it has been away too long to be waited for."""
        return self._since is not None and self._clock() - self._since >= self._most_s

    @property
    def may_try(self) -> bool:
        """Whether the storage is there, as far as is known, or it is time to look again."""
        return self._clock() >= self._not_before

    def wait_s(self) -> float | None:
        """Seconds until there is something to try; None: nothing is waited for."""
        return max(0.0, self._not_before - self._clock()) if self.is_away else None

    def tell(self, write: Callable[[], None]) -> None:
        """Writes, behind all that was told before; where that cannot be now, it is kept.

        Args:
            write: may be called again after it has failed half-way.
        """
        self._waiting.append(write)
        self.write()

    def write(self) -> bool:
        """Writes what waits, as far as it can be now; returns whether nothing is left."""
        while self._waiting and self.may_try:
            with self.trying() as done:
                self._waiting[0]()
                done.append(True)
            if done:
                self._waiting.popleft()
        return not self._waiting

    def flush(self) -> bool:
        """Writes all that waits, for as long as the storage may be away; returns whether nothing is left."""
        while not self.write() and not self.is_lost:
            self._sleep(self.wait_s() or _FIRST_PAUSE_S)
        return not self._waiting

    def insist(self, do: Callable[[], T]) -> T:
        """Does what nothing can begin without, again while the storage is away.

        Args:
            do: may be called again after it has failed half-way.
        Raises:
            ValueError: it stays away.
        """
        while True:
            try:
                done = do()
            except Exception as error:
                if not self.hear(error):
                    raise
                if self.is_lost:
                    raise ValueError(
                        f"{self.what} cannot be used: {self.reason}. Nothing was started: give the same command again "
                        "when it can."
                    ) from error
            else:
                self._is_back()
                return done
            self._sleep(self.wait_s() or _FIRST_PAUSE_S)

    @contextlib.contextmanager
    def trying(self) -> Iterator[list[bool]]:
        """A block that uses the storage. Trouble ends the block, and is told; what it yields is whoever's to mark."""
        try:
            yield []
        except Exception as error:
            if not self.hear(error):
                raise
        else:
            self._is_back()

    def hear(self, error: BaseException) -> bool:
        """Takes note of an error; returns whether it is the storage's trouble."""
        if not is_trouble(error):
            return False
        now = self._clock()
        self.reason = _one_line(error)
        if self._since is None:
            self._since, self._pause_s = now, _FIRST_PAUSE_S
            log.warning("%s cannot be written (%s). Jobs go on; it is tried again.", self.what, self.reason)
        self._not_before = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _MOST_PAUSE_S)
        return True

    def _is_back(self) -> None:
        if self._since is not None:
            log.warning("%s can be written again, after %.1f s.", self.what, self._clock() - self._since)
            self._since, self._not_before = None, 0.0


def _one_line(error: BaseException) -> str:
    if isinstance(error, CannotWrite):  # it names the file
        return printable(f"{error.filename} cannot be written: {error.strerror}")
    cause = error.__cause__ or error
    text = str(getattr(cause, "orig", None) or cause).strip().partition("\n")[0]
    return printable(masked(text)) or type(cause).__name__
