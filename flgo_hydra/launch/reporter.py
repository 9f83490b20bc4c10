"""What a running job says to its launcher and hears from it; outside a worker both are no-ops.

The app calls `report("round", round=…, valid_loss=…, best=…, num_rounds=…)` at each evaluated round and asks
`stop_requested()` at each round boundary: true means "write a checkpoint and return". A job may run under our
launcher, anybody else's, or none: this module imports nothing of them, so the app can import it anywhere.
"""

from collections.abc import Callable
from typing import Any

_send: Callable[[dict[str, Any]], None] | None = None
_is_stopping: Callable[[], bool] | None = None


def report(kind: str, **values: Any) -> None:
    """Tells the launcher that `kind` happened, with JSON-able values. Never raises."""
    if _send is not None:
        _send({**values, "kind": kind})


def stop_requested() -> bool:
    """True when the launcher wants this job to end at this round boundary, its checkpoint written."""
    return _is_stopping is not None and _is_stopping()


def connect(send: Callable[[dict[str, Any]], None], is_stopping: Callable[[], bool]) -> None:
    """Makes this process a worker: reports go to `send`, and `is_stopping` answers `stop_requested`."""
    global _send, _is_stopping
    _send, _is_stopping = send, is_stopping
