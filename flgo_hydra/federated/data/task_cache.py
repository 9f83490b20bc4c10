"""Built tasks on disk, one folder each, memory-mapped by every process that uses them.

    <folder>/<name>-<hash>/<array>.npy and meta.json    a task; the hash is of config and code that decide its content
    <folder>/<hash>.lock                                held while a process builds it
    <folder>/<hash>.tmp-build/, <hash>.tmp-damaged/     being written, on its way out (by who holds the lock)

A folder appears under its final name only when it is complete: files are written and flushed under a temporary one,
meta.json last, then it is renamed. meta.json records type, shape, size, CRC-32 and time of each array's file. The
checksum is computed again only when the time has changed, since that would read gigabytes at every start; a file that
some program rewrites has a new time. A damaged folder is replaced.

meta.json also has the SHA-256 of the content, computed once, and the state of what the source opened, listed and read
(`dependencies.py`): where that has changed, the task is built again.

A cache is a convenience: where it cannot be written (read-only, full), tasks are built in memory, with a warning. Any
folder in it may be deleted at any time.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flgo_hydra.federated.data import dependencies
from flgo_hydra.record.lock import Held, holding, is_stopped
from flgo_hydra.record.paths import cache_folder
from flgo_hydra.record.schema import open_plain, parse_object, read_bytes

Arrays = dict[str, NDArray[Any]]
State = dict[str, Any]
"""of what a source depends on, see `dependencies.state_of`"""
_CHUNK = 1 << 22
_WAIT_S = 2.0
_MOST_WAIT_S = 3600.0
log = logging.getLogger("flgo_hydra")


@dataclass(frozen=True)
class Content:
    """A task's arrays, and the hash of what is in them."""

    arrays: Arrays
    sha256: str
    source_sha256: str
    """of what the source returned, before it was split"""


class _Damaged(Exception):
    """The folder cannot be what was written."""


class _Changed(Exception):
    """The folder is of what the source depended on before."""


def hash_arrays(arrays: Arrays) -> str:
    """SHA-256 of names, types, shapes and numbers: of each 4 MiB, and of these in order. Threads share the work."""
    from concurrent.futures import ThreadPoolExecutor  # only where a task is built

    whole = hashlib.sha256()
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for name, array in sorted(arrays.items()):
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            whole.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            parts = (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
            for digest in pool.map(lambda part: hashlib.sha256(part).digest(), parts):
                whole.update(digest)
    return whole.hexdigest()


def find_folder(cache_dir: str | None) -> Path | None:
    """Returns the cache's folder: flgo_hydra/tasks in `cache_dir`, else in the user's cache folder.

    None: the user has none.
    """
    found = cache_folder(cache_dir)
    if found is None:
        log.warning("There is no task cache: this user has no home folder. Name one with XDG_CACHE_HOME.")
        return None
    return found / "tasks"


def load_or_build(
    folder: Path | None,
    name: str,
    content: Mapping[str, Any],
    build: Callable[[], tuple[Arrays, State, str]],
    needed: Collection[str] | None = None,
) -> Content:
    """Returns the arrays that `build` makes, from disk where it has run before, for any process.

    Args:
        folder: the cache's; None: build without it.
        name: begins the entry's name, for people.
        content: what decides the arrays beside what `build` says they depend on, as JSON.
        build: returns the arrays, the state of what they depend on, and the hash of what the source returned.
        needed: the arrays' names, which an entry on disk must have; None: whatever it says.
    Returns:
        arrays mapped copy-on-write: writing to one changes no file. Plain arrays where nothing can be written.
    """
    if folder is None:
        return _build_alone(build)
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
    entry = folder / f"{re.sub(r'[^0-9A-Za-z_.-]', '_', name)}-{key}"
    # What is wrong is looked at again under the lock: another process may be replacing the folder.
    with contextlib.suppress(_Damaged, _Changed, OSError):
        found = _read(entry, needed)
        if found is not None and found[1] is None:
            return found[0]
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_waiting(folder / f"{key}.lock", name))
            _remove_leftovers(folder, key)
            if (found := _read_or_remove(entry, key, needed)) is not None:
                if found[1] is not None:
                    _write_meta(entry, found[1])
                return found[0]
        except (OSError, Held) as error:
            log.warning("The task cache %s cannot be used (%s); building %s in memory.", folder, error, name)
            return _build_alone(build)
        arrays, state, source_sha256 = build()
        made = Content(arrays, hash_arrays(arrays), source_sha256)
        try:
            hashes = {"sha256": made.sha256, "source_sha256": source_sha256}
            _write(entry, key, {"content": content, "depends": state, **hashes}, arrays)
            # From the file, so that all processes share its pages and this one need not keep its own.
            read = _read(entry)
            return made if read is None else read[0]
        except _Changed:  # while it was built: the next process sees to it
            return made
        except (OSError, _Damaged) as error:
            log.warning("The task cache %s cannot be written (%s); %s stays in memory.", folder, error, name)
            return made


def _build_alone(build: Callable[[], tuple[Arrays, State, str]]) -> Content:
    arrays, _, source_sha256 = build()
    return Content(arrays, hash_arrays(arrays), source_sha256)


@contextlib.contextmanager
def _waiting(path: Path, name: str) -> Iterator[None]:
    """Holds an entry's lock. Who builds it may take long: it is waited for, with a word, while it builds.

    Raises:
        Held: its holder is stopped (SIGSTOP), or does not end.
    """
    deadline = time.monotonic() + _MOST_WAIT_S
    is_told = False
    # The file stays: deleting it would let two hold "the" lock.
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(holding(path, wait_s=_WAIT_S))
                break
            except Held as held:
                if time.monotonic() > deadline or is_stopped(held.holder):
                    raise
                if not is_told:
                    log.warning("Waiting for process %s, which builds the task %s.", held.holder or "unknown", name)
                is_told = True
        yield


def _remove_leftovers(folder: Path, key: str) -> None:
    """Removes what builders left that were killed. The lock of `key` is held."""
    for path in folder.glob("*.tmp-*"):
        owner = path.name.partition(".")[0]
        if owner == key:
            _remove(path)
            continue
        with contextlib.suppress(OSError, Held), holding(folder / f"{owner}.lock"):
            shutil.rmtree(path, ignore_errors=True)  # its builder is alive if the lock cannot be had


def _read_or_remove(
    entry: Path, key: str, needed: Collection[str] | None
) -> tuple[Content, dict[str, Any] | None] | None:
    try:
        return _read(entry, needed)
    except (_Damaged, _Changed) as error:
        if isinstance(error, _Damaged):
            log.warning("The cached task %s is damaged (%s) and is built again.", entry, error)
        else:
            log.info("%s has changed: the task %s is built again.", error, entry.name)
        # Moved first: no process may find it half deleted.
        trash = entry.with_name(f"{key}.tmp-damaged")
        os.rename(entry, trash)
        _remove(trash)
        return None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _read(entry: Path, needed: Collection[str] | None = None) -> tuple[Content, dict[str, Any] | None] | None:
    """Returns the mapped content of an entry, and what its meta.json should say where files have new times and the old
    content; None when there is no entry."""
    if not os.path.lexists(entry):
        return None
    try:
        text = read_bytes(entry / "meta.json")
        if text is None:
            raise _Damaged("meta.json is not there")
        meta = parse_object(entry / "meta.json", text)
        if meta.pop("meta_sha256") != _sum(meta):
            raise _Damaged("meta.json has been changed")
        change, state = dependencies.find_change(meta["depends"])
        if change is not None:
            raise _Changed(change)
        if needed is not None and meta["arrays"].keys() != set(needed):
            raise _Damaged(f"it has the arrays {', '.join(meta['arrays'])}")
        arrays = {name: _read_array(entry / f"{name}.npy", recorded) for name, recorded in meta["arrays"].items()}
        content = Content(arrays, str(meta["sha256"]), str(meta["source_sha256"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise _Damaged(f"{type(error).__name__}: {error}") from error
    return content, None if state == meta["depends"] else {**meta, "depends": state}


def _read_array(path: Path, recorded: dict[str, Any]) -> NDArray[Any]:
    with open_plain(path, most_bytes=None) or contextlib.nullcontext() as file:
        if file is None:
            raise _Damaged(f"{path.name} is not there")
        found = os.fstat(file.fileno())
    if found.st_size != recorded["size"]:
        raise _Damaged(f"{path.name} has {found.st_size} bytes in place of {recorded['size']}")
    if found.st_mtime_ns != recorded["mtime_ns"] and _crc32(path) != recorded["crc32"]:
        raise _Damaged(f"{path.name} has another checksum")
    # "c": torch warns about arrays that cannot be written.
    array: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    if [str(array.dtype), list(array.shape)] != [recorded["dtype"], recorded["shape"]]:
        raise _Damaged(f"{path.name} is {array.dtype} of shape {array.shape}")
    return array


def _write(entry: Path, key: str, meta: Mapping[str, Any], arrays: Arrays) -> None:
    temporary = entry.with_name(f"{key}.tmp-build")
    temporary.mkdir()
    try:
        recorded = {name: _write_array(temporary / f"{name}.npy", array) for name, array in arrays.items()}
        _write_meta(temporary, {"arrays": recorded, **meta})
        os.rename(temporary, entry)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_meta(entry: Path, meta: Mapping[str, Any]) -> None:
    temporary = entry / "meta.json.new"
    with temporary.open("w") as file:
        plain = json.loads(json.dumps(meta, default=str))
        json.dump({**plain, "meta_sha256": _sum(plain)}, file, indent=1)
        _flush(file)
    os.replace(temporary, entry / "meta.json")


def _sum(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


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
