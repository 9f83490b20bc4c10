"""What a file of ours must be to be believed: the one check of all that is read back from a run's folder.

Folders are copied half, edited by hand, and written by disks that lose power. What is read is either a value of the
types that were written, finite and in order, or a `Defect` that names the file, the place and what is wrong there.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
import stat
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

MOST_BYTES = 256 * 2**20
"""of one file: far more than the longest run's, and less than what would fill a memory"""
_LARGEST = 2**63
_T = TypeVar("_T")


class Defect(ValueError):
    """What is wrong with a file: one line, without its folder."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path.name} {why}")
        self.path = path
        self.why = why


def open_plain(path: Path, most_bytes: int | None = MOST_BYTES) -> io.BufferedReader | None:
    """Opens a file to be read from its beginning; None where there is none. Never waits, as for the writer of a pipe.

    Args:
        most_bytes: of a file that has more, nothing is read; None: of any length, to be read by parts.
    Raises:
        Defect: it is a folder, a pipe or the like, may not be read, or is larger.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise Defect(path, "is a link to a file that is not there") from None
        return None
    except (OSError, ValueError) as error:  # a name with a zero byte
        raise Defect(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    status = os.fstat(fd)
    is_plain = stat.S_ISREG(status.st_mode)
    if is_plain and (most_bytes is None or status.st_size <= most_bytes):
        return open(fd, "rb")
    os.close(fd)
    if is_plain:
        raise Defect(path, f"has {status.st_size} bytes, more than any of ours")
    raise Defect(path, "is a folder" if stat.S_ISDIR(status.st_mode) else "is no plain file")


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes | None:
    """The whole file; None where there is none.

    Args:
        most_bytes: of a file that has more, nothing is read.
    Raises:
        Defect: it is a folder, a pipe or the like, may not be read, or is larger than any of ours.
    """
    file = open_plain(path, most_bytes)
    if file is None:
        return None
    with file:
        try:
            return file.read(most_bytes)
        except OSError as error:
            raise Defect(path, f"cannot be read: {error.strerror}") from None


def hash_file(path: Path) -> str | None:
    """The SHA-256 of a file of any length; None where there is no plain file that may be read."""
    try:
        file = open_plain(path, most_bytes=None)
        if file is None:
            return None
        with file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (Defect, OSError):
        return None


def parse_object(path: Path, text: bytes, where: str = "") -> dict[str, Any]:
    """The JSON object in a text.

    Args:
        path, where: of the file, and of the place in it, for people.
    Raises:
        Defect: it is none.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise Defect(path, f"{where}is nested too deeply") from None
    except ValueError:  # half of a text, bytes that are no text, numbers of a thousand digits
        raise Defect(path, f"{where}is no JSON") from None
    if not isinstance(value, dict):
        raise Defect(path, f"{where}is {_kind(value)}, not an object")
    return value


def parse_rounds(path: Path, content: bytes) -> Iterator[dict[str, float]]:
    """The lines of a rounds.jsonl; null is nan. A last line that was torn off is left out: its writer was killed.

    Raises:
        Defect: a line is none of ours.
    """
    before = -1.0
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        where = f"(line {number}) "
        if number == len(lines) and (not line or not _is_whole(line)):
            break
        values = parse_object(path, line, where)
        checked = {name: _number(path, f"{where}`{name}`", value) for name, value in values.items()}
        at = checked.get("round")
        if not isinstance(at, int) or at < 0:
            raise Defect(path, f"{where}has no round")
        if at <= before:
            raise Defect(path, f"{where}has round {at} after round {before}")
        before = at
        yield checked


def made_of(path: Path, kind: type[_T], values: Mapping[str, Any]) -> _T:
    """A dataclass of an object's values, which are checked against its types; keys that it does not have are left out.

    Of a field `float`, null is nan.

    Raises:
        Defect: a value is missing, or of another type.
    """
    hints = typing.get_type_hints(kind)
    made = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name in values:
            made[field.name] = _checked(path, f"`{field.name}`", hints[field.name], values[field.name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise Defect(path, f"has no `{field.name}`")
    return kind(**made)


def _checked(path: Path, where: str, hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _checked(path, where, arguments[0], value)
    if hint is Any:
        return _finite(path, where, value)
    if hint is float:
        return _number(path, where, value)
    if origin is dict and isinstance(value, dict):
        # Interned: a sweep keeps the metrics of all its jobs.
        return {sys.intern(key): _checked(path, f"{where}, `{key}`", arguments[1], one) for key, one in value.items()}
    if origin is list and isinstance(value, list):
        return [_checked(path, where, arguments[0], one) for one in value]
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return made_of(path, typing.cast(type[Any], hint), value)
    if origin is None and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return _finite(path, where, value)
    raise Defect(path, f"{where} is {_kind(value)}, not {_name(hint)}")


def _number(path: Path, where: str, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Defect(path, f"{where} is {_kind(value)}, not a number")
    return typing.cast(float, _finite(path, where, value))


def _finite(path: Path, where: str, value: Any) -> Any:
    """The value; JSON writes numbers that no memory holds, and those are not of ours."""
    if isinstance(value, dict):
        for key, one in value.items():
            _finite(path, f"{where}, `{key}`", one)
    elif isinstance(value, list):
        for one in value:
            _finite(path, where, one)
    elif isinstance(value, float) and not math.isfinite(value) or isinstance(value, int) and abs(value) >= _LARGEST:
        raise Defect(path, f"{where} is no number that a file of ours can hold")
    return value


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    names = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object", type(None): "null"}
    return names[type(value)]


def _name(hint: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    origin = typing.get_origin(hint) or hint
    return names.get(origin) or {list: "a list"}.get(origin, "an object")
