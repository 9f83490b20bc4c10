"""A disk that keeps what was waited for, and nothing else: what a loss of power leaves at worst."""

import os
from pathlib import Path

import pytest


class SyncedDisk:
    """Stands in for `os.fsync`, and remembers what each wait has made sure of.

    A file's content is safe as it was at its last wait; a name as it was when its folder was last waited for.
    """

    def __init__(self) -> None:
        self.content: dict[int, bytes] = {}
        """by inode"""
        self.names: dict[Path, dict[str, int]] = {}
        """of each folder"""
        self._fsync = os.fsync

    def fsync(self, fd: int) -> None:
        self._fsync(fd)
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if path.is_dir():
            self.names[path] = {child.name: child.lstat().st_ino for child in path.iterdir()}
        else:
            self.content[os.fstat(fd).st_ino] = path.read_bytes()

    def after_power_loss(self, path: Path) -> bytes | None:
        """What is found under a name; None: nothing is."""
        inode = self.names.get(path.parent, {}).get(path.name)
        return None if inode is None else self.content.get(inode, b"")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SyncedDisk:
    disk = SyncedDisk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk
