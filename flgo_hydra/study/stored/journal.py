"""Optuna's journal file, written by one process with one wait for the disk a trial.

The file is Optuna's own format, and its tools read it as it stands. Optuna's file backend takes a lock and waits for
the disk at every entry: a curve of 100 rounds costs it 100 waits. Here a sweep's parent is the only process that writes
in bulk (it holds the sweep folder), entries are appended with one write each, and `commit` waits for the disk. A
process that is killed loses nothing that was appended; a loss of power at most the entries since the last commit.
"""

import contextlib
import errno
import json
import logging
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages.journal import BaseJournalBackend
from optuna.storages.journal._storage import JournalOperation

from flgo_hydra.record import files
from flgo_hydra.record.plain_text import plain
from flgo_hydra.record.schema import Defect, open_plain

log = logging.getLogger(__name__)
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode
_MOST_LINE = 16 * 2**20
"""bytes of an entry; a longer one is none of a study"""


class Damaged(ValueError):
    """A journal that cannot be read, and what to do."""

    def __init__(self, path: Path, why: str, place: int | None = None) -> None:
        self.place = place
        """how many bytes before the damage are sound; None: it is of no place"""
        super().__init__(
            f"{path} is damaged: {why}. The run folders have all there is: `scripts/rebuild_study {path.parent}` makes "
            "it anew."
        )


def study_names(path: Path) -> list[str]:
    """The names of the studies in a journal; none where there is no journal.

    Raises:
        ValueError: it is none.
    """
    file = open_plain(path, most_bytes=None)
    names: dict[int, str] = {}
    num_made = 0
    with file or contextlib.nullcontext() as opened:
        for number, line in enumerate(_lines(opened, path) if opened is not None else ()):
            entry = _entry(line, path, number + 1)
            if entry.get("op_code") == JournalOperation.CREATE_STUDY:
                names[num_made] = str(entry.get("study_name"))
                num_made += 1
            elif entry.get("op_code") == JournalOperation.DELETE_STUDY:
                names.pop(entry.get("study_id", -1), None)
    return list(names.values())


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """The whole lines from here on, none longer than an entry can be: a hole in a file may be a line of a terabyte."""
    while (line := file.readline(_MOST_LINE)).endswith(b"\n"):
        yield line
    if len(line) == _MOST_LINE:
        raise Damaged(path, f"it has a line of more than {_MOST_LINE} bytes")


def _line(entry: dict[str, Any]) -> str:
    """An entry as a line that can be read again: where it is too long, its texts are not whole."""
    line = _encode(entry) + "\n"
    return line if len(line) < _MOST_LINE else _encode(plain(entry)) + "\n"


def _entry(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        entry = _decode(line.decode())
    except (ValueError, RecursionError) as error:
        told = "nested too deeply" if isinstance(error, RecursionError) else error
        raise Damaged(path, f"its line {number} is no entry of a study ({told})") from error
    if not isinstance(entry, dict) or "op_code" not in entry:
        raise Damaged(path, f"its line {number} is no entry of a study")
    return entry


class SingleWriterJournal(BaseJournalBackend):
    """A journal backend for the process that owns the journal."""

    def __init__(self, path: Path) -> None:
        """Opens the journal, or creates it.

        Args:
            path: absolute.
        Raises:
            ValueError: it is no file, or damaged.
        """
        self._path = path
        # without a wait, should a pipe be in its place
        try:
            with files.writing(path):
                self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
                files.settle([path])
        except OSError as error:
            if error.errno in (errno.EISDIR, errno.ENXIO, errno.ELOOP):
                raise Damaged(path, f"it is no file ({os.strerror(error.errno)}); move it away") from None
            raise
        try:
            opened = open_plain(path, most_bytes=None)
            if opened is None:
                raise Damaged(path, "it went away")
            self._file = opened
            self._mend()
        except Defect as defect:
            os.close(self._fd)
            raise Damaged(path, f"it {defect.why}; move it away") from None
        except BaseException:
            os.close(self._fd)
            if hasattr(self, "_file"):
                self._file.close()
            raise
        self._next = (0, 0)  # the number of the entry that comes after those read, and where it begins
        self._kept: list[str] | None = None  # lines of a block of `together`

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Returns the entries from a number on; a last line without its end is another process's, half written."""
        # Optuna reads after each entry that it appends: the file stays open, at the place.
        if self._kept:
            return
        number, place = self._next if self._next[0] <= log_number_from else (0, 0)
        self._file.seek(place)
        lines = _lines(self._file, self._path)
        while True:
            try:
                line = next(lines, None)
                entry = None if line is None or number < log_number_from else _entry(line, self._path, number + 1)
            except Damaged as damage:
                damage.place = place
                raise
            if line is None:
                return
            number, place = number + 1, place + len(line)
            self._next = (number, place)
            if entry is not None:
                yield entry

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends entries in one write: whole lines, whoever else appends at the same time (a dashboard's notes)."""
        lines = [_line(log) for log in logs]
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
            if size - begin > _MOST_LINE:
                raise Damaged(self._path, f"its last line has more than {_MOST_LINE} bytes")
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
        if hasattr(self, "_file") and not self._file.closed:
            try:
                self.commit()
            finally:
                os.close(self._fd)
                self._file.close()

    def __del__(self) -> None:
        self.close()
