"""Python values as Hydra overrides."""

import re
from collections.abc import Mapping
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
_KEY = re.compile(r"\w+")
_WORDS = ("null", "true", "false", "nan", "inf")


def override(key: str, value: Any) -> str:
    """`key=value`, in Hydra's grammar."""
    return f"{key}={as_text(value)}"


def as_text(value: Any) -> str:
    """A value as it is written after `key=`.

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
        return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value) + "'"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_text, value))}]"
    if isinstance(value, Mapping):
        odd = [key for key in value if not _KEY.fullmatch(str(key))]
        if odd:
            raise ValueError(f"A key of a config is a word of letters, digits and _, but got {odd[0]!r}.")
        return "{" + ",".join(f"{key}:{as_text(item)}" for key, item in value.items()) + "}"
    raise ValueError(f"A config cannot hold {value!r}, a {type(value).__name__}.")
