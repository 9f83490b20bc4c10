"""Optuna's journal file, written by one process with one wait for the disk a trial.

The file is Optuna's own format, and its tools read it as it stands. Optuna's file backend takes a lock and waits for
the disk at every entry: a curve of 100 rounds costs it 100 waits. Here a sweep's parent is the only process that writes
in bulk (it holds the sweep folder), entries are appended with one write each, and `commit` waits for the disk. A
process that is killed loses nothing that was appended; a loss of power at most the entries since the last commit.
"""

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileBackend


class SingleWriterJournal(BaseJournalBackend):
    """A journal backend for the process that owns the journal."""

    def __init__(self, path: Path) -> None:
        """Opens the journal, or creates it.

        Args:
            path: absolute.
        """
        self._reader = JournalFileBackend(str(path))
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Returns the entries from a number on."""
        yield from self._reader.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends entries in one write: whole lines, whoever else appends at the same time (a dashboard's notes)."""
        if logs:
            lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
            os.write(self._fd, lines.encode())

    def commit(self) -> None:
        """Waits until everything appended is on disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Lets go of the file; nothing may be appended afterwards."""
        os.fsync(self._fd)
        os.close(self._fd)
