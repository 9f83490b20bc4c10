"""What a key's type lets it hold, in words, and the sentence for a value of another type."""

import dataclasses
import math
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any

_ONE: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    bytes: "bytes",
    Path: "a path",
}
_MANY: dict[Any, str] = {
    int: "whole numbers",
    float: "numbers",
    bool: "true and false",
    str: "texts",
    Path: "paths",
}


def in_words(kind: Any, is_optional: bool = False) -> str:
    """What a type lets a key hold: "a whole number, or null". Empty where it lets it hold anything.

    Args:
        kind: a class or type hint.
        is_optional: null may stand there as well.
    """
    words = _words(kind)
    return f"{words}, or null" if words and is_optional and not words.endswith("null") else words


def _words(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        parts = [argument for argument in arguments if argument is not type(None)]
        # Every whole number is a number.
        words = [_words(part) for part in parts if not (part is int and float in parts)]
        return " or ".join(words + (["null"] if type(None) in arguments else [])) if all(words) else ""
    if kind in _ONE:
        return _ONE[kind]
    if kind is list or origin is list:
        item = arguments[0] if arguments else Any
        return f"a list of {_MANY[item]}" if item in _MANY else "a list"
    if kind is dict or origin is dict:
        return "keys with values, {key: value}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(member.name for member in kind)}"
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return f"keys with values ({', '.join(field.name for field in dataclasses.fields(kind))})"
    return ""


def is_open(kind: Any) -> bool:
    """Whether it is a type of keys that nobody has named beforehand."""
    return kind is dict or typing.get_origin(kind) is dict


class Written(str):
    """A value as it was written, where nothing has made Python of it."""

    def __repr__(self) -> str:
        return str(self)


def wrong_type(key: str, meaning: str, kind: Any, is_optional: bool, got: Any) -> str:
    """The error for a value that a key's type cannot take."""
    words = in_words(kind, is_optional) or "something else"
    whole = isinstance(got, float) and math.isfinite(got) and got.is_integer() and kind is int
    advice = f" Write {int(got)}." if whole else ""
    return f"{_named(key, meaning)} must be {words}, but got {'null' if got is None else repr(got)}.{advice}"


def wrong_item(key: str, meaning: str, kind: Any, at: str, got: Any) -> str:
    """The same for an item of a list: `at` is its index, `[0]`."""
    words, said = in_words(kind) or "a list", "null" if got is None else repr(got)
    return f"{_named(key, meaning)} must be {words}, but got {said} at {at}."


def no_keys_below(key: str, meaning: str, kind: Any, is_optional: bool, typed: str) -> str:
    """The error for a key below one that holds a single value."""
    words = in_words(kind, is_optional) or "a single value"
    return f"There is no `{typed}`: {_named(key, meaning)} must be {words}, and has no keys below it. Set `{key}=…`."


def _named(key: str, meaning: str) -> str:
    return f"`{key}` ({meaning})" if meaning else f"`{key}`"
