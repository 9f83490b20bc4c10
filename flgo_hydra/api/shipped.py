"""Objects of the calling program for the workers: classes and functions of a script or of a notebook's cell.

A worker does not run the script again, so a plain script needs no `if __name__ == "__main__":`. What cannot be
imported travels by value, with cloudpickle, in a file of the sweep folder; configs name it by a target
(`reference.give`), which holds a hash of all that the object is: two functions of one factory are two, an edited class
is another one, and the same script names it alike each time.
"""

import importlib
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
from omegaconf import DictConfig

from flgo_hydra import app, reference
from flgo_hydra.captured import hash_of
from flgo_hydra.record import files


def preload() -> None:
    """What the forkserver imports for jobs."""
    app.preload()


_OWN_NAME = re.compile(r"(?<![\w.])__main__\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)")


class JobWithObjects:
    """`app.job`, in a process that first learns the objects that its config names."""

    def __init__(self, file: Path) -> None:
        self._file = str(file)

    def __call__(self, cfg: DictConfig) -> float:
        with open(self._file, "rb") as file:
            objects = pickle.load(file)
        for target, value in objects.items():
            reference.give(target, value)
        return app.job(cfg)


def write_objects(file: Path, objects: dict[str, Callable[..., Any]]) -> None:
    """Writes the objects, by target, for `JobWithObjects`.

    Raises:
        ValueError: one has changed since it was named.
    """
    for target, value in objects.items():
        check_unchanged(target, value)
    with files.replacing(file, is_durable=False) as opened:
        cloudpickle.dump(objects, opened)


def check_unchanged(target: str, value: Callable[..., Any]) -> None:
    """Raises ValueError if a given object is not any more what its name says."""
    if _target(value) != target:
        raise ValueError(
            f"{getattr(value, '__qualname__', value)!r} was given, and something that it reads (a global value, an "
            "attribute, a closure) has changed since. Give what shall be trained as a function of its own, or start "
            "each call after the change."
        )


def target_of(value: Callable[..., Any], objects: dict[str, Callable[..., Any]]) -> str:
    """Returns the `_target_` of a class or function: its import path or, where there is none, a given name.

    Args:
        objects: gets the object where it has to travel, by that name.
    """
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    if module not in ("", "__main__", "__mp_main__") and name.isidentifier():
        try:
            if getattr(importlib.import_module(module), name) is value:
                return f"{module}.{name}"
        except (ImportError, AttributeError):
            pass
    target = _target(value)
    try:
        cloudpickle.dumps(value)
    except Exception as error:
        raise ValueError(
            f"{name or value!r} cannot be sent to worker processes: {error}. Define it so that it holds no open file, "
            "lock or generator, or move it to a module of its own."
        ) from error
    objects[target] = value
    reference.give(target, value)
    return target


def ship_own(overrides: Sequence[str]) -> tuple[list[str], dict[str, Callable[..., Any]]]:
    """The overrides, where what they name in `__main__` has the name by which workers know it; and those objects."""
    objects: dict[str, Callable[..., Any]] = {}

    def name(match: re.Match[str]) -> str:
        found: Any = sys.modules["__main__"]
        for part in match[1].split("."):
            found = getattr(found, part, None)
        return target_of(found, objects) if callable(found) else match[0]  # who loads it says what is wrong

    return [_OWN_NAME.sub(name, text) for text in overrides], objects


def _target(value: Callable[..., Any]) -> str:
    name = getattr(value, "__name__", type(value).__name__).strip("<>")
    return f"{reference.GIVEN}.{name}_{hash_of(value)[:12]}"
