"""Ctrl-C during a run."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ctrl_c_at_round_boundary() -> Iterator[threading.Event]:
    """Ctrl-C once sets the event, which ends the run at the next round boundary; twice ends it now."""
    is_interrupted = threading.Event()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield is_interrupted  # somebody else (a launcher, a notebook) decides what Ctrl-C means
        return

    def interrupt(number: int, frame: object) -> None:
        if is_interrupted.is_set():
            raise KeyboardInterrupt
        is_interrupted.set()
        os.write(2, b"\nstopping after this round, with a checkpoint; Ctrl-C again stops now\n")

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield is_interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
