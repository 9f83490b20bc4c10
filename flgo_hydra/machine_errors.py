"""What the machine refused (no space, no rights, a name too long), in a sentence that says how to go on."""

import errno
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from flgo_hydra.installed import is_installed

_AGAIN = "Give the same command again"
_REMEDIES = {
    errno.ENOSPC: ("there is no space left", "Make room there"),
    errno.EDQUOT: ("your quota is used up", "Make room there, or have your quota raised"),
    errno.EFBIG: ("files may not grow so large", "Have the limit on the size of files raised (`ulimit -f`)"),
    errno.EROFS: ("the file system is read-only", "Have it mounted for writing"),
    errno.EACCES: ("there is no right to write or read it", "Get the right to write there"),
    errno.EPERM: ("there is no right to write or read it", "Get the right to write there"),
    errno.ENAMETOOLONG: (
        "a name is longer than the file system takes (mostly 255 bytes)",
        "Give a shorter `hydra.sweep.subdir`",
    ),
    errno.ENOTDIR: ("a file is where a folder should be", "Move it"),
    errno.EEXIST: ("something is there already", "Move it"),
    errno.EISDIR: ("a folder is where a file should be", "Move it"),
    errno.ELOOP: ("links lead in a circle", "Mend them"),
    errno.EIO: ("the disk or the network failed", "Look what is wrong with the disk"),
    errno.ESTALE: ("the network's file system has lost it", _AGAIN),
    errno.EMFILE: ("too many files are open", "Raise the limit (`ulimit -n`), or lower `hydra.launcher.slots`"),
    errno.ENFILE: ("too many files are open on this machine", _AGAIN),
    errno.EAGAIN: ("no more processes or locks are to be had", "Have the limit raised (`ulimit -u`)"),
    errno.ENOMEM: ("there is no memory left", "Lower `hydra.launcher.slots`, `batch_size` or the model's size"),
}
"""What is wrong, and what its user can do about it."""
_OF_NO_FOLDER = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ESTALE)
"""in another folder they would be no other"""
_OF_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class CannotWrite(OSError):
    """A file of ours cannot be written, for a reason that lies outside of us: the storage's or the user's."""

    def __str__(self) -> str:
        _, remedy = _REMEDIES.get(self.errno or 0, ("", "Look what is wrong there"))
        return (
            f"{self.filename} cannot be written: {self.strerror}. {remedy} and give the same command again: what is "
            "finished stays, and the rest is done then."
        )


class CannotStart(RuntimeError):
    """The process that jobs are forked from ends before it is ready, whatever is tried; its text says how it ended."""

    def __str__(self) -> str:
        return (
            f"No job can be started: {super().__str__()} each time it was started, before it was ready. Look who ends "
            "processes here, or what memory there is, and give the same command again: what is finished stays."
        )


def refused_by_storage(error: BaseException | None) -> CannotWrite | None:
    """What the storage said, where an error or one behind it is that it is full, broken, or not for writing."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, CannotWrite):
            return error
        if isinstance(error, OSError) and error.errno in _OF_STORAGE:
            return CannotWrite(error.errno, error.strerror, error.filename or "A file")
        error = error.__cause__ or error.__context__
    return None


_TELLS = re.compile(rf"\bCannotWrite\b|\[Errno (?:{'|'.join(map(str, _OF_STORAGE))})\]")


def tells_of_storage(text: str) -> bool:
    """The same of an error that is a text by now, with its traceback."""
    return _TELLS.search(text) is not None


_NO_MEMORY = re.compile(r"can't allocate memory|CUDA out of memory|not enough memory")
"""what torch says of it"""


def in_words(error: BaseException) -> str | None:
    """Returns a sentence for an error of the machine, None for any other.

    What a user's own code was refused is told with its traceback: it may be a mistake there.
    """
    if isinstance(error, CannotStart):
        return str(error)
    if _is_users(error):
        return None
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return "There is no memory left for this. Lower what is large: `task.num_clients`, `batch_size`, the model."
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.errno not in _REMEDIES:
        return None
    reason, remedy = _REMEDIES[error.errno]
    if error.errno not in _OF_NO_FOLDER:
        remedy += ", or choose another folder with `hydra.run.dir=…` (of a sweep `hydra.sweep.dir=…`)"
    again = "" if remedy == _AGAIN else ", and give the same command again"
    where = _shortened(str(error.filename)) if error.filename is not None else "The output folder"
    return f"{where} cannot be used: {reason}. {remedy}{again}."


def _is_users(error: BaseException) -> bool:
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    return any(not is_installed(frame.filename) for frame in frames)


def _shortened(path: str) -> str:
    if len(path) <= 200:
        return path
    longest = max(Path(path).parts, key=len)
    return (
        path.replace(longest, f"{longest[:20]}…{longest[-10:]}") if len(longest) > 60 else f"{path[:100]}…{path[-60:]}"
    )
