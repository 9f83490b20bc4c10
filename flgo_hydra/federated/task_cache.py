"""Built tasks on disk, one folder each, memory-mapped by every process that uses them.

    <folder>/<name>-<hash>/<array>.npy and meta.json    a task; the hash is of everything that decides its content
    <folder>/<hash>.lock                                held while a process builds it
    <folder>/<hash>.tmp-build/, <hash>.tmp-damaged/     being written, on its way out (by who holds the lock)

A folder appears under its final name only when it is complete: files are written and flushed under a temporary one,
meta.json last, then it is renamed. meta.json records type, shape, size, CRC-32 and time of each array's file. The
checksum is computed again only when the time has changed, since that would read gigabytes at every start; a file that
some program rewrites has a new time. A damaged folder is replaced.

A cache is a convenience: where it cannot be written (read-only, full), tasks are built in memory, with a warning. Any
folder in it may be deleted at any time.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
log = logging.getLogger("flgo_hydra")


class _Damaged(Exception):
    """The folder cannot be what was written."""


def find_folder(cache_dir: str | None) -> Path:
    """Returns the cache's folder: flgo_hydra/tasks in `cache_dir`, else in the user's cache folder."""
    root = cache_dir or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser().absolute() / "flgo_hydra" / "tasks"


def load_or_build(folder: Path, name: str, content: Mapping[str, Any], build: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays that `build` makes, from disk where it has run before, for any process.

    Args:
        name: begins the entry's name, for people.
        content: what decides the arrays, as JSON: equal content, equal arrays.
    Returns:
        arrays mapped copy-on-write: writing to one changes no file. Plain arrays where nothing can be written.
    """
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    entry = folder / f"{re.sub(r'[^0-9A-Za-z_.-]', '_', name)}-{key}"
    # Damage is looked at again under the lock: another process may be replacing the folder.
    with contextlib.suppress(_Damaged, OSError):
        if (arrays := _read(entry)) is not None:
            return arrays
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(folder / f"{key}.lock"))
            _remove_leftovers(folder, key)
            if (arrays := _read_or_remove(entry, key)) is not None:
                return arrays
        except OSError as error:
            log.warning("The task cache %s cannot be used (%s); building %s in memory.", folder, error, name)
            return build()
        arrays = build()
        try:
            _write(entry, key, content, arrays)
            # From the file, so that all processes share its pages and this one need not keep its own.
            return _read(entry) or arrays
        except (OSError, _Damaged) as error:
            log.warning("The task cache %s cannot be written (%s); %s stays in memory.", folder, error, name)
            return arrays


@contextlib.contextmanager
def _lock(path: Path, is_blocking: bool = True) -> Iterator[None]:
    # The lock goes with its holder, however that dies. The file stays: deleting it would let two hold "the" lock.
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if is_blocking else fcntl.LOCK_NB))
        yield


def _remove_leftovers(folder: Path, key: str) -> None:
    """Removes what builders left that were killed. The lock of `key` is held."""
    for path in folder.glob("*.tmp-*"):
        owner = path.name.partition(".")[0]
        if owner == key:
            shutil.rmtree(path, ignore_errors=True)
            continue
        with contextlib.suppress(OSError), _lock(folder / f"{owner}.lock", is_blocking=False):
            shutil.rmtree(path, ignore_errors=True)  # its builder is alive if the lock cannot be had


def _read_or_remove(entry: Path, key: str) -> Arrays | None:
    try:
        return _read(entry)
    except _Damaged as error:
        log.warning("The cached task %s is damaged (%s) and is built again.", entry, error)
        # Moved first: no process may find it half deleted.
        trash = entry.with_name(f"{key}.tmp-damaged")
        os.rename(entry, trash)
        shutil.rmtree(trash, ignore_errors=True)
        return None


def _read(entry: Path) -> Arrays | None:
    """Returns the mapped arrays of an entry, or None when there is none."""
    if not entry.exists():
        return None
    try:
        meta = json.loads((entry / "meta.json").read_text())
        return {name: _read_array(entry / f"{name}.npy", recorded) for name, recorded in meta["arrays"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise _Damaged(f"{type(error).__name__}: {error}") from error


def _read_array(path: Path, recorded: dict[str, Any]) -> NDArray[Any]:
    found = path.stat()
    if found.st_size != recorded["size"]:
        raise _Damaged(f"{path.name} has {found.st_size} bytes in place of {recorded['size']}")
    if found.st_mtime_ns != recorded["mtime_ns"] and _crc32(path) != recorded["crc32"]:
        raise _Damaged(f"{path.name} has another checksum")
    # "c": torch warns about arrays that cannot be written.
    array: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    if [str(array.dtype), list(array.shape)] != [recorded["dtype"], recorded["shape"]]:
        raise _Damaged(f"{path.name} is {array.dtype} of shape {array.shape}")
    return array


def _write(entry: Path, key: str, content: Mapping[str, Any], arrays: Arrays) -> None:
    temporary = entry.with_name(f"{key}.tmp-build")
    temporary.mkdir()
    try:
        recorded = {name: _write_array(temporary / f"{name}.npy", array) for name, array in arrays.items()}
        with (temporary / "meta.json").open("w") as file:
            json.dump({"arrays": recorded, "content": content}, file, indent=1, default=str)
            _flush(file)
        os.rename(temporary, entry)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_array(path: Path, array: NDArray[Any]) -> dict[str, Any]:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        _flush(file)
    written = path.stat()
    return {
        "dtype": str(array.dtype), "shape": list(array.shape), "size": written.st_size, "crc32": _crc32(path),
        "mtime_ns": written.st_mtime_ns,
    }  # fmt: skip


def _flush(file: Any) -> None:
    # A file that a power cut emptied would have the size and the time that meta.json promises.
    file.flush()
    os.fsync(file.fileno())


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value
