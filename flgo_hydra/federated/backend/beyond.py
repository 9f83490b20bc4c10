"""What a user's code does beyond the process: files, databases, other processes, the network.

A trial cannot put such things back, so it is ended before it does the first of them; what it only reads is noticed.
Python tells of both (PEP 578: audit events). Standard output, and what a logger writes, are nobody's state.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_CHANGES = (
    "sqlite3.connect",
    *("subprocess.Popen", "socket.connect", "socket.sendto"),
    *(f"os.{name}" for name in ("exec", "fork", "forkpty", "posix_spawn", "spawn", "startfile", "system")),
    *(f"os.{name}" for name in ("chmod", "chown", "link", "mkdir", "remove", "rename", "rmdir", "symlink", "truncate")),
    *(f"shutil.{name}" for name in ("copyfile", "move", "rmtree", "make_archive", "unpack_archive")),
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_NOBODYS = (
    *("<frozen importlib", "<frozen zipimport", "linecache.py", os.path.join("logging", "__init__.py")),
    *(os.path.join("torch", part) for part in ("_dynamo", "_inductor")),
)
"""Files of callers that import, log, look up a line of code, or compile: what they keep is a cache."""


class ReachesBeyond(BaseException):
    """Ends a trial; no `except Exception` of the user's keeps it."""


@dataclass
class Beyond:
    """What a trial has been seen to do."""

    reads: str = ""
    """the file that it opens"""
    changes: str = ""
    """what it would have changed"""
    thread: int = field(default_factory=threading.get_ident)

    def __str__(self) -> str:
        return f"it changes what is not of this process ({self.changes})" if self.changes else f"it reads {self.reads}"

    def __bool__(self) -> bool:
        return bool(self.reads or self.changes)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        """Takes note of an audit event, and raises `ReachesBeyond` where it is about to change something."""
        if event == "open":
            path, _, flags = args
            if not isinstance(path, str | bytes | os.PathLike) or _is_nobodys():
                return
            name = os.fsdecode(path)
            if not flags & _WRITING:
                self.reads = self.reads or name
                return
            self.changes = self.changes or name
        elif event in _CHANGES:
            if _is_nobodys():
                return
            self.changes = self.changes or f"{event} {args[0] if args else ''}".strip()
        else:
            return
        raise ReachesBeyond(self.changes)


_listening: list[Beyond] = []
_is_installed = False


@contextlib.contextmanager
def nothing_changed_beyond() -> Iterator[Beyond]:
    """Ends what is within, silently, where it would change something beyond the process."""
    global _is_installed
    if not _is_installed:
        _is_installed = True  # for good: there is no taking it away
        sys.addaudithook(_hear)
    heard = Beyond()
    _listening.append(heard)
    try:
        yield heard
    except ReachesBeyond:
        pass
    finally:
        _listening.remove(heard)


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if _listening and (event == "open" or event in _CHANGES) and _listening[-1].thread == threading.get_ident():
        _listening[-1].hear(event, args)


def _is_nobodys() -> bool:
    frame = sys._getframe(2)
    for _ in range(40):
        if frame is None:
            return False
        if any(part in frame.f_code.co_filename for part in _NOBODYS):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
