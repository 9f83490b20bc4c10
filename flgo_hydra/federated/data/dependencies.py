"""What a source's result depends on beside its arguments and its code: files it opens, folders it lists, environment
variables it reads.

While a source runs, `recording` notes them: Python tells audit hooks of every `open`, `listdir` and `scandir`, whoever
calls it (a hook cannot be removed, so there is one, switched on and off). Files that a C library or another process
opens are not seen, unless an argument or the code names them; nor is the network: `task.cache=false` is for these.
What imports read is not noted: modules are code (`own_code`).

A state of them can be compared with the present one: by size, times and inode of each file where these are as they
were, else by content.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flgo_hydra import own_code
from flgo_hydra.record.schema import hash_file

_NOT_DATA = ("/proc/", "/sys/", "/dev/", "/etc/")
_CODE = (".py", ".pyc", ".pyd", ".so")
_MACHINE = ("OMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "CUDA_", "PYTORCH_", "HYDRA_", "PYTHON", "PYTEST_", "LC_", "LANG")
"""Variables that our own processes have different values of, or that say how, not what."""
_MACHINE_NAMES = ("COLUMNS", "LINES", "TERM", "PWD", "OLDPWD", "SHLVL", "_", "TMPDIR", "TMP", "TEMP")
_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
# whoever asks for a package's version has all of `sys.path` listed, the current folder too
_IMPORTING = ("<frozen importlib", "<frozen zipimport", os.path.dirname(importlib.metadata.__file__))
_ENVIRONMENT_CODE = ("<frozen os>", "<frozen _collections_abc>", os.__file__, sys.modules["_collections_abc"].__file__)


@dataclass
class Record:
    """What was seen. Paths are absolute."""

    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    variables: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    """files that were opened to be written only"""
    modules: set[str] = field(default_factory=set)
    """the user's own source files that were imported"""
    own_variables: set[str] = field(default_factory=set)
    """those that the user's own code asks for"""
    is_relative: bool = False
    """whether some path began in the current folder"""

    def update(self, other: "Record") -> None:
        self.files |= other.files
        self.folders |= other.folders
        self.variables |= other.variables
        self.modules |= other.modules
        self.written |= other.written
        self.own_variables |= other.own_variables
        self.is_relative |= other.is_relative


_records: list[Record] = []
"""those that are being made now"""
_is_hooked = False


@contextlib.contextmanager
def recording() -> Iterator[Record]:
    """Notes what is opened, listed and read in the block, by any thread."""
    global _is_hooked
    if not _is_hooked:
        sys.addaudithook(_hear)
        _is_hooked = True
    record = Record()
    environment_class = type(os.environ)
    _records.append(record)
    os.environ.__class__ = _WatchedEnvironment
    try:
        yield record
    finally:
        _records.remove(record)
        if not _records:
            os.environ.__class__ = os._Environ
        else:
            os.environ.__class__ = environment_class


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if not _records or event not in ("open", "os.listdir", "os.scandir", "sqlite3.connect"):
        return
    with contextlib.suppress(Exception):  # a hook that raises would end what it only watches
        given = arguments[0]
        is_written = event == "open" and arguments[2] & _ACCESS == os.O_WRONLY
        if isinstance(given, int) or (given is None and event == "open") or given == ":memory:":
            return
        if _is_import(sys._getframe(1)):
            if event == "open":
                _hear_import(os.path.abspath(os.fsdecode(given)))
            return
        written = os.fsdecode("." if given is None else given)
        path = os.path.abspath(written)
        if path.startswith(_NOT_DATA):
            return
        if is_written:
            for record in _records:
                record.written.add(path)
            return
        if not os.path.isabs(written):
            for record in _records:
                record.is_relative = True
        if event.startswith("os."):
            for record in _records:
                record.folders.add(path)
        elif not (path.endswith(_CODE) and own_code.is_installed(path)):
            for record in _records:
                record.files.add(path)


def _hear_import(path: str) -> None:
    source = importlib.util.source_from_cache(path) if path.endswith(".pyc") else path
    if source.endswith(".py") and not own_code.is_installed(source):
        for record in _records:
            record.modules.add(source)


def _is_import(frame: types.FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(_IMPORTING)


class _WatchedEnvironment(os._Environ):  # type: ignore[type-arg]
    """`os.environ` while a source runs."""

    def __getitem__(self, key: Any) -> Any:
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename in _ENVIRONMENT_CODE:
            frame = frame.f_back
        is_own = frame is not None and not own_code.is_installed(frame.f_code.co_filename)
        if is_own or not _is_below_import(frame):
            name = os.fsdecode(key) if isinstance(key, str | bytes) else str(key)
            if is_own or not (name.startswith(_MACHINE) or name in _MACHINE_NAMES):
                for record in _records:
                    record.variables.add(name)
                    if is_own:
                        record.own_variables.add(name)
        return super().__getitem__(key)


def _is_below_import(frame: types.FrameType | None) -> bool:
    """Whether a module is being imported: libraries read much then that decides nothing."""
    while frame is not None:
        if _is_import(frame):
            return True
        frame = frame.f_back
    return False


def named_by(target: Any, parameters: Mapping[str, Any]) -> set[str]:
    """Files that a class or a function names in its code, or that are named to it: a C library may open them."""
    kinds = target.__mro__ if isinstance(target, type) else ()
    functions = [f for kind in kinds for f in vars(kind).values()] if kinds else [target]
    given = (value for value in parameters.values() if isinstance(value, str))
    return named_files(*functions) | {os.path.abspath(text) for text in given if os.path.isfile(text)}


def reads_of(record: Record, without: Path | None = None) -> list[str]:
    """What was seen to be read, as `own_code.hash_reads` takes it.

    Args:
        without: a folder whose files do not count.
    """
    here = os.getcwd()
    files = [
        os.path.relpath(path, here) if Path(path).is_relative_to(here) else path
        for path in sorted((record.files | record.modules) - record.written)
        if not (
            path in sys.path
            or own_code.is_installed(path)
            or (without and Path(path).is_relative_to(without.absolute()))
        )
    ]
    return [*files, *(f"${name}" for name in sorted(record.own_variables))]


def named_files(*functions: Any) -> set[str]:
    """Files whose names are written in functions, in whatever they call of theirs in the same module, or in globals
    that they read: a C library may open them."""
    found: set[str] = set()
    for function in functions:
        code = getattr(function, "__code__", None)
        if isinstance(code, types.CodeType) and not own_code.is_installed(code.co_filename):
            _add_named(code, function.__globals__, found, set())
    return found


def _add_named(code: types.CodeType, values: Mapping[str, Any], found: set[str], seen: set[types.CodeType]) -> None:
    if code in seen:
        return
    seen.add(code)
    for constant in [*code.co_consts, *(values.get(name) for name in code.co_names)]:
        if isinstance(constant, types.CodeType):
            _add_named(constant, values, found, seen)
        elif isinstance(constant, types.FunctionType) and constant.__globals__ is values:
            _add_named(constant.__code__, values, found, seen)
        elif isinstance(constant, str | os.PathLike):
            with contextlib.suppress(OSError, ValueError):
                path = os.path.abspath(os.fspath(constant))
                if os.path.isfile(path) and not path.startswith(_NOT_DATA):
                    found.add(path)


def state_of(record: Record) -> dict[str, Any]:
    """The present state of all that was seen, as JSON."""
    return {
        "files": {path: _state_of_file(path) for path in sorted(record.files) if not os.path.isdir(path)},
        "folders": {path: _state_of_folder(path) for path in sorted(record.folders)},
        "variables": {name: os.environ.get(name) for name in sorted(record.variables)},
        "cwd": os.getcwd() if record.is_relative else None,
    }


def find_change(state: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Compares an earlier state with the present one.

    Returns:
        what has changed, for people, or None; and the state as it is now, where only times have changed.
    """
    if state["cwd"] not in (None, os.getcwd()):
        return "the current folder", {}
    for name, before in state["variables"].items():
        if os.environ.get(name) != before:
            return f"the environment variable {name}", {}
    for path, names in state["folders"].items():
        if _state_of_folder(path) != names:
            return f"the folder {path}", {}
    files = dict(state["files"])
    for path, before in files.items():
        times = _times(path)
        if times is None or before is None:
            if times is not before:
                return f"the file {path}", {}
        elif times != before[:-1]:
            files[path] = [*times, _hash(path)]
            if files[path][-1] != before[-1]:
                return f"the file {path}", {}
    return None, {**state, "files": files}


def files_record(paths: Iterable[Path]) -> Record:
    """A record of these files."""
    return Record(files={os.path.abspath(path) for path in paths})


def _times(path: str) -> list[int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    # ctime: whoever sets mtime back, as `cp -p` and archives do, cannot set it.
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _state_of_file(path: str) -> list[Any] | None:
    times = _times(path)
    return None if times is None else [*times, _hash(path)]


def _hash(path: str) -> str:
    return hash_file(Path(path)) or ""  # not ours to read, or a pipe: its times have to do


def _state_of_folder(path: str) -> str | None:
    """A hash of the names in a folder, but for what runs leave there; files in it that count were opened."""
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if not _is_of_runs(entry))
    except OSError:
        return None
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def _is_of_runs(entry: os.DirEntry[str]) -> bool:
    if not entry.is_dir():
        return False
    is_named = entry.name in ("outputs", "multirun", "__pycache__")
    caches = [entry.path] if entry.name == "flgo_hydra" else [os.path.join(entry.path, "flgo_hydra")]
    is_named = is_named or os.path.isdir(os.path.join(*caches, "tasks"))
    return is_named or any(os.path.exists(os.path.join(entry.path, name)) for name in (".hydra", "multirun.yaml"))
