"""Imports what a `_target_` names, and calls it with what it takes.

An object that no import leads to (a class of the calling script, of a notebook's cell) is given a name with `give`;
`api/shipped.py` gives it the same name in the workers.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


def import_folder(folder: str) -> None:
    """Lets modules in `folder` be imported, as `python -m` does for the current folder."""
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)


GIVEN = "given_in_python"
"""the package that objects without a module of their own seem to be in"""
_given: dict[str, Callable[..., Any]] = {}


def give(target: str, value: Callable[..., Any]) -> None:
    """Lets `target`, which begins with `GIVEN`, name an object in this process."""
    _given[target] = value


def load(target: str, key: str) -> Callable[..., Any]:
    """Returns the function or class that `target` (`package.module.name`) names.

    Args:
        key: the config key that holds it, for the error.
    Raises:
        ValueError: no such module or name, or it cannot be called.
    """
    if target in _given:
        return _given[target]
    module_name, _, name = target.rpartition(".")
    if module_name == GIVEN:
        raise ValueError(
            f"`{key}={target}` was given as an object by a Python program. Run that program again, with "
            "`folder=` where it should go on with an earlier sweep."
        )
    if not module_name or target.startswith("."):
        raise ValueError(f"`{key}` must read package.module.name, but got {target!r}.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # the module is there; what it imports is not
        raise ValueError(
            f"`{key}={target}`: there is no module {error.name!r} in {os.getcwd()} or among the installed packages."
        ) from error
    if not hasattr(module, name):
        raise ValueError(f"`{key}={target}`: the module {module_name!r} has no {name!r}.")
    found = getattr(module, name)
    if not callable(found):
        raise ValueError(f"`{key}={target}` must be a function or a class, but it is {type(found).__name__}.")
    return found  # type: ignore[no-any-return]


def described(setting: Any) -> str:
    """A part that is a name or has a `_target_`, in one line, the same for the same one: `median(n_warmup_steps=5)`."""
    given: dict[str, Any] = {"name": setting} if isinstance(setting, str) else dict(setting)
    name = given.pop("name", None) or given.pop("_target_", None)
    arguments = ", ".join(f"{key}={given[key]!r}" for key in sorted(given) if key != "_target_")
    return f"{name}({arguments})" if arguments else str(name)


def call(
    function: Callable[..., Any],
    given: Mapping[str, Any],
    offered: Mapping[str, Any],
    key: str,
    by_name: Mapping[str, Any] | None = None,
) -> Any:
    """Calls `function(**given)`, adding what is `offered` where its signature takes it.

    Args:
        by_name: offered too, but only where the signature names it: `**kwargs` does not get it.
    Raises:
        ValueError: `given` holds an argument that the function does not take, or one that it needs is missing.
    """
    parameters = inspect.signature(function).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    arguments = {name: value for name, value in offered.items() if takes_all or name in parameters}
    arguments |= {name: value for name, value in (by_name or {}).items() if name in parameters} | dict(given)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        name = getattr(function, "__name__", str(function))
        raise ValueError(f"`{key}`: {name}{inspect.signature(function)} cannot be called: {error}.") from error
    return function(**arguments)
