"""One call of the Python API at a time in a process.

A run has the process to itself: the random generators, torch's threads, Hydra's singletons and the log are the whole
process's. Calls from several threads therefore come one after another, and give the numbers that they give alone. A
call from within a run (a user's own metrics that call `run`) would wait for itself, and is refused.
"""

import functools
import logging
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_log = logging.getLogger("flgo_hydra")
_lock = threading.Lock()
_holder: int | None = None
"""the thread whose call is under way"""


def one_at_a_time(call: Callable[P, R]) -> Callable[P, R]:
    """Lets the call wait for the one that another thread of this process has under way.

    Raises:
        ValueError: this thread itself is within one.
    """

    @functools.wraps(call)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        global _holder
        if _holder == threading.get_ident():
            raise ValueError(
                "`run`, `sweep`, `init`, `tune` and `multi_init_and_run` cannot be called from within a run of this "
                "process (its metrics, model, algorithm or data): both would share generators and Hydra's state. Call "
                "them after it, or start a process of their own."
            )
        lock = _lock
        if not lock.acquire(blocking=False):
            _log.info("another call of flgo_hydra is under way in this process: this one begins after it")
            lock.acquire()
        _holder = threading.get_ident()
        try:
            return call(*args, **kwargs)
        finally:
            _holder = None
            lock.release()

    return alone


def _forget() -> None:
    """A forked process has none of its parent's calls, and would wait for them for ever."""
    global _lock, _holder
    _lock, _holder = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)
