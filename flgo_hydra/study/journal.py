"""Optuna's journal file, written by one process with one wait for the disk a trial.

The file is Optuna's own format, and its tools read it as it stands. Optuna's file backend takes a lock and waits for
the disk at every entry: a curve of 100 rounds costs it 100 waits. Here a sweep's parent is the only process that writes
in bulk (it holds the sweep folder), entries are appended with one write each, and `commit` waits for the disk. A
process that is killed loses nothing that was appended; a loss of power at most the entries since the last commit.
"""

import contextlib
import json
import logging
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from flgo_hydra.record import files

log = logging.getLogger(__name__)
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


class Damaged(ValueError):
    """A journal holds what is no entry."""

    def __init__(self, text: str, place: int) -> None:
        super().__init__(text)
        self.place = place
        """how many bytes before it are sound"""


class SingleWriterJournal(BaseJournalBackend):
    """A journal backend for the process that owns the journal."""

    def __init__(self, path: Path) -> None:
        """Opens the journal, or creates it.

        Args:
            path: absolute.
        """
        self._path = path
        with files.writing(path):
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            files.settle([path])
        self._file = open(path, "rb")
        self._mend()
        self._next = (0, 0)  # the number of the entry that comes after those read, and where it begins
        self._kept: list[str] | None = None  # lines of a block of `together`

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Returns the entries from a number on; a last line without its end is another process's, half written."""
        # Optuna reads after each entry that it appends: the file stays open, at the place.
        if self._kept:
            return
        number, place = self._next if self._next[0] <= log_number_from else (0, 0)
        self._file.seek(place)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            number, place = number + 1, place + len(line)
            self._next = (number, place)
            if number > log_number_from:
                try:
                    entry = _decode(line.decode())
                    if not isinstance(entry, dict) or "op_code" not in entry:
                        raise ValueError("no operation")
                except (ValueError, RecursionError) as error:
                    raise Damaged(
                        f"{self._path} is damaged: its line {number} is no entry of a study ({error}). The run folders "
                        f"have all there is: `scripts/rebuild_study {self._path.parent}` makes it anew.",
                        place - len(line),
                    ) from error
                yield entry

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends entries in one write: whole lines, whoever else appends at the same time (a dashboard's notes)."""
        lines = [_encode(log) + "\n" for log in logs]
        if self._kept is not None:
            self._kept += lines
        else:
            self._write(lines)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Entries of the block are written, and can be read, when it ends."""
        self._kept = []
        try:
            yield
        finally:
            lines, self._kept = self._kept, None
            self._write(lines)

    def _mend(self) -> None:
        """Takes a last line without its end away, which a loss of power or a full disk has left: nobody could read on.

        Only the owner of the sweep's folder opens a journal so, and it writes whole lines.
        """
        size = end = os.fstat(self._fd).st_size
        step = 2**16
        while end > 0:
            begin = max(0, end - step)
            self._file.seek(begin)
            found = self._file.read(end - begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        if end < size:
            log.warning("%s ended in half an entry, which is taken away.", self._path)
            os.ftruncate(self._fd, end)

    def _write(self, lines: list[str]) -> None:
        """Appends whole lines: what a full disk takes only a part of is taken back."""
        if lines:
            with files.writing(self._path):
                files.append(self._fd, "".join(lines).encode())

    def commit(self) -> None:
        """Waits until everything appended is on disk."""
        with files.writing(self._path):
            os.fsync(self._fd)

    def close(self) -> None:
        """Lets go of the file; nothing may be appended afterwards."""
        if not self._file.closed:
            try:
                self.commit()
            finally:
                os.close(self._fd)
                self._file.close()

    def __del__(self) -> None:
        self.close()
