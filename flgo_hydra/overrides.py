"""An override of a command, `key=value`: taken apart, read and written here, in Hydra's grammar, and nowhere else."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_/][\w./:+%@-]*", re.ASCII)
_KEY = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_QUOTED = re.compile(r"(['\"])((?:\\.|(?!\1)[^\\])*)\1", re.DOTALL)
_WORDS = ("null", "true", "false", "nan", "inf")


@dataclass(frozen=True)
class Override:
    """What an argument of the command line says, whether Hydra can read its value or not."""

    key: str
    """without its sign: `lr`, `task/partition`"""
    text: str | None = None
    """the value as it is written; None where there is no `=`, as in `~lr`"""
    sign: str = ""
    """`+` adds a key, `++` adds or sets it, `~` deletes it"""

    @classmethod
    def read(cls, line: str) -> "Override":
        """Takes an argument apart. One that is no override has no text."""
        name, equals, text = line.partition("=")
        key = name.lstrip("+~")
        return cls(key, text if equals else None, name.removesuffix(key))

    @property
    def name(self) -> str:
        """The key as it is written."""
        return f"{self.sign}{self.key}"

    @property
    def is_set(self) -> bool:
        """Whether it says a value, be it an empty one."""
        return self.text is not None

    @property
    def value(self) -> Any:
        """The value by Hydra's grammar, in Python's kinds; of a sweep, Hydra's own.

        Raises:
            HydraException: it cannot be read.
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser  # not for who reads texts only

        return OverridesParser.create().parse_override(self.write()).value()

    def write(self) -> str:
        return self.name if self.text is None else line_of(self.name, self.text)


def line_of(name: str, text: str) -> str:
    """`key=value`, of a value as it is written."""
    return f"{name}={text}"


def override(name: str, value: Any) -> str:
    """`key=value`, of a Python value."""
    return line_of(name, as_text(value))


def varied(name: str, values: Iterable[Any]) -> str:
    """`key=value,value`, of the Python values that a key is to have in turn."""
    return line_of(name, ",".join(map(as_text, values)))


def texts_of(lines: Iterable[str]) -> dict[str, str]:
    """Values as they are written, by their keys as they are written."""
    return {one.name: one.text or "" for one in map(Override.read, lines)}


def setting(lines: Iterable[str], key: str) -> Override | None:
    """What sets a key: of several overrides the last one, as Hydra has it; None where there is none."""
    found = [one for one in map(Override.read, lines) if one.key == key and one.is_set]
    return found[-1] if found else None


def as_text(value: Any) -> str:
    """A value as it is written after `key=`, alone or among the values of a sweep.

    Raises:
        ValueError: no config can hold it.
    """
    if hasattr(value, "tolist") and not isinstance(value, str):  # numpy's and torch's scalars and arrays
        value = value.tolist()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            return value
        # A backslash counts as itself, but for those before a quote and at the end.
        return "'" + re.sub(r"(\\*)('|\Z)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value) + "'"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_as_key(key)}:{as_text(item)}" for key, item in value.items()) + "}"
    raise ValueError(f"A config cannot hold {value!r}, a {type(value).__name__}.")


def unquoted(text: str) -> str | None:
    """What a value says that is one text in quotes; None of any other."""
    quoted = _QUOTED.fullmatch(text)
    return None if quoted is None else re.sub(rf"\\+(?={quoted[1]}|\Z)", lambda m: "\\" * (len(m[0]) // 2), quoted[2])


def _as_key(key: Any) -> str:
    """A dict's key, which Hydra reads without quotes: `1` is a number there, whatever it was."""
    if isinstance(key, int) or (isinstance(key, str) and _KEY.fullmatch(key) and key.lower() not in _WORDS):
        return as_text(key)
    raise ValueError(
        f"A key of a config is a word of letters, digits and _ that begins with no digit, or a whole number, but got "
        f"{key!r}."
    )
