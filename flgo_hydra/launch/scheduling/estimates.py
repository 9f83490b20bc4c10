"""What jobs needed before: peak memory and duration by signature, remembered across sweeps on this machine.

The figures live in one JSON file in the user's cache folder, below a key of the machine (`machine_key`), since another
torch, driver or device needs other memory. Sweeps that run at once share the file: each writes under a lock what it
has seen itself since its last write, on top of what the others wrote, to a temporary name that is then renamed. A lost
file costs a few probes and nothing else, so trouble with it never ends a sweep, nor keeps one waiting: a file that
cannot be read is set aside, a figure that is none is left out, and a lock that another process does not give back
within two seconds leaves the figures untold until the next time.

The estimate of a peak is the largest of the last few, that of a duration their median: a single odd job is forgotten
in time.
"""

import contextlib
import json
import logging
import math
import os
import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

from flgo_hydra.record.files import write_text
from flgo_hydra.record.lock import Held, holding
from flgo_hydra.record.paths import cache_folder
from flgo_hydra.record.schema import read_bytes

log = logging.getLogger(__name__)

# Figures kept of a signature, and signatures kept of a machine; the longest unused go first.
NUM_KEPT = 8
NUM_SIGNATURES = 2000
# A file above this size is not one of ours.
_MOST_BYTES = 64 * 2**20
_WAIT_S = 2.0
MEMORY, DURATION = "memory_mib", "duration_s"

Figures = dict[str, dict[str, list[float]]]


def default_path() -> Path | None:
    """Returns the file in the user's cache folder; None where there is none."""
    folder = cache_folder()
    return None if folder is None else folder / "estimates.json"


def machine_key(device_name: str, driver: str | None = None) -> str:
    """Returns what memory figures depend on besides the job: torch, driver, device. Does not import torch."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "none"
    return f"torch {torch} / driver {driver or 'none'} / {device_name}"


class Estimates:
    """Expected peaks and durations. Memory and duration may be kept under different signatures."""

    def __init__(
        self,
        machine: str,
        path: Path | None = None,
        lock: Callable[[Path, float], AbstractContextManager[None]] = holding,
    ) -> None:
        """Args:
        machine: a `machine_key`.
        path: the file, which need not exist; None: nothing is remembered.
        lock: holds a lock file, waiting for it so many seconds.
        """
        self.machine = machine
        self._lock = lock
        self.path = path
        self._figures = _read(path).get(machine, {})
        self._unsaved: Figures = {}

    def memory_mib(self, signature: str, most_mib: int | None = None) -> int | None:
        """Returns the expected peak, without a margin; None where no job of this signature has reported one.

        Args:
            most_mib: what a device has. A figure above it, of another limit or a damaged file, counts only where there
                is no other.
        """
        peaks = self._figures.get(MEMORY, {}).get(signature, [])
        fitting = [peak for peak in peaks if most_mib is None or peak <= most_mib]
        return int(max(fitting or peaks)) if peaks else None

    def duration_s(self, signature: str) -> float | None:
        """Returns the expected duration in seconds; None where no job of this signature has ended."""
        durations = self._figures.get(DURATION, {}).get(signature)
        return statistics.median(durations) if durations else None

    def learn_memory(self, signature: str, peak_mib: int) -> None:
        """Takes note of a job's peak, at the end of its first round and at its own end."""
        self._learn(MEMORY, signature, peak_mib)

    def learn_duration(self, signature: str, duration_s: float) -> None:
        """Takes note of the seconds a job took from its start to its end."""
        self._learn(DURATION, signature, duration_s)

    def save(self) -> None:
        """Writes what has been learned since the last time. `learn_*` writes a signature's first figure by itself."""
        if self.path is None or not self._unsaved:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock(self.path.with_suffix(".lock"), _WAIT_S):
                machines = _read(self.path)
                figures = machines.setdefault(self.machine, {})
                for kind, of_kind in self._unsaved.items():
                    for signature, values in of_kind.items():
                        for value in values:
                            _add(figures, kind, signature, value)
                write_text(self.path, json.dumps(machines, indent=1, allow_nan=False))
        except Held as held:
            log.warning("What jobs need is not remembered for now: %s.", held)
            return
        except OSError as error:
            log.debug("Estimates are not remembered: %s", error)
        else:
            self._figures = figures
        self._unsaved = {}

    def _learn(self, kind: str, signature: str, value: float) -> None:
        if not _is_figure(value):
            return
        is_first = signature not in self._figures.get(kind, {})
        _add(self._figures, kind, signature, value)
        _add(self._unsaved, kind, signature, value)
        if is_first:
            self.save()


def _add(figures: Figures, kind: str, signature: str, value: float) -> None:
    of_kind = figures.setdefault(kind, {})
    of_kind[signature] = [*of_kind.pop(signature, []), value][-NUM_KEPT:]
    while len(of_kind) > NUM_SIGNATURES:
        of_kind.pop(next(iter(of_kind)))


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _read(path: Path | None) -> dict[str, Figures]:
    """Returns the file's content by machine; a file that is none of ours gets another name, and counts as missing."""
    if path is None:
        return {}
    try:
        content = read_bytes(path, _MOST_BYTES)
        machines = {} if content is None else json.loads(content)
        return {
            machine: {
                kind: {
                    signature: [float(value) for value in values if _is_figure(value)][-NUM_KEPT:]
                    for signature, values in of.items()
                }
                for kind, of in figures.items()
            }
            for machine, figures in machines.items()
        }
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        aside = path.with_suffix(".broken")
        log.warning("%s cannot be read (%s), and lies in %s now: what jobs need is learned anew.", path, error, aside)
        with contextlib.suppress(OSError):
            os.replace(path, aside)
        return {}
