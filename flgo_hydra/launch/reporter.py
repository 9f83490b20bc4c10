"""What a running job says to its launcher and hears from it; outside a worker both are no-ops.

The app calls `report("round", round=…, valid_loss=…, best=…, num_rounds=…)` at each evaluated round and asks
`stop_requested()` at each round boundary: true means "write a checkpoint and return". `prune_reason()`, asked there
too, means "other runs are better: end here for good" unless it is None. A job may run under our launcher, anybody
else's, or none: this module imports nothing of them, so the app can import it anywhere.
"""

from collections.abc import Callable
from typing import Any

_send: Callable[[dict[str, Any]], None] | None = None
_is_stopping: Callable[[], bool] | None = None
_prune_reason: Callable[[], str | None] | None = None


def report(kind: str, **values: Any) -> None:
    """Tells the launcher that `kind` happened, with JSON-able values. Never waits, never raises."""
    if _send is not None:
        _send({**values, "kind": kind})


def stop_requested() -> bool:
    """True when the launcher wants this job to end at this round boundary, its checkpoint written."""
    return _is_stopping is not None and _is_stopping()


def prune_reason() -> str | None:
    """Why this job shall end as pruned at this round boundary; None: it may go on."""
    return None if _prune_reason is None else _prune_reason()


def connect(
    send: Callable[[dict[str, Any]], None],
    is_stopping: Callable[[], bool],
    prune_reason: Callable[[], str | None] | None = None,
) -> None:
    """Makes this process a worker: reports go to `send`, the others answer what a job asks."""
    global _send, _is_stopping, _prune_reason
    _send, _is_stopping, _prune_reason = send, is_stopping, prune_reason
