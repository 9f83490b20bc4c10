"""A disk that refuses: from the n-th write below a folder on, or only that one, in this process or one that is started.

Every way of Python's to write is counted, which is what torch, matplotlib and Hydra use too: opening a file to write,
each write to it, `os.write`, waiting for the disk, renaming and making folders. It imports nothing of ours: a child
process finds it on its PYTHONPATH, as `sitecustomize`.
"""

import builtins
import io
import os
import re
from contextlib import contextmanager

_real = {"open": io.open, "os_open": os.open, "write": os.write, "fsync": os.fsync, "replace": os.replace}
_real["mkdir"] = os.mkdir


class Refusing:
    """Counts the writes below a folder, and refuses some."""

    def __init__(self, root, at, number, lasts=False, only=""):
        """
        Args:
            at: which write is refused, the first is 0; None: none.
            number: the error's.
            lasts: all that come after it are refused too.
            only: a pattern of the paths that count.
        """
        self.root, self.at, self.number, self.lasts = os.path.abspath(root) + os.sep, at, number, lasts
        self.only = re.compile(only)
        self.done = []
        """(what, path) of each write"""

    def tell(self, what, path):
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return
        path = os.path.abspath(os.fsdecode(path))
        if not path.startswith(self.root) or not self.only.search(path):
            return
        self.done.append((what, path[len(self.root) :]))
        place = len(self.done) - 1
        if self.at is not None and (place == self.at or (self.lasts and place > self.at)):
            raise OSError(self.number, os.strerror(self.number))

    def start(self):
        refuse = self

        class Raw(io.FileIO):
            def write(self, data):
                refuse.tell("write", self.fileno())
                return super().write(data)

        def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
            is_ours = not isinstance(file, int) and os.path.abspath(os.fsdecode(file)).startswith(refuse.root)
            if not is_ours or not set(mode) & set("wax+") or buffering == 0 or opener is not None:
                return _real["open"](file, mode, buffering, encoding, errors, newline, closefd, opener)
            refuse.tell("open", file)
            raw = Raw(file, mode.replace("b", "").replace("t", ""))
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        def os_open(path, flags, *rest, **more):
            if flags & os.O_CREAT:
                self.tell("open", path)
            return _real["os_open"](path, flags, *rest, **more)

        def write(fd, data):
            self.tell("write", fd)
            return _real["write"](fd, data)

        def fsync(fd):
            self.tell("fsync", fd if isinstance(fd, int) else fd.fileno())
            return _real["fsync"](fd)

        def replace(source, target, **more):
            self.tell("replace", target)
            return _real["replace"](source, target, **more)

        def mkdir(path, *rest, **more):
            self.tell("mkdir", path)
            return _real["mkdir"](path, *rest, **more)

        builtins.open = io.open = opened
        os.open, os.write, os.fsync, os.replace, os.mkdir = os_open, write, fsync, replace, mkdir

    def stop(self):
        builtins.open = io.open = _real["open"]
        os.open, os.write, os.fsync = _real["os_open"], _real["write"], _real["fsync"]
        os.replace, os.mkdir = _real["replace"], _real["mkdir"]


@contextmanager
def refusing(root, at, number, lasts=False, only=""):
    disk = Refusing(root, at, number, lasts, only)
    disk.start()
    try:
        yield disk
    finally:
        disk.stop()


if os.environ.get("REFUSE_BELOW"):
    Refusing(
        os.environ["REFUSE_BELOW"],
        int(os.environ["REFUSE_AT"]),
        int(os.environ["REFUSE_WITH"]),
        "REFUSE_ON" in os.environ,
        os.environ.get("REFUSE_ONLY", ""),
    ).start()
