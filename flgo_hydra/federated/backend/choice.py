"""Which backend trains a run's cohorts: `engine.backend`, or under `auto` the one that a cost model finds cheaper.

The choice decides how numbers are rounded, so it follows from the config and the task alone: from the model's shapes,
the number of samples, clients, rounds and local steps, and the kind of device (`cost.py`, `expected.py`). No clock is
read, no cohort drawn; neither load, cores, threads nor slots, nor what else a sweep has in it, change it. Runs that
differ in values (learning rate, momentum, an algorithm's numbers) or in seeds have one choice, those of other
algorithms or optimizers too, but for what only plain SGD can have (the dual form). `task.seed` draws the clients' sizes
anew, and the choice does not look at them one by one: see `expected.py` for what it sees, and where that ends.

Where the cheaper one cannot train a model, the loop does, and result.json says why. A checkpoint keeps what began a
run: one that would go on in another way begins anew instead of mixing two.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from flgo_hydra.config.option import EngineConf
from flgo_hydra.federated.algorithm.base import Hyper
from flgo_hydra.federated.backend.cost import (
    SECONDS,
    Amounts,
    Workload,
    faster,
    loop_amounts,
    loop_setup,
    seconds_of,
    vmap_amounts,
    vmap_setup,
)
from flgo_hydra.federated.backend.expected import expected_sizes
from flgo_hydra.federated.backend.extent import extent_of_sizes
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.profile import take_profile
from flgo_hydra.federated.backend.recorded_steps import paying_sizes
from flgo_hydra.federated.backend.vmap import VmapBackend, count_lanes
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.optimizer import is_zero
from flgo_hydra.federated.training import LocalStep, LocalWork, ServerState, states_of_copy

_BUDGET = {"cpu": 2**26, "cuda": 2**31, "mps": 2**30}
"""Bytes of the clients that are trained at once, by kind of device: how many they are must not depend on how large
this one is."""
_COPIES = 4
"""of a model that a lane holds: the model, its gradient, and two slots, whether or not the optimizer has them"""


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
    loop = LoopBackend(model, data, step, work, engine, visits)
    every = expected_sizes(np.diff(data.offsets), len(data.offsets) - 1)
    widest = max(work.size(n)[0] for n in every)
    lanes = count_lanes(cohort_size, _bytes_per_lane(loop, step, data, widest), _BUDGET[data.x_train.device.type])

    def vmap() -> VmapBackend:
        return VmapBackend(model, data, step, work, lanes, engine, visits, loop)

    chosen = ChosenBackend(loop, vmap, form_of(engine, data.x_train.device))
    if engine.backend != "auto":
        chosen.choose(engine.backend, "engine.backend")
        return chosen
    try:
        profile = take_profile(model, data)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model may do whatever Python can; training it will tell
        first_line = str(error).strip().partition("\n")[0]
        chosen.choose("loop", f"the model's step cannot be looked at: {type(error).__name__}: {first_line}")
        return chosen
    if profile.is_random:
        chosen.choose("loop", "the model draws random numbers, for each client its own")
        return chosen
    cohort = expected_sizes(np.diff(data.offsets), cohort_size)
    recorded = {size for sizes in (every, cohort) for size in paying_sizes(np.array(sizes), work, visits)}
    load = Workload(
        profile=profile,
        shapes=[tuple(p.shape) for p in loop.params.values()],
        itemsize=data.x_train.element_size(),
        num_inputs=data.x_train[0].numel(),
        work=work,
        extent=extent_of_sizes(np.array(every), work, visits, lanes),
        cohort=cohort,
        recorded=recorded if engine.compiles else frozenset(),
        compiles=engine.compiles,
        has_dual=engine.has_dual and is_zero(step.clip_grad) and step.optimizer.num_slots <= 1,
    )
    chosen.estimate(load, lanes, visits * len(every) / cohort_size, data.x_train.device.type)
    return chosen


class ChosenBackend:
    """The backend that was asked for, or the one that should be faster."""

    def __init__(
        self, loop: LoopBackend, make_vmap: Callable[[], VmapBackend], engine: dict[str, Any] | None = None
    ) -> None:
        self.loop = loop
        self._engine = engine or {}
        self._make_vmap = make_vmap
        self._backend: LoopBackend | VmapBackend = loop
        self._seconds: dict[str, float] = {}
        self._why = ""
        self.amounts: dict[str, Amounts] = {}
        """what a round takes, by backend, where that was estimated"""
        self.setup: dict[str, Amounts] = {}
        """and what comes once"""

    @property
    def choice(self) -> str:
        """The backend's name."""
        return self._backend.name

    def choose(self, name: str, why: str) -> None:
        """Decides."""
        self._backend = self.loop if name == "loop" else self._make_vmap()
        self._why = why

    def say_why_plain(self, why: str) -> None:
        """Says why plain steps were chosen, of whoever knew."""
        self._why = why
        self.loop.why_not_compiled = why

    def estimate(self, load: Workload, lanes: int, num_rounds: float, device: str) -> None:
        """Decides by what a run of so many rounds would take."""
        self.amounts = {"loop": loop_amounts(load), "vmap": vmap_amounts(load, lanes)}
        self.setup = {"loop": loop_setup(load), "vmap": vmap_setup(load, lanes)}
        totals = []
        for constants in SECONDS[device]:
            seconds = {name: seconds_of(amounts, constants) for name, amounts in self.amounts.items()}
            self._seconds = self._seconds or seconds
            once = {name: seconds_of(amounts, constants) / num_rounds for name, amounts in self.setup.items()}
            totals.append({name: value + once[name] for name, value in seconds.items()})
        self.choose(faster(totals, load.cohort), "cost model")

    @property
    def form(self) -> dict[str, Any]:
        """What decides how numbers are rounded: a run goes on in the form in which it began."""
        return {**self._engine, **self._backend.form, **self.loop.kept_by_python}

    @property
    def note(self) -> dict[str, Any]:
        """What ran and why, for result.json."""
        modelled = {f"{name}_round_s": float(f"{value:.3g}") for name, value in self._seconds.items()}
        return {**self._backend.note, "chosen_by": self._why, **modelled, **self.threads}

    @property
    def threads(self) -> dict[str, int]:
        """How many threads train the run, where that matters."""
        return {name: value for name, value in self._engine.items() if name == "num_threads"}

    def load(self, server: ServerState) -> nn.Module:
        return self.loop.load(server)

    def prepare(self, server: ServerState, hyper: Hyper) -> None:
        """Tries the faster forms before the first round.

        Args:
            server: untrained, whatever the run goes on from: what is found must not depend on where it was interrupted.
        """
        self._backend.prepare(server, hyper)

    def train(
        self, server: ServerState, clients: ClientStates, cohort: Cohort, hyper: Hyper, round_num: int
    ) -> ServerState:
        return self._backend.train(server, clients, cohort, hyper, round_num)


def form_of(engine: EngineConf, device: torch.device) -> dict[str, Any]:
    """What decides how numbers are rounded, besides the backend."""
    threads = {"num_threads": torch.get_num_threads()} if device.type == "cpu" else {}
    return {"device": device.type, **threads, "compile": engine.compile, "dual": engine.dual, "graph": engine.graph}


def _bytes_per_lane(loop: LoopBackend, step: LocalStep, data: Data, widest: int) -> int:
    """Memory of one more client at once: its model, gradient, slots and state, and a guess at its activations.

    Args:
        widest: samples of the largest batch, as it may be expected.
    """
    params = sum(p.numel() * p.element_size() for p in loop.params.values())
    _, kept = states_of_copy(step.algorithm, loop.params)
    state = sum(t.numel() * t.element_size() for tensors in kept.values() for t in tensors.values())
    sample = data.x_train[0].numel() * data.x_train.element_size()
    return _COPIES * params + state + 16 * widest * sample
