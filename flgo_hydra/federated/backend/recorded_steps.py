"""Local steps in a working model as programs, one for each batch size.

A step is recorded once, from the forward pass to the new parameters, and compiled to a flat list of operations on the
working model's own tensors (`step_programs.py`). Only the learning rate, the number of the step and the batch change
from call to call. A recording does not repeat what Python does beside: whether its program does what the plain step
does is tried before it is used (`loop.py`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flgo_hydra.config.option import AUTO, EngineConf
from flgo_hydra.federated.algorithm.base import Client, Hyper, State, Tensors
from flgo_hydra.federated.backend.buffers import Buffers
from flgo_hydra.federated.backend.cannot import Cannot, cannot
from flgo_hydra.federated.backend.lane_kind import Kind
from flgo_hydra.federated.backend.step_programs import Pairs, StepPrograms
from flgo_hydra.federated.clients.client_program import StepInputs
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.optimizer import Slots, StepCounts
from flgo_hydra.federated.training import LocalStep, LocalWork, ServerState
from flgo_hydra.recorder.tape import CannotRecord


class RecordedSteps:
    """Programs that take a local step in place, by batch size."""

    def __init__(
        self,
        params: Tensors,
        carried: Tensors,
        buffers: Buffers,
        slots: dict[str, Slots],
        loss: Callable[[Tensor, Tensor], Tensor],
        step: LocalStep,
        data: Data,
        client: Client,
        engine: EngineConf = AUTO,
        program: Callable[[StepInputs], list[tuple[Tensor, Tensor]]] | None = None,
    ) -> None:
        """
        Args:
            params, buffers: the working model's own tensors; carried: what steps change, the parameters or what the
                algorithm's program carries; slots: the optimizer's. Programs change them.
            loss: mean loss of the working model on a batch.
            client: of whom a step is recorded.
            program: a step of the algorithm's program, in pairs of a tensor and its next value; None: it has none.
        """
        self._params, self._carried, self._buffers, self._slots = params, carried, buffers, slots
        self._loss, self._step, self._data, self._program = loss, step, data, program
        some = next(iter(params.values()))
        self._device = some.device
        # As exact as a float of Python, which is what the plain step uses.
        exact = torch.float32 if self._device.type == "mps" else torch.float64
        self._lr = torch.zeros((), dtype=exact, device=self._device)
        self._num_steps = torch.ones((), dtype=exact, device=self._device)
        with torch.no_grad():
            self._client = Client(*(_clone(part) for part in client))
        self._lr_now = 0.0
        # A graph's calls bring no numbers: it reads the learning rate from its tensor.
        scalars = {} if self._device.type == "cuda" else {"lr": self._lr}
        self._programs = StepPrograms(data, engine, exact, scalars)
        self._count = self._programs.count
        self._read: list[tuple[Tensor, int, tuple[str, ...]]] = []

    @property
    def sizes(self) -> list[int]:
        """Batch sizes that have a program."""
        return self._programs.compiled

    def start(self, client: Client, hyper: Hyper, num_steps: int) -> None:
        """Puts what the client knows where the programs look for it."""
        if self._program is not None:
            self._num_steps.fill_(num_steps)
        if hyper["lr"] != self._lr_now:
            self._lr_now = hyper["lr"]
            self._lr.fill_(self._lr_now)
        for mine, part, path in self._read:
            found: Any = client[part]
            for key in path:
                found = found[key]
            mine.copy_(found)

    def run(self, rows: Tensor, counts: StepCounts) -> bool:
        """Takes a step on these rows of the training samples; False if there is no program for it.

        There is none for so many rows, or its parameters have taken different numbers of steps.

        To be called under `torch.no_grad`.
        """
        kind = self._programs.kinds.get(rows.numel())
        if kind is None:
            return False
        if kind.counts:
            count = counts.next_of_all(kind.stepped)
            if count is None:
                return False
            self._count.fill_(count)
        if kind.graph is not None:
            kind.rows.copy_(rows)
            kind.graph.replay()
        else:
            self._take(kind, rows)
        return True

    def _take(self, kind: Kind, rows: Tensor) -> None:
        self._programs.read(kind, rows)
        self._programs.run(kind, self._lr_now)

    @property
    def graph_note(self) -> dict[str, Any]:
        """On CUDA, whether steps run as graphs, and why not."""
        return self._programs.graph_note

    def compile(self, rows: Tensor, reset: Callable[[], object], hyper: Hyper) -> None:
        """Makes the program for batches of this size.

        Args:
            rows: a batch.
            reset: gives the working model the server's tensors again.
        Raises:
            Cannot: there is no program.
        """
        x, y = self._data.x_train[rows], self._data.y_train[rows]
        kind = Kind(rows.clone(), x, y, x, y)
        numbers = {**hyper, "lr": self._lr}
        with cannot():  # a model may do whatever Python can; the plain step will raise it again
            reset()
            try:
                self._programs.record(kind, lambda: self._next(kind, numbers))
            except CannotRecord as error:
                raise Cannot(str(error)) from error
        self._programs.kinds[len(rows)] = kind
        self._find_what_is_read()

    def capture(self, reset: Callable[[], object], server: ServerState, hyper: Hyper) -> None:
        """On CUDA, captures graphs of the programs."""
        client = self._client._replace(anchor=server.params, server=server.state)

        def restart() -> None:
            reset()
            for slots in self._slots.values():
                for slot in slots:
                    slot.zero_()
            self.start(client, hyper, 1)
            self._count.fill_(1)

        def results() -> list[Tensor]:
            slots = [slot for tensors in self._slots.values() for slot in tensors]
            return [*(p.detach() for p in self._carried.values()), *self._buffers.homes.values(), *slots]

        for kind in self._programs.kinds.values():
            if kind.program is not None and kind.program.is_random:
                # A generator that is seeded for each client would have to be seeded inside the graph.
                self._programs.say_why_no_graph("the model draws random numbers")
            self._programs.capture(kind, partial(self._take, kind, kind.rows), restart, results)

    def _next(self, kind: Kind, hyper: Hyper) -> Pairs:
        """A step, and which parameters it moves."""
        if self._program is not None:
            kind.stepped = frozenset(self._carried)
            given = StepInputs(kind.x, kind.y, None, self._count, self._num_steps, self._client, hyper)
            return self._program(given)
        with torch.enable_grad():
            found = torch.autograd.grad(self._loss(kind.x, kind.y), list(self._params.values()), allow_unused=True)
        with torch.no_grad():
            grads = {name: g for name, g in zip(self._params, found, strict=True) if g is not None}
            params, slots = self._step(self._params, grads, self._slots, self._count, self._client, hyper)
        kind.stepped = frozenset(params)
        pairs = [(self._params[name], value) for name, value in params.items()]
        pairs += [pair for name, new in slots.items() for pair in zip(self._slots[name], new, strict=True)]
        return pairs + self._buffers.anew()

    def _find_what_is_read(self) -> None:
        """Tensors of the client that some program reads, and where they are found."""
        parts: list[tuple[Tensor, int, tuple[str, ...]]] = [
            (tensor, 0, (name,)) for name, tensor in self._client.anchor.items()
        ]
        parts += [(tensor, 3, (name,)) for name, tensor in self._client.facts.items()]
        for number in (1, 2):
            state: State = self._client[number]  # type: ignore[assignment]
            parts += [(t, number, (key, name)) for key, tensors in state.items() for name, t in tensors.items()]
        self._read = [one for one in parts if self._programs.reads(one[0])]


def _clone(state: Any) -> Any:
    """The same tensors by name, or by two names, in memory of their own."""
    return {key: one.clone() if isinstance(one, Tensor) else _clone(one) for key, one in state.items()}


PAYS_AFTER = 100
"""Steps of a run after which recording a program has paid: it takes as long as 20 to 60 plain steps (measured on an
MLP and the FedAvg paper's CNN), and each step then saves a third."""


def paying_sizes(num_samples: np.ndarray, work: LocalWork, visits: float) -> frozenset[int]:
    """Batch sizes that a run takes often enough. They follow from the config, and so do a run's numbers."""
    steps: dict[int, float] = {}
    for n, num_clients in zip(*np.unique(num_samples, return_counts=True), strict=True):
        size, num_steps = work.size(int(n))
        per_epoch = -(-int(n) // size)
        num_partial = num_steps // per_epoch if n % size else 0
        steps[size] = steps.get(size, 0) + visits * int(num_clients) * (num_steps - num_partial)
        if num_partial:
            steps[int(n) % size] = steps.get(int(n) % size, 0) + visits * int(num_clients) * num_partial
    return frozenset(size for size, count in steps.items() if count >= PAYS_AFTER)
