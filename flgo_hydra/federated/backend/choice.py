"""Which backend trains a run's cohorts.

`auto` measures: before the first round it takes a few steps of each kind that the first cohort needs, one client at a
time and side by side, and keeps what would take the round less time. Which one that is depends on the device, the
model, the cohort and the threads: on a CPU, clients side by side win for dense models, whose first layer they may keep
in its dual form, and lose for convolutions. Short runs are not worth a measurement and take the loop. The choice is
noted in result.json and kept in the checkpoint: a run that goes on gives the numbers it would have given. So is
whether the loop's recorded steps pay, which it measures itself.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from flgo_hydra.config import EngineConf
from flgo_hydra.federated.algorithm.base import Hyper
from flgo_hydra.federated.backend.batched import VmapBackend, count_lanes
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.data import Data
from flgo_hydra.federated.training import LocalStep, LocalWork, ServerState

_SHORT = 3000
"""Local steps of a run, all clients together, below which measuring costs more than it can save."""
_MARGIN = 0.9
"""The loop is left for what takes at most this share of its time: a choice between equals should not be a matter of
chance."""
_CPU_BUDGET = 64 * 2**20
_GPU_SHARE = 1 / 8
_measured: dict[Any, dict[str, float]] = {}
"""Seconds a round by backend, of what this process has measured before."""


def build_backend(
    engine: EngineConf,
    model: nn.Module,
    data: Data,
    step: LocalStep,
    work: LocalWork,
    cohort_size: int,
    visits: float,
) -> "ChosenBackend":
    """Args:
    cohort_size: clients in a round, at most.
    visits: rounds of the run in which a client is expected to take part.
    """
    compiles, dual, graphs = (switch == "auto" for switch in (engine.compile, engine.dual, engine.graph))
    loop = LoopBackend(model, data, step, work, compiles, visits, graphs)
    lanes = count_lanes(cohort_size, _bytes_per_lane(loop, step, data, work), _budget(data.x_train.device))

    def vmap() -> VmapBackend:
        return VmapBackend(model, data, step, work, lanes, compiles, visits, loop, dual, graphs)

    chosen = ChosenBackend(loop, vmap)
    steps = sum(work.size(n)[1] for n in np.diff(data.offsets).tolist()) * visits
    if engine.backend != "auto":
        chosen.choose(engine.backend, "engine.backend")
    elif steps < _SHORT:
        chosen.choose("loop", "too short to measure")
    return chosen


class ChosenBackend:
    """The backend that was asked for, or the one that its first cohort finds faster."""

    def __init__(self, loop: LoopBackend, make_vmap: Callable[[], VmapBackend]) -> None:
        self.loop = loop
        self._make_vmap = make_vmap
        self._backend: LoopBackend | VmapBackend | None = None
        self._seconds: dict[str, float] = {}
        self._why = ""

    @property
    def choice(self) -> str | None:
        """The backend's name, or None before the first cohort."""
        return self._backend.name if self._backend is not None else None

    @property
    def findings(self) -> dict[str, Any]:
        """What was measured, for the checkpoint."""
        return {"backend": self.choice, "is_recorded": self.loop.is_recorded}

    def go_on(self, findings: Mapping[str, Any]) -> None:
        """Goes on with what the process before found out; a backend that was asked for stays."""
        if findings["backend"] is not None:
            self.choose(findings["backend"], "checkpoint")
        self.loop.decide(findings["is_recorded"])

    def choose(self, name: str, why: str) -> None:
        """Decides, unless it has been decided."""
        if self._backend is None:
            self._backend = self.loop if name == "loop" else self._make_vmap()
            self._why = why

    @property
    def note(self) -> dict[str, Any]:
        """What ran and why, for result.json."""
        if self._backend is None:
            return {"backend": None}
        measured = {f"{name}_round_s": round(value, 6) for name, value in self._seconds.items()}
        return {**self._backend.note, "chosen_by": self._why, **measured}

    def load(self, server: ServerState) -> nn.Module:
        return self.loop.load(server)

    def train(
        self, server: ServerState, clients: ClientStates, cohort: Cohort, hyper: Hyper, round_num: int
    ) -> ServerState:
        backend = self._backend or self._measure(server, cohort, hyper, round_num)
        return backend.train(server, clients, cohort, hyper, round_num)

    def _measure(self, server: ServerState, cohort: Cohort, hyper: Hyper, round_num: int) -> LoopBackend | VmapBackend:
        vmap = self._make_vmap()
        key = (*vmap.signature(cohort), torch.get_num_threads())
        if key not in _measured:
            estimate = vmap.estimate(server, cohort, hyper, round_num)
            if estimate is None:
                self._backend, self._why = self.loop, f"vmap cannot: {vmap.why_not}"
                return self.loop
            _measured[key] = {"loop": self.loop.estimate(server, cohort, hyper, round_num), "vmap": estimate}
        self._seconds = _measured[key]
        is_faster = self._seconds["vmap"] < _MARGIN * self._seconds["loop"]
        self._backend, self._why = vmap if is_faster else self.loop, "measurement"
        return self._backend


def _bytes_per_lane(loop: LoopBackend, step: LocalStep, data: Data, work: LocalWork) -> int:
    """Memory of one more client at once: its model, gradient, slots and state, and a guess at its activations."""
    params = sum(p.numel() * p.element_size() for p in loop.params.values())
    kept = step.algorithm.init_client(loop.params)
    copies = 2 + step.optimizer.num_slots
    state = sum(t.numel() * t.element_size() for tensors in kept.values() for t in tensors.values())
    widest = max(work.size(n)[0] for n in set(np.diff(data.offsets).tolist()))
    sample = data.x_train[0].numel() * data.x_train.element_size()
    return copies * params + state + 16 * widest * sample


def _budget(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * _GPU_SHARE)
    return _CPU_BUDGET
