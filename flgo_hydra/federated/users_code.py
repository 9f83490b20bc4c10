"""Code of the user's that a run calls: data sources, models, algorithms, metrics."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_silent_end() -> Iterator[None]:
    """Turns what Python takes for an orderly end into an error: raised by a user's code, the run has not come to one.

    `StopIteration` would end a generator, `sys.exit()` the process with status 0. A subclass of `SystemExit` is
    somebody else's, who ends the process on purpose (a signal's handler).
    """
    try:
        yield
    except (StopIteration, StopAsyncIteration, GeneratorExit, SystemExit) as error:
        if isinstance(error, SystemExit) and type(error) is not SystemExit:
            raise
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise RuntimeError(
            f"code that the run calls (a source, model, algorithm or metric) has raised {what}"
        ) from error
