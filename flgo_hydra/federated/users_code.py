"""Code of the user's that a run calls: data sources, models, algorithms, metrics."""

import sys
from types import TracebackType
from typing import Any

from flgo_hydra import own_code

_LIBRARIES = {"torch", "numpy", "flgo_hydra", *sys.stdlib_module_names} - {"__main__"}
_ENDS = (StopIteration, StopAsyncIteration, GeneratorExit, SystemExit)


def is_users(value: Any) -> bool:
    """Whether a class, a function or an object's class may be the user's own: it is no part of Python, torch, numpy or
    flgo_hydra."""
    return is_users_module(str(getattr(value, "__module__", "") or ""))


def is_users_module(name: str) -> bool:
    """The same of a module, by its name; one of the user's own may have the name of one of Python's."""
    top = name.partition(".")[0]
    if top not in _LIBRARIES:
        return True
    file = getattr(sys.modules.get(name), "__file__", None) if top in sys.stdlib_module_names else None
    return file is not None and not own_code.is_installed(file)


class no_silent_end:  # noqa: N801  # a function in all but its making: contextlib lets StopIteration through
    """Turns what Python takes for an orderly end into an error: raised by a user's code, the run has not come to one.

    `StopIteration` would end a generator, `sys.exit()` the process with status 0. A subclass of `SystemExit` is
    somebody else's, who ends the process on purpose (a signal's handler).
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, _ENDS) or (isinstance(error, SystemExit) and type(error) is not SystemExit):
            return
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise RuntimeError(
            f"code that the run calls (a source, model, algorithm or metric) has raised {what}"
        ) from error
