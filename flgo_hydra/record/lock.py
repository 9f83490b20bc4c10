"""One lock for everything that only one process may change: a sweep's folder, a cache's entry, a ledger.

A lock is a file that the kernel marks as held (flock) until its holder lets go of it or dies. Some network file
systems refuse that; there a second file beside it, made by whoever comes first, says who holds it, and counts as left
behind when that process is gone. Nobody waits for ever: a holder may be a process that somebody has stopped.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_NO_FILE = {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV}
_LOOK_S = 0.02
_MOST_TEXT = 4096


class Held(Exception):
    """Another process holds the lock."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is held by process {holder or 'unknown'}")
        self.holder = holder
        """its process id, as text; empty: unknown"""


class NoLockFile(OSError):
    """Something else lies where the lock should."""

    def __str__(self) -> str:
        return f"{self.filename} is no plain file, and cannot be locked: remove it, and give the same command again."


@contextlib.contextmanager
def holding(
    path: Path,
    wait_s: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    flock: Callable[[IO[str], int], None] = fcntl.flock,
) -> Iterator[None]:
    """Holds the lock file `path` while the block runs; a process that dies lets go of it.

    Args:
        path: made where it is missing, in a folder that is there.
        wait_s: how long to wait for a holder to let go.
        flock: the kernel's, which a test may replace.
    Raises:
        Held: another process held it all the time.
        NoLockFile: a link, a folder or a device has its name.
        OSError: the file cannot be made.
    """
    deadline = clock() + wait_s
    with _opened(path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file, contextlib.ExitStack() as stack:
        take = _take_flock
        while True:
            try:
                stack.enter_context(take(file, path, flock))
                break
            except Held:
                if clock() >= deadline:
                    raise
                sleep(min(_LOOK_S, max(0.0, deadline - clock())))
            except OSError as error:
                if take is not _take_flock or error.errno not in _NO_FLOCK:
                    raise
                log.warning("%s: this file system has no locks (%s); a file beside it stands for one.", path, error)
                take = _take_file
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock now: not merely whether one with its number lives, as after a reboot."""
    try:
        with _opened(path, os.O_RDONLY) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    holder = _read(_beside(path))
    if holder.get("host") not in (None, socket.gethostname()):
        return True  # nobody here can know
    return bool(holder) and _started(holder.get("pid")) == holder.get("started")


def _opened(path: Path, flags: int) -> IO[str]:
    """A plain file, opened without a wait for the other end of a pipe."""
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise NoLockFile(error.errno, error.strerror, str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NoLockFile(errno.EEXIST, "there is something that is no plain file", str(path))
    return open(fd, "r" if flags == os.O_RDONLY else "a+", errors="replace")


@contextlib.contextmanager
def _take_flock(file: IO[str], path: Path, flock: Callable[[IO[str], int], None]) -> Iterator[None]:
    try:
        flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise Held(path, file.read(_MOST_TEXT).strip()) from None
    yield  # closing the file lets go


@contextlib.contextmanager
def _take_file(file: IO[str], path: Path, flock: Callable[[IO[str], int], None]) -> Iterator[None]:
    beside = _beside(path)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
    mine = path.with_name(f"{path.name}.{me['host']}.{me['pid']}")
    mine.write_text(json.dumps(me))
    try:
        _remove_of_the_dead(beside)
        try:
            os.link(mine, beside)  # whole at once, and only where there is none
        except FileExistsError:
            raise Held(path, str(_read(beside).get("pid", ""))) from None
    finally:
        mine.unlink()
    try:
        yield
    finally:
        beside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.held")


def _remove_of_the_dead(beside: Path) -> None:
    """Removes a holder's file when the holder ran here and is gone. Of another host nobody here can know."""
    holder = _read(beside)
    if holder.get("host") == socket.gethostname() and _started(holder.get("pid")) != holder.get("started"):
        # Renamed first: of two who find it so, one removes it, and not the file of a third.
        with contextlib.suppress(OSError):
            aside = beside.with_name(f"{beside.name}.{os.getpid()}")
            os.rename(beside, aside)
            if _read(aside) == holder:
                aside.unlink()
            else:
                os.rename(aside, beside)


def _read(path: Path) -> dict[str, object]:
    try:
        with _opened(path, os.O_RDONLY) as file:
            value = json.loads(file.read(_MOST_TEXT))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def is_stopped(holder: str) -> bool:
    """Whether a process of this host, by its id as text, is stopped: it goes on when somebody tells it to."""
    try:
        return Path(f"/proc/{int(holder)}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, ValueError, IndexError):
        return False


def _started(pid: object) -> str | None:
    """When a process of this host began, as the kernel counts; None: there is none."""
    try:
        return Path(f"/proc/{int(str(pid))}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, ValueError, IndexError):
        return None
