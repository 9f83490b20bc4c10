"""Ctrl-C during a run, and what others send to end it: a batch system's SIGTERM, a closed terminal's SIGHUP."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
"""and what they do unless somebody else (a launcher, a notebook, nohup) has decided what they mean"""


@contextmanager
def ctrl_c_at_round_boundary() -> Iterator[threading.Event]:
    """Ctrl-C once sets the event, which ends the run at the next round boundary; twice ends it now. The others too."""
    is_interrupted = threading.Event()
    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number, default in _SIGNALS.items() if is_main and signal.getsignal(number) is default]
    if signal.SIGINT not in ours:
        yield is_interrupted
        return

    def interrupt(number: int, frame: object) -> None:
        if is_interrupted.is_set():
            raise KeyboardInterrupt
        is_interrupted.set()
        with contextlib.suppress(OSError):  # a closed terminal
            os.write(2, b"\nstopping after this round, with a checkpoint; Ctrl-C again stops now\n")

    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield is_interrupted
    finally:
        for number in ours:
            signal.signal(number, _SIGNALS[number])
