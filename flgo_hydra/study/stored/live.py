"""Curves of runs under way: each report goes to the study soon after it came, and to the pruner.

The loop that hears the workers must not wait for a storage: a journal takes 0.06 ms a report, SQLite 2 ms and more,
16 workers may send 1,600 a second. Reports are therefore kept as they come and written in slices, at most half of the
time. Nothing is lost by it: when a run ends, the study gets what is missing from its `rounds.jsonl`.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flgo_hydra.objective import Objective
from flgo_hydra.study.pruning import Pruning
from flgo_hydra.study.stored.behind import Behind
from flgo_hydra.study.stored.study import SweepStudy, stride

_SLICE_S = 0.05
_LEAST_PAUSE_S = 0.01


@dataclass
class _Run:
    """What a running trial has reported."""

    stride: int
    last_round: int = -1
    """the last one heard"""
    last_kept: int | None = None


class LiveCurves:
    """Takes reports in, writes them to the study, and says which runs to prune."""

    def __init__(
        self,
        study: SweepStudy,
        pruning: Pruning | None,
        clock: Callable[[], float] = time.monotonic,
        behind: Behind | None = None,
    ) -> None:
        self._study = study
        self._behind = behind or Behind("The study")
        self._pruning = pruning
        self._clock = clock
        self._runs: dict[int, _Run] = {}
        self._waiting: deque[tuple[int, int, float]] = deque()
        self._not_before = 0.0

    def hear(
        self,
        trial: int,
        values: Mapping[str, Any],
        read_earlier: Callable[[], Iterable[Mapping[str, float]]] = lambda: (),
    ) -> None:
        """Takes a worker's report in.

        Args:
            trial: its number.
            values: of the report; only evaluated rounds count.
            read_earlier: the rounds recorded before, for a run that goes on from the checkpoint of an earlier sweep.
        """
        monitor, metrics = Objective.from_json(values.get("monitor")), values.get("metrics")
        if values.get("kind") != "round" or not isinstance(metrics, Mapping):
            return
        round_num, value, num_rounds = values.get("round"), metrics.get(monitor.metric), values.get("num_rounds")
        if not isinstance(round_num, int) or not isinstance(value, int | float):
            return
        run = self._runs.get(trial)
        if run is None:
            run = self._runs[trial] = _Run(stride(num_rounds if isinstance(num_rounds, int) else 0))
            if round_num > 0:
                for line in read_earlier():
                    if line["round"] < round_num:
                        self._take(trial, run, int(line["round"]), monitor.of(line))
        self._take(trial, run, round_num, float(value))

    def write(self) -> list[int]:
        """Writes what has come, for a moment; returns the trials that shall be pruned now."""
        begin = self._clock()
        if not self._waiting or begin < self._not_before:
            return []
        pruned: list[int] = []
        is_written = False
        with self._behind.trying() if self._behind.may_try else contextlib.nullcontext():
            with self._study.together():
                while self._waiting and self._clock() - begin < _SLICE_S:
                    trial, round_num, value = self._waiting.popleft()
                    if trial not in self._runs:  # it has ended: its record is harvested
                        continue
                    if self._pruning is not None and self._pruning.report(trial, round_num, value):
                        pruned.append(trial)
                    if self._behind.may_try:
                        self._study.report(trial, round_num, value)
            is_written = True
        if not is_written:  # what is missing comes from the run's record when it ends
            self._study.forget_told()
        end = self._clock()
        self._not_before = end + max(end - begin, _LEAST_PAUSE_S)
        return pruned

    def wait_s(self) -> float | None:
        """Seconds until `write` has something to do; None: not before another report comes."""
        return max(0.0, self._not_before - self._clock()) if self._waiting else None

    def end(self, trial: int) -> None:
        """Forgets a trial whose run has ended. The pruner hears what it said last: other runs are compared with it."""
        if self._pruning is not None:
            for number, round_num, value in self._waiting:
                if number == trial:
                    self._pruning.report(number, round_num, value)
        self._runs.pop(trial, None)

    def _take(self, trial: int, run: _Run, round_num: int, value: float) -> None:
        if round_num <= run.last_round:  # a new attempt goes on from a checkpoint
            run.last_kept = None
        run.last_round = round_num
        if run.last_kept is None or round_num // run.stride != run.last_kept // run.stride:
            run.last_kept = round_num
            self._waiting.append((trial, round_num, value))
