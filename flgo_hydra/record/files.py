"""Writing files so that a reader, or a process killed at any moment, never leaves or sees half of one."""

import contextlib
import errno
import itertools
import json
import math
import os
import secrets
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def replacing(path: Path, is_durable: bool = True) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` that takes its name when the block ends well, and is removed otherwise.

    Args:
        is_durable: wait until content and name are on disk, so that they outlive a loss of power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if is_durable:
        _sync(path.parent)


def settle(paths: Iterable[Path]) -> None:
    """Waits until files that were written before, and their names, are on disk; what is not there is left out.

    What says that a folder is complete is written after this: a loss of power then finds all of it, or none.
    """
    there = [path for path in paths if path.is_file()]
    for path in there:
        _sync(path)
    for folder in {path.parent for path in there}:
        _sync(folder)
        _sync(folder.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folders
            raise
    finally:
        os.close(fd)


def remove_leftovers(path: Path) -> None:
    """Removes the temporary files of writers of `path` that were killed. Only for whoever alone writes it."""
    for temporary in path.parent.glob(f".{path.name}.*"):
        temporary.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Renames what is in the way, to a name that is free beside it; returns that."""
    names = (path.with_name(f"{path.name}.damaged{'' if i == 1 else f'-{i}'}") for i in itertools.count(1))
    free = next(name for name in names if not os.path.lexists(name))
    path.rename(free)
    return free


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(to_json(value), indent=2, allow_nan=False) + "\n")


class JsonLines:
    """Appends lines to a file that stays open: opening it for each line costs ten times as much as writing one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def append(self, value: Mapping[str, Any]) -> None:
        """Appends one line in one write: of a process that is killed in it, only that line may be torn.

        (A kernel may end a write of several pages between two of them when the process is killed.)

        Raises:
            FileNotFoundError: somebody has removed the file.
        """
        if self._fd is None:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            weakref.finalize(self, os.close, self._fd)
        if os.fstat(self._fd).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "removed while it was written", str(self._path))
        line = (json.dumps(to_json(value), allow_nan=False) + "\n").encode()
        while line:
            line = line[os.write(self._fd, line) :]


def to_json(value: Any) -> Any:
    """JSON has no nan and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value
