"""Rows of bytes in a file that has no name and goes with the process.

Read and written at their places, into and out of memory that is there already. Mapped, each page of a row is given out
and cleared by itself: a row of 636 kB cost the kernel 1.8 ms at its first time, read and written, and costs it 0.2 so
(SCAFFOLD, 100 of 10,000 clients a round). Written by a thread while the next clients train, a round took as long: the
fastest of 20 was 10 % shorter, their median 10 % longer.
"""

import errno
import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from flgo_hydra.record.files import writing

Parts = Sequence[memoryview]
"""Of bytes, which are a row one after the other."""
_MOST_PARTS = 1024
"""That a call of the system takes (`IOV_MAX`)."""


class RowFile:
    """Rows of `row_bytes` bytes each.

    Args:
        folder: where the file is made.
    Raises:
        CannotWrite: the storage refused; so do `read` and `write`.
    """

    def __init__(self, folder: Path, row_bytes: int) -> None:
        self._folder, self._row_bytes = folder, row_bytes
        with writing(folder):
            with tempfile.TemporaryFile(dir=folder) as file:
                self._fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._fd)

    def read(self, row: int, into: Parts) -> None:
        """Reads a row that was written."""
        self._whole(os.preadv, row, into)

    def write(self, row: int, parts: Parts) -> None:
        """Writes a row; where it raises, the row may be a part of the new one and of the old."""
        self._whole(os.pwritev, row, parts)

    def _whole(self, call: Callable[[int, Parts, int], int], row: int, parts: Parts) -> None:
        """Calls until the whole row is through: a system may take a part (2 GiB at most, or what there is room for)."""
        at = row * self._row_bytes
        with writing(self._folder):
            while parts:
                done = call(self._fd, parts[:_MOST_PARTS], at)
                if done == 0 and any(part.nbytes for part in parts):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                at += done
                parts = _after(parts, done)


def _after(parts: Parts, done: int) -> Parts:
    """What is left of them after so many bytes."""
    for i, part in enumerate(parts):
        if done < part.nbytes:
            return [part[done:], *parts[i + 1 :]]
        done -= part.nbytes
    return []
