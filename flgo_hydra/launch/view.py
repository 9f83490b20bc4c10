"""What a person sees of a sweep: on a terminal a live table, elsewhere a line an event.

The table never mixes with log lines: while it is shown, whatever prints or logs to the terminal is written above it.
On a terminal only what asks for attention (retries, failures) becomes a line; the rest is in the table.
"""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from flgo_hydra.launch.failures import Failure
from flgo_hydra.launch.queue import Event, Queue, Running
from flgo_hydra.launch.scheduling.scheduler import CPU, Device
from flgo_hydra.objective import VALID_LOSS, Objective
from flgo_hydra.progress import duration
from flgo_hydra.record.plain_text import printable

if TYPE_CHECKING:  # rich is imported when a table is shown
    from rich.console import Console, RenderableType

log = logging.getLogger(__name__)

_BAR_CELLS = 30
_REFRESH_S = 0.1
_NAME_CELLS = 48


@dataclass
class Tally:
    """What has become of the jobs so far."""

    # jobs that will be submitted; None: unknown
    num_jobs: int | None = None
    num_done: int = 0
    num_failed: int = 0
    # cancelled, or stopped with the sweep
    num_stopped: int = 0
    num_retried: int = 0
    # of all jobs that are done
    seconds: float = 0.0
    # the best `best` of any job, of which metric it is, and what people call the job
    best: float | None = None
    monitor: Objective = VALID_LOSS
    best_job: str = ""

    @property
    def num_ended(self) -> int:
        return self.num_done + self.num_failed + self.num_stopped

    def count(self, event: Event) -> None:
        """Takes note of an event."""
        if event.kind == "retry":
            self.num_retried += 1
        elif event.kind == "report":
            best, monitor = event.values.get("best"), Objective.from_json(event.values.get("monitor"))
            if isinstance(best, int | float) and monitor.is_better(best, math.nan if self.best is None else self.best):
                self.best, self.monitor = best, monitor
                self.best_job = f"#{event.job.num} {_shorten(event.job.name, _NAME_CELLS)}"
        elif event.kind == "ended":
            self.num_done += event.job.state == "done"
            self.num_failed += event.job.state == "failed"
            self.num_stopped += event.job.state in ("cancelled", "stopped")
            if event.job.state == "done":
                self.seconds += sum(attempt.seconds for attempt in event.job.attempts)


def time_left_s(mean_s: float | None, running_s: Sequence[float], num_waiting: int, num_at_once: int) -> float | None:
    """Returns how long the sweep may still take; None while no job is done.

    Args:
        mean_s: what the jobs that are done took; the others are expected to take as long.
        running_s: seconds for which the running jobs have run.
        num_waiting: jobs that have not started.
        num_at_once: jobs that run side by side from now on.
    """
    if mean_s is None:
        return None
    left = [max(0.0, mean_s - passed) for passed in running_s]
    # Work shared evenly, but never less than the longest that runs.
    return max([*left, (sum(left) + num_waiting * mean_s) / max(1, num_at_once)])


class View:
    """Shows nothing; what the others share."""

    wants_ticks = False

    def __init__(self, queue: Queue, num_jobs: int | None) -> None:
        self._queue = queue
        self.tally = Tally(num_jobs)

    def show(self, event: Event | None) -> None:
        """Takes note of an event (None: time has passed)."""
        if event is not None:
            self.tally.count(event)

    def tell_stopping(self, is_now: bool) -> None:
        """Answers Ctrl-C."""

    def close(self) -> None:
        """Says what it has come to."""


class Lines(View):
    """A line an event."""

    def show(self, event: Event | None) -> None:
        super().show(event)
        if event is not None:
            text, level = describe(event, self.tally)
            text = printable(text)
            if text:
                log.log(level, "%s", text)

    def tell_stopping(self, is_now: bool) -> None:
        num = len(self._queue.running)
        if is_now:
            log.warning("Stopping %d jobs now", num)
        elif num:
            log.warning(
                "Stopping %d jobs at their next round boundary, with a checkpoint; Ctrl-C again stops them now", num
            )

    def close(self) -> None:
        tally = self.tally
        parts = [
            f"{number} {word}"
            for number, word in (
                (tally.num_done, "done"),
                (tally.num_failed, "failed"),
                (tally.num_stopped, "stopped"),
                (tally.num_retried, "retries"),
            )
            if number or word == "done"
        ]
        log.info("%d jobs: %s", tally.num_ended, ", ".join(parts))


def describe(event: Event, tally: Tally) -> tuple[str, int]:
    """Returns an event as a line, and its logging level; an empty line says nothing."""
    job, values = event.job, event.values
    who = f"#{job.num}" + (f" {job.name}" if job.name else "")
    if event.kind == "started":
        again = f", attempt {values['attempt']}" if job.attempts else ""
        return f"{who}: started on {short_device(values['device'])}{again}", logging.INFO
    if event.kind == "retry":
        failure: Failure = values["failure"]
        how = [f"in {values['after_s']:.3g} s"] if values["after_s"] else []
        how += [f"with {values['memory_mib']} MiB"] if values["memory_mib"] else []
        how += ["alone on its device"] if values["alone"] else []
        where = f" (log: {values['log']})" if values["log"] else ""
        return f"{who}: {' '.join([f'{_message(failure)}; again', *how])}{where}", logging.WARNING
    if event.kind == "stuck":
        return f"{who}: waits, though nothing runs: no device has room for it now", logging.WARNING
    if event.kind != "ended":
        return "", logging.DEBUG
    of = f" ({tally.num_ended} of {tally.num_jobs})" if tally.num_jobs is not None else ""
    if job.state == "done":
        best = job.progress.get("best")
        loss = f", best {best:.6g}" if isinstance(best, int | float) else ""
        word = f"pruned after round {job.progress.get('round', '?')}" if job.is_pruned else "done"
        return f"{who}: {word} in {duration(sum(a.seconds for a in job.attempts))}{loss}{of}", logging.INFO
    why = _message(job.failure) if job.failure is not None else ""
    logs = f" (log: {job.attempts[-1].log})" if job.attempts and job.attempts[-1].log else ""
    level = logging.ERROR if job.state == "failed" else logging.INFO
    return f"{who}: {job.state}: {why}{logs}{of}", level


def _message(failure: Failure) -> str:
    lines = failure.message.strip().splitlines() or [failure.kind]
    return lines[0] if len(lines[0]) <= 200 else lines[0][:199] + "…"


def short_device(device_id: str) -> str:
    """`GPU-1a2b3c4d` for a UUID."""
    return device_id if device_id == CPU else device_id[:12]


class Table(Lines):
    """A table at the bottom of the terminal, log lines above it."""

    wants_ticks = True

    def __init__(
        self,
        queue: Queue,
        num_jobs: int | None,
        console: "Console | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(queue, num_jobs)
        self._clock = clock
        self._console = console or Console()
        self._paces: dict[int, tuple[int, float]] = {}  # by token: an attempt's first round and its time
        self._drawn_s = float("-inf")
        before = sys.stdout, sys.stderr
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        self._diverted = _divert_logging(before, sys.stdout)

    def show(self, event: Event | None) -> None:
        if event is None:
            pass
        elif event.kind in ("started", "report") or event.job.state == "done":
            View.show(self, event)
        else:
            Lines.show(self, event)
        now = self._clock()
        if event is None or now >= self._drawn_s + _REFRESH_S:
            self._drawn_s = now
            self._live.update(self.render(), refresh=True)

    def close(self) -> None:
        self._live.stop()
        for handler, stream in self._diverted:
            handler.setStream(stream)
        Lines.close(self)

    def render(self) -> "RenderableType":
        """Returns devices, running jobs and counts as they are now."""
        from rich.console import Group

        return Group(self._render_devices(), self._render_running(), self._render_counts())

    def _render_devices(self) -> "RenderableType":
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid.grid(padding=(0, 2))
        running = self._queue.running_jobs()
        for device in self._queue.devices:
            here = [job for job in running if job.device == device.id]
            ours = sum(job.memory_mib or 0 for job in here)
            num_ours, num_others = bar_cells(device, ours, _BAR_CELLS)
            bar = Text("█" * num_ours, "green") + Text("▒" * num_others, "yellow")
            bar += Text("·" * (_BAR_CELLS - num_ours - num_others), "dim")
            grid.add_row(short_device(device.id), bar, _memory_text(device, ours), f"{len(here)} jobs")
        return grid

    def _render_running(self) -> "RenderableType":
        from rich.box import SIMPLE
        from rich.table import Table as Grid

        table = Grid(box=SIMPLE, pad_edge=False)
        for title in ("job", "", "device", "round", "loss", "best", "time", "left"):
            table.add_column(title, justify="left" if title in ("", "device") else "right", no_wrap=True)
        running = list(self._queue.running.values())
        self._paces = {item.token: self._paces[item.token] for item in running if item.token in self._paces}
        num_shown = max(1, self._console.height - len(self._queue.devices) - 8)
        for item in running[:num_shown]:
            table.add_row(*self._row(item))
        if len(running) > num_shown:
            table.add_row("", f"… and {len(running) - num_shown} more")
        return table

    def _row(self, running: Running) -> list[str]:
        now = self._clock()
        progress = running.job.progress
        number, total = progress.get("round"), progress.get("num_rounds")
        rounds = "" if number is None else f"{number}/{total}" if total is not None else str(number)
        again = f" (attempt {len(running.job.attempts) + 1})" if running.job.attempts else ""
        left = self._left_s(running, now)
        return [
            f"#{running.job.num}",
            _shorten(running.job.name, _NAME_CELLS) + again,
            short_device(running.placement.device),
            rounds,
            _number(_metrics(progress).get("valid_loss")),
            _number(progress.get("best")),
            duration(now - running.started_s),
            "" if left is None else duration(left),
        ]

    def _left_s(self, running: Running, now: float) -> float | None:
        number, total = running.job.progress.get("round"), running.job.progress.get("num_rounds")
        if not isinstance(number, int) or not isinstance(total, int):
            return None
        first, since = self._paces.setdefault(running.token, (number, now))
        return (now - since) / (number - first) * (total - number) if number > first else None

    def _render_counts(self) -> "RenderableType":
        from rich.text import Text

        tally, queue = self.tally, self._queue
        now = self._clock()
        num_running = len(queue.running)
        num_queued = len(queue.waiting)
        if tally.num_jobs is not None:
            num_queued = max(num_queued, tally.num_jobs - tally.num_ended - num_running)
        parts = [f"{num_queued} queued", f"{num_running} running", f"{tally.num_done} done"]
        parts += [f"{tally.num_retried} retried"] if tally.num_retried else []
        parts += [f"{tally.num_failed} failed"] if tally.num_failed else []
        if tally.best is not None:
            what = "best" if tally.monitor == VALID_LOSS else tally.monitor.label
            parts.append(f"{what} {tally.best:.6g} ({tally.best_job})")
        passed = [now - running.started_s for running in queue.running.values()]
        mean_s = tally.seconds / tally.num_done if tally.num_done else None
        left = time_left_s(mean_s, passed, num_queued, num_running)
        parts += [f"{duration(left)} left"] if left is not None else []
        if queue.stop_level:
            parts.append("stopping")
        return Text("  ".join(parts), "bold")


def bar_cells(device: Device, ours_mib: int, num_cells: int) -> tuple[int, int]:
    """Returns how many cells of a device's memory bar are ours and others'; 0 where its memory is unknown."""
    if not device.total_mib:
        return 0, 0
    others = device.foreign_mib
    if others is None:
        others = max(0, device.total_mib - device.free_mib - ours_mib) if device.free_mib is not None else 0
    num_ours = min(num_cells, round(num_cells * ours_mib / device.total_mib))
    return num_ours, min(num_cells - num_ours, round(num_cells * others / device.total_mib))


def _memory_text(device: Device, ours_mib: int) -> str:
    total = "?" if device.total_mib is None else f"{device.total_mib / 1024:.1f}"
    return f"{ours_mib / 1024:.1f} of {total} GiB"


def _metrics(progress: Mapping[str, Any]) -> Mapping[str, Any]:
    metrics = progress.get("metrics")
    return metrics if isinstance(metrics, Mapping) else {}


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _shorten(text: str, num_cells: int) -> str:
    return text if len(text) <= num_cells else text[: num_cells - 1] + "…"


def _divert_logging(terminal: tuple[TextIO, TextIO], above: TextIO) -> list[tuple["logging.StreamHandler[Any]", Any]]:
    """Has handlers that write to the terminal write above the table; returns them with what they wrote to."""
    loggers = [logging.root, *(item for item in logging.root.manager.loggerDict.values() if hasattr(item, "handlers"))]
    diverted = []
    for logger in loggers:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                with contextlib.suppress(Exception):  # a library's own kind may not let its stream be set
                    if (before := handler.stream) in terminal:
                        handler.setStream(above)
                        diverted.append((handler, before))
    return diverted


@contextlib.contextmanager
def open_view(kind: str, queue: Queue, num_jobs: int | None) -> Iterator[View]:
    """Opens the view that `hydra.launcher.view` names; `auto` is a table on a terminal, lines elsewhere."""
    view = _make_view(kind, queue, num_jobs)
    try:
        yield view
    finally:
        view.close()


def _make_view(kind: str, queue: Queue, num_jobs: int | None) -> View:
    if kind == "none":
        return View(queue, num_jobs)
    if kind == "table" or (kind == "auto" and sys.stdout.isatty()):
        return Table(queue, num_jobs)
    return Lines(queue, num_jobs)
