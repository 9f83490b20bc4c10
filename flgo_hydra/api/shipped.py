"""Objects of the calling program for the workers: classes and functions of a script or of a notebook's cell.

A worker does not run the script again, so a plain script needs no `if __name__ == "__main__":`. What cannot be
imported travels by value, with cloudpickle, in a file of the sweep folder; configs name it by a target
(`reference.give`).
"""

import hashlib
import importlib
import inspect
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
from omegaconf import DictConfig

from flgo_hydra import app, reference
from flgo_hydra.record import files


def preload() -> None:
    """What the forkserver imports for jobs."""
    app.preload()


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
    """Writes the objects, by target, for `JobWithObjects`."""
    with files.replacing(file, is_durable=False) as opened:
        cloudpickle.dump(objects, opened)


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
    target = f"{reference.GIVEN}.{getattr(value, '__name__', type(value).__name__).strip('<>')}_{_version(value)}"
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


def _version(value: Callable[..., Any]) -> str:
    """A hash of the source: an edited class is another one, and the same script names it alike each time."""
    try:
        text = inspect.getsource(value)
    except (OSError, TypeError):
        text = uuid.uuid4().hex  # nobody can say whether it is the same
    return hashlib.sha256(text.encode()).hexdigest()[:8]
