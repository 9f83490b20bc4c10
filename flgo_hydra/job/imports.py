"""Imports what a config names of the user's own, once in a process, and remembers the code behind it."""

from collections.abc import Callable
from typing import Any

from flgo_hydra import own_code, reference

_imported: set[str] = set()


def load(target: str, key: str) -> Callable[..., Any]:
    """What the reference names; at its first import it is noted what that has read.

    Raises:
        ValueError: there is no such thing.
    """
    if target in _imported:
        return reference.load(target, key)
    from flgo_hydra.federated.data.dependencies import reads_of, recording

    with recording() as record:
        found = reference.load(target, key)
    own_code.remember(target, reads_of(record))
    _imported.add(target)
    return found
