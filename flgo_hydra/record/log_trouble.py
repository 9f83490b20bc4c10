"""A log that cannot be written is told in one line, once: the work goes on, and nobody needs a traceback a line."""

import contextlib
import logging
import sys
from collections.abc import Iterator

from flgo_hydra.machine_errors import refused_by_storage


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """While open, handlers whose file the storage refuses say so once each; what else goes wrong, logging tells."""
    told: set[int] = set()
    before = logging.Handler.handleError

    def handle(handler: logging.Handler, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if refused_by_storage(error) is None:
            return before(handler, record)
        if id(handler) not in told:
            told.add(id(handler))
            what = getattr(handler, "baseFilename", "a stream")
            with contextlib.suppress(OSError, ValueError):
                print(f"{what}: the log cannot be written ({error}), and lacks lines from here on.", file=sys.stderr)

    logging.Handler.handleError = handle  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        logging.Handler.handleError = before  # type: ignore[method-assign]
