"""What a running job says to its launcher and hears from it; outside a worker both are no-ops.

The app calls `report("round", round=…, num_rounds=…, metrics={"valid_loss": …}, best=…)` at each evaluated round
(metrics in a mapping of their own: they may have any names) and asks `stop_requested()` at each round boundary: true
means "write a checkpoint and return". `prune_reason()`, asked there too, means "other runs are better: end here for
good" unless it is None. A job may run under our launcher, anybody else's, or none: this module imports nothing of them,
so the app can import it anywhere.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

THREADS = "FLGO_HYDRA_THREADS"
"""Environment variable of a job: `hydra.launcher.threads`, where it was set. For an app whose numbers must not depend
on how many threads there happen to be."""


WHY_APART = "FLGO_HYDRA_WHY_APART"
"""The same: why the job runs alone, where it was to run as one program with others."""


class Reporter:
    """A job's line to its launcher; without one it says nothing and is never asked to end."""

    def __init__(
        self,
        send: Callable[[dict[str, Any]], None] | None = None,
        is_stopping: Callable[[], bool] | None = None,
        prune_reason: Callable[[], str | None] | None = None,
    ) -> None:
        self._send = send
        self._is_stopping = is_stopping
        self._prune_reason = prune_reason

    def report(self, kind: str, **values: Any) -> None:
        """Tells the launcher that `kind` happened, with JSON-able values. Never waits, never raises."""
        if self._send is not None:
            self._send({**values, "kind": kind})

    def stop_requested(self) -> bool:
        """True when the launcher wants this job to end at this round boundary, its checkpoint written."""
        return self._is_stopping is not None and self._is_stopping()

    def prune_reason(self) -> str | None:
        """Why this job shall end as pruned at this round boundary; None: it may go on."""
        return None if self._prune_reason is None else self._prune_reason()


class GroupJob(Protocol):
    """One of the jobs that an app's `job_group` runs as one program (`launch/processes/fused.py`)."""

    @property
    def cfg(self) -> Any:
        """Its composed config, without Hydra's node."""

    @property
    def folder(self) -> Path:
        """Its run folder."""

    @property
    def reporter(self) -> Reporter:
        """Its line to the launcher."""

    def current(self) -> AbstractContextManager[None]:
        """While open, `HydraConfig` is this job's, and what is logged goes where its own config says."""

    def finish(self, value: Any) -> None:
        """Ends the job with the value that its task function would have returned."""

    def fail(self, error: BaseException) -> None:
        """Ends the job with the error that its task function would have raised."""


class RunApart(Exception):
    """What `job_group` raises when the jobs that have not ended should run one by one; the text says why."""


_current = Reporter()


def current() -> Reporter:
    """The line of the job that runs in this process."""
    return _current


def report(kind: str, **values: Any) -> None:
    """See `Reporter.report`."""
    _current.report(kind, **values)


def stop_requested() -> bool:
    """See `Reporter.stop_requested`."""
    return _current.stop_requested()


def prune_reason() -> str | None:
    """See `Reporter.prune_reason`."""
    return _current.prune_reason()


def connect(reporter: Reporter) -> None:
    """Makes this process a worker with this line to its launcher."""
    global _current
    _current = reporter
