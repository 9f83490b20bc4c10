"""Writing files so that nobody ever finds half of one: a reader, a process that was killed, a machine without power.

The order is the meaning. What a file refers to is on the disk before it: content before its name, rounds before the
checkpoint that is after them, all of a run before its result. What a full disk takes a part of is taken back.
"""

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

from flgo_hydra.machine_errors import CannotWrite


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file in what the system says of a write to it, which names none.

    Raises:
        CannotWrite: the block has raised an `OSError`.
    """
    try:
        yield
    except CannotWrite:
        raise
    except OSError as error:
        if error.errno is None:  # of some library's own
            raise
        raise CannotWrite(error.errno, error.strerror or os.strerror(error.errno), str(path)) from error


@contextlib.contextmanager
def replacing(path: Path, is_durable: bool = True) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` that takes its name when the block ends well, and is removed otherwise.

    Args:
        is_durable: wait until content and name are on disk, so that they outlive a loss of power. Without, one may
            leave neither the old content nor the new: for what is made again, or settled before anybody relies on it.
    Raises:
        CannotWrite: the storage refused. What was there before is there still.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "x+b") as file:
                yield file
                file.flush()
                if is_durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # a disk that takes nothing more may not give anything up either
                temporary.unlink(missing_ok=True)
            raise
        if is_durable:
            _sync(path.parent)


def rename(source: Path, target: Path) -> None:
    """Gives a whole file its name, and waits until both are on disk.

    Raises:
        CannotWrite: the storage refused.
    """
    with writing(target):
        _sync(source)
        os.replace(source, target)
        _sync(target.parent)


def settle(paths: Iterable[Path], root: Path | None = None) -> None:
    """Waits until files that were written before, and their names, are on disk; what is not there is left out.

    What says that a folder is complete is written after this: a loss of power then finds all of it, or none.

    Args:
        root: a folder above, whose own name is on disk; None: nobody knows of any, and all are waited for.
    Raises:
        CannotWrite: the storage refused.
    """
    there = [path.absolute() for path in paths if path.is_file()]
    for path in there:
        with writing(path):
            _sync(path)
    folders: dict[Path, None] = {}
    for path in there:
        for folder in path.parents:
            folders[folder] = None
            if folder == root or os.path.ismount(folder):
                break
    for folder in folders:
        with writing(folder), contextlib.suppress(PermissionError):  # which others have made, long ago
            _sync(folder)


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
    """Writes a text; what no file takes as text (half a character, of a name that is none in UTF-8) is spelt out."""
    with replacing(path) as file:
        file.write(text.encode(errors="backslashreplace"))


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
            CannotWrite: the storage refused; the file is as it was.
        """
        if self._fd is None:
            with writing(self._path):
                self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            weakref.finalize(self, os.close, self._fd)
        if os.fstat(self._fd).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "removed while it was written", str(self._path))
        with writing(self._path):
            append(self._fd, line_of(value))

    def require_in_place(self) -> None:
        """Raises CannotWrite where the lines lie elsewhere by now: somebody has moved or removed their folder."""
        if self._fd is None:
            return
        mine = os.fstat(self._fd)
        try:
            there = os.stat(self._path)
        except OSError:  # a file may stand where a folder was
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise CannotWrite(errno.ENOENT, "moved away or removed while it was written", str(self._path))


def line_of(value: Mapping[str, Any]) -> bytes:
    """A line of a file of such lines."""
    return (json.dumps(to_json(value), allow_nan=False) + "\n").encode()


def append(fd: int, lines: bytes) -> None:
    """Appends whole lines: what a full disk takes only a part of is taken back.

    Args:
        fd: opened with O_APPEND.
    """
    begin, num_written = os.fstat(fd).st_size, 0
    try:
        while num_written < len(lines):
            num_written += os.write(fd, lines[num_written:])
    except OSError:
        # Only what is ours: another process may have appended its own behind it.
        if num_written and os.fstat(fd).st_size == begin + num_written:
            os.ftruncate(fd, begin)
        elif num_written:
            with contextlib.suppress(OSError):
                os.write(fd, b"\n")
        raise


def to_json(value: Any) -> Any:
    """JSON has no nan and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value
