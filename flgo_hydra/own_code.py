"""The user's own code behind a config: which files it is in, and what each of them says.

Own is what is neither installed (the standard library, `site-packages`) nor flgo_hydra itself. A module's imports are
read from its text, so that those inside functions count, and followed as far as they stay the user's own.
"""

import ast
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from flgo_hydra.installed import is_installed as is_installed
from flgo_hydra.record.schema import hash_file
from flgo_hydra.reference import GIVEN

_MAIN = ("__main__", "__mp_main__")
_read_at_import: dict[str, set[str]] = {}
_loaded: dict[str, tuple[ModuleType, str]] = {}


def is_own_module(name: str) -> bool:
    """Whether a module is the user's own, as far as it can be found."""
    return name in _MAIN or _find(name) is not None


def behind(config: Mapping[str, Any]) -> dict[str, Any]:
    """The code behind a config's task, model, algorithm and metrics, as result.json has it.

    Args:
        config: `task`, `model`, `algorithm`, `option` and, if there are any, `parts` as plain values.
    Returns:
        `sha256` of all, empty where nothing is the user's own, and `files` with the hash of each, of
        `initial_weights` too; an object that a Python program gave stands there by its name, which ends in its hash.
    """
    task, algorithm = config["task"], config["algorithm"]
    composed = config.get("parts", {}).values()
    parts = (task.get("source"), task.get("partition"), config["model"], algorithm, *composed)
    targets = [str(part.get("_target_", "")) for part in parts if isinstance(part, Mapping)]
    targets += [f"{algorithm['module']}.Server"] if "module" in algorithm else []
    targets += [str(config["option"].get("metrics") or "")]
    given = {target: target.rpartition("_")[2] for target in targets if target.startswith(f"{GIVEN}.")}
    files = {**hash_files(target for target in targets if target and target not in given), **given}
    weights = config["option"].get("initial_weights")
    if weights and (path := Path(weights)).is_file():
        files[str(weights)] = _hash_of(path, path.stat().st_mtime_ns)
    return {"sha256": combine(files), "files": files}


@functools.lru_cache(maxsize=1000)
def _hash_of(path: Path, mtime_ns: int) -> str:
    return hash_file(path) or ""


def hash_reads(names: Iterable[str]) -> dict[str, str]:
    """What code reads beside code, as it is now: files by their path, and variables of the environment by `$NAME`.

    Returns:
        by name the SHA-256; empty where there is no such file or variable.
    """
    found = {}
    for name in names:
        if name.startswith("$"):
            value = os.environ.get(name[1:])
            found[name] = "" if value is None else hashlib.sha256(value.encode()).hexdigest()
            continue
        try:
            found[name] = _hash_of(Path(name).absolute(), Path(name).stat().st_mtime_ns)
        except OSError:
            found[name] = ""
    return found


def with_reads(code: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The code behind a config, with what else it has been seen to read."""
    reads = {**code.get("reads", {}), **hash_reads(names)}
    return {**code, "sha256": combine({**code["files"], **reads}), "reads": reads} if reads else dict(code)


def changed_since(code: Mapping[str, Any], files: Mapping[str, str]) -> list[str]:
    """What has changed since a result: files of code, and what it read.

    Args:
        code: as the result has it.
        files: the hashes of the code's files as they are now.
    """
    reads = code.get("reads", {})
    return sorted({*differing(code["files"], files), *differing(reads, hash_reads(reads))})


def hash_files(targets: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of every file of the user's own behind the targets (`package.module.name`).

    Returns:
        by file name from where it is imported: `{"my_models.py": "…", "lib/blocks.py": "…"}`, sorted.
    """
    found: dict[str, Path] = {}
    for target in targets:
        if not target.startswith("flgo_hydra."):
            _follow(target.rpartition(".")[0], found)
    files = {}
    for name, path in sorted(found.items()):
        parts = name.split(".")
        is_package = path.name == "__init__.py"
        where = "/".join([*parts, "__init__.py"] if is_package else [*parts[:-1], path.name])
        files[where] = _hash(name, path)
    return files


def remember(target: str, reads: Iterable[str] = ()) -> None:
    """Takes the hashes of what has just been imported, and of what that imports, before the files change.

    Args:
        reads: what was read on the way.
    """
    _read_at_import.setdefault(target, set()).update(reads)
    if not target.startswith(f"{GIVEN}."):
        hash_files([target])


def read_at_import(target: str) -> set[str]:
    """What the module of a target has read when it was imported, as far as this process knows."""
    return _read_at_import.get(target, set())


def combine(files: dict[str, str]) -> str:
    """One hash of many; empty of none."""
    text = "\n".join(f"{name} {value}" for name, value in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest() if files else ""


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The files that two versions of some code do not share."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _hash(name: str, path: Path) -> str:
    """Of what is loaded: a module that was imported before its file changed computes what it did."""
    module = sys.modules.get(name)
    if module is not None and name in _loaded and _loaded[name][0] is module:
        return _loaded[name][1]
    value = hashlib.sha256(path.read_bytes()).hexdigest()
    if module is not None:
        _loaded[name] = module, value
    return value


def _follow(name: str, found: dict[str, Path]) -> None:
    """Adds the module, the packages around it, and what of the user's own they import."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        part = ".".join(parts[:depth])
        if part in found:
            continue
        path = _find(part)
        if path is None and depth < len(parts) and _is_own_namespace(part):
            continue  # a folder without __init__.py
        if path is None:
            return
        found[part] = path
        for imported in _imports(path, part, path.stat().st_mtime_ns):
            _follow(imported, found)


def _find(name: str) -> Path | None:
    """The file of a module of the user's own; None of any other. Nothing is imported."""
    if _is_known_library(name):
        return None
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None:
        spec = _find_spec(name)
        file = spec.origin if spec is not None and spec.has_location else None
    if file is None or is_installed(file) or not Path(file).is_file():
        return None
    return Path(file)


def _is_own_namespace(name: str) -> bool:
    """Whether a name is a folder of the user's own that holds modules and has no `__init__.py`."""
    spec = None if _is_known_library(name) else _find_spec(name)
    if spec is None or spec.has_location or spec.submodule_search_locations is None:
        return False
    return any(not is_installed(str(Path(place, "_"))) for place in spec.submodule_search_locations)


def _is_known_library(name: str) -> bool:
    head = name.partition(".")[0]
    return not head or head in sys.stdlib_module_names or head == "flgo_hydra"


def _find_spec(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module would be imported from."""
    parts = name.split(".")
    spec: importlib.machinery.ModuleSpec | None = None
    path: Iterable[str] | None = None
    try:
        for depth in range(len(parts)):
            part = ".".join(parts[: depth + 1])
            spec = importlib.util.find_spec(part) if depth == 0 else _find_below(part, path)
            if spec is None:
                return None
            path = spec.submodule_search_locations
    except (ImportError, ValueError, AttributeError):
        return None
    return spec


def _find_below(name: str, path: Iterable[str] | None) -> importlib.machinery.ModuleSpec | None:
    places = list(path or ())
    try:
        return importlib.machinery.PathFinder.find_spec(name, places)
    except KeyError:  # a folder without __init__.py: Python asks for its parent, which is not imported
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        folders = [Path(place, name.rpartition(".")[2]) for place in places]
        spec.submodule_search_locations = [str(folder) for folder in folders if folder.is_dir()]
        return spec


@functools.lru_cache(maxsize=1000)
def _imports(path: Path, name: str, mtime_ns: int) -> tuple[str, ...]:
    """The modules that a file's text imports, by full name; names that are no module lead nowhere later."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a library in machine code
        return ()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return tuple(dict.fromkeys(_imports_of(tree, package)))


def _imports_of(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
            yield base
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value
