"""What the machine refused (no space, no rights, a name too long), in a sentence that says how to go on."""

import errno
import re
import traceback
from collections.abc import Sequence
from pathlib import Path

from flgo_hydra.own_code import is_installed

_ELSEWHERE = "choose another folder with `hydra.run.dir=…` (of a sweep `hydra.sweep.dir=…`)"
_ADVICE = {
    errno.ENOSPC: "there is no space left. Free some, and give the same command again, or " + _ELSEWHERE,
    errno.EDQUOT: "your quota is used up. Free some space, and give the same command again, or " + _ELSEWHERE,
    errno.EFBIG: "files may not grow so large (`ulimit -f`). Raise the limit, or " + _ELSEWHERE,
    errno.EROFS: "the file system is read-only. C" + _ELSEWHERE[1:],
    errno.EACCES: "there is no right to write or read it. C" + _ELSEWHERE[1:],
    errno.EPERM: "there is no right to write or read it. C" + _ELSEWHERE[1:],
    errno.ENAMETOOLONG: "a name is longer than the file system takes (mostly 255 bytes). C"
    + _ELSEWHERE[1:]
    + ", or a shorter `hydra.sweep.subdir`",
    errno.ENOTDIR: "a file is where a folder should be. Move it, or " + _ELSEWHERE,
    errno.EEXIST: "something is there already. Move it, or " + _ELSEWHERE,
    errno.EISDIR: "a folder is where a file should be. Move it, or " + _ELSEWHERE,
    errno.ELOOP: "links lead in a circle. C" + _ELSEWHERE[1:],
    errno.EMFILE: "too many files are open (`ulimit -n`). Raise the limit, or lower `hydra.launcher.slots`",
    errno.ENFILE: "too many files are open on this machine. Give the same command again later",
    errno.EAGAIN: "no more processes or locks are to be had (`ulimit -u`). Give the same command again later",
    errno.ENOMEM: "there is no memory left. Lower `hydra.launcher.slots`, `batch_size` or the model's size",
    errno.ESTALE: "the network's file system has lost it. Give the same command again",
    errno.EIO: "the disk or the network failed. Give the same command again, or " + _ELSEWHERE,
}


_NO_MEMORY = re.compile(r"can't allocate memory|CUDA out of memory|not enough memory")
"""what torch says of it"""


def in_words(error: BaseException) -> str | None:
    """Returns a sentence for an error of the machine, None for any other.

    What a user's own code was refused is told with its traceback: it may be a mistake there.
    """
    if _is_users(error):
        return None
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return "There is no memory left for this. Lower what is large: `task.num_clients`, `batch_size`, the model."
    if not isinstance(error, OSError) or error.errno is None:
        return None
    advice = _ADVICE.get(error.errno)
    if advice is None:
        return None
    where = _shortened(str(error.filename)) if error.filename is not None else "The output folder"
    return f"{where} cannot be used: {advice}."


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
