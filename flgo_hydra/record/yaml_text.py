"""YAML that Hydra or this package has written, before anybody makes values of it.

Readers of YAML build what a file asks for: a few lines whose names stand for lists of one another make 2**30 values,
and lists ten thousand deep end the process. What was written here has no names and is a few levels deep, so
that a text is looked through first, event by event, which costs no more than its length.
"""

from pathlib import Path
from typing import Any

import yaml

from flgo_hydra.record.schema import Defect, read_bytes

MOST_BYTES = 32 * 2**20
_MOST_DEPTH = 64
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(path: Path) -> str | None:
    """The text of a YAML file, which may be parsed safely; None where there is none.

    Raises:
        Defect: it is no such file.
    """
    content = read_bytes(path, MOST_BYTES)
    if content is None:
        return None
    try:
        text = content.decode()
        _look_through(path, text)
    except UnicodeDecodeError:
        raise Defect(path, "is no text in UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, Defect):
            raise
        raise Defect(path, f"is no YAML ({_told(error)})") from None
    return text


def read_values(path: Path) -> Any:
    """The plain values of a YAML file; None where there is none, or where it is empty.

    Raises:
        Defect: it is no such file.
    """
    text = read_text(path)
    try:
        return None if text is None else yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise Defect(path, f"is no YAML ({_told(error)})") from None


def _look_through(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise Defect(path, "refers to parts of itself, as no file of ours does")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MOST_DEPTH:
                raise Defect(path, "is nested too deeply")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _told(error: Exception) -> str:
    """The first line of what a reader says, and where it says it."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    return f"{problem}, line {mark.line + 1}" if mark is not None else str(problem)
