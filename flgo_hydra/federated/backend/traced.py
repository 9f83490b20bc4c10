"""Local steps in a working model as programs, one for each batch size.

A step is recorded once (`tape.py`), from the forward pass to the new parameters, and compiled (`program.py`) to a flat
list of operations on the working model's own tensors. Only the learning rate, the number of the step and the batch
change from call to call. A recording does not repeat what Python does beside: whether its program does what the plain
step does is tried before it is used (`loop.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flgo_hydra.federated.algorithm.base import Client, Hyper, State, Tensors
from flgo_hydra.federated.backend.buffers import Buffers
from flgo_hydra.federated.backend.cannot import Cannot
from flgo_hydra.federated.clients.client_program import StepInputs
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.optimizer import Slots, StepCounts
from flgo_hydra.federated.training import LocalStep, ServerState
from flgo_hydra.recorder.arena import Arena
from flgo_hydra.recorder.graph import Graph
from flgo_hydra.recorder.program import compile_program
from flgo_hydra.recorder.tape import CannotRecord, record
from flgo_hydra.recorder.writer import Program


@dataclass(frozen=True)
class _Compiled:
    x: Tensor
    y: Tensor
    program: Program
    stepped: tuple[str, ...]
    """parameters that have a direction in such a step"""
    counts: bool
    """the program reads the number of the step, which is one for all of them"""
    rows: Tensor
    """of the batch, where a graph finds them"""
    graph: Graph | None = None


class TracedSteps:
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
        graphs: bool = False,
        program: Callable[[StepInputs], list[tuple[Tensor, Tensor]]] | None = None,
    ) -> None:
        """
        Args:
            params, buffers: the working model's own tensors; carried: what steps change, the parameters or what the
                algorithm's program carries; slots: the optimizer's. Programs change them.
            loss: mean loss of the working model on a batch.
            client: of whom a step is recorded.
            graphs: on CUDA, capture programs as graphs.
            program: a step of the algorithm's program, in pairs of a tensor and its next value; None: it has none.
        """
        self._params, self._carried, self._buffers, self._slots = params, carried, buffers, slots
        self._loss, self._step, self._data, self._program = loss, step, data, program
        some = next(iter(params.values()))
        self._device = some.device
        # As exact as a float of Python, which is what the plain step uses.
        exact = torch.float32 if self._device.type == "mps" else torch.float64
        self._lr = torch.zeros((), dtype=exact, device=self._device)
        self._count = torch.zeros((), dtype=exact, device=self._device)
        self._num_steps = torch.ones((), dtype=exact, device=self._device)
        with torch.no_grad():
            self._client = Client(*(_clone(part) for part in client))
        self._arena = Arena(self._device)
        self._compiled: dict[int, _Compiled] = {}
        self._lr_now = 0.0
        self._is_cuda = self._device.type == "cuda"
        self._why_no_graph = "" if graphs else "engine.graph=off"
        # A graph's calls bring no numbers: it reads the learning rate from its tensor.
        self._scalars = {} if self._is_cuda else {"lr": self._lr}
        self._read: list[tuple[Tensor, int, tuple[str, ...]]] = []

    @property
    def sizes(self) -> set[int]:
        """Batch sizes that have a program."""
        return set(self._compiled)

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
        compiled = self._compiled.get(rows.numel())
        if compiled is None:
            return False
        if compiled.counts:
            count = counts.next_of_all(compiled.stepped)
            if count is None:
                return False
            self._count.fill_(count)
        if compiled.graph is not None:
            compiled.rows.copy_(rows)
            compiled.graph.replay()
        else:
            self._take(compiled, rows)
        return True

    def _take(self, compiled: _Compiled, rows: Tensor) -> None:
        torch.index_select(self._data.x_train, 0, rows, out=compiled.x)
        torch.index_select(self._data.y_train, 0, rows, out=compiled.y)
        compiled.program.run(*([self._lr_now] if self._scalars else []))

    @property
    def graph_note(self) -> dict[str, Any]:
        """Whether steps run as CUDA graphs, and why not."""
        has_graph = any(compiled.graph is not None for compiled in self._compiled.values())
        return {"cuda_graph": has_graph} | ({"why_no_cuda_graph": self._why_no_graph} if self._why_no_graph else {})

    def compile(self, rows: Tensor, reset: Callable[[], object], hyper: Hyper) -> None:
        """Makes the program for batches of this size.

        Args:
            rows: a batch.
            reset: gives the working model the server's tensors again.
        Raises:
            Cannot: there is no program.
        """
        x, y = self._data.x_train[rows], self._data.y_train[rows]
        numbers = {**hyper, "lr": self._lr}
        try:
            reset()
            program, stepped = self._record(x, y, numbers)
        except CannotRecord as error:
            raise Cannot(str(error)) from error
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model may do whatever Python can; the plain step will raise it again
            raise Cannot(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
        self._compiled[len(rows)] = _Compiled(x, y, program, stepped, program.reads(self._count), rows.clone())
        self._find_what_is_read()

    def capture(self, reset: Callable[[], object], server: ServerState, hyper: Hyper) -> None:
        """On CUDA, captures graphs of the programs."""
        client = self._client._replace(anchor=server.params, server=server.state)
        for size, compiled in self._compiled.items():
            self._compiled[size] = self._with_graph(compiled, reset, client, hyper)

    def _record(self, x: Tensor, y: Tensor, numbers: Hyper) -> tuple[Program, tuple[str, ...]]:
        # In a function of its own: what was recorded holds memory as long as it is in sight.
        if self._program is not None:
            given = StepInputs(x, y, None, self._count, self._num_steps, self._client, numbers)
            program = self._program
            ops, results = record(lambda: program(given))
            return compile_program(ops, results, self._scalars, self._arena), tuple(self._carried)
        ops, (params, slots) = record(lambda: self._plain_step(x, y, self._count, self._client, numbers))
        results = [(self._params[name], value) for name, value in params.items()]
        results += [pair for name, new in slots.items() for pair in zip(self._slots[name], new, strict=True)]
        results += self._buffers.anew()
        return compile_program(ops, results, self._scalars, self._arena), tuple(params)

    def _with_graph(self, compiled: _Compiled, reset: Callable[[], object], client: Client, hyper: Hyper) -> _Compiled:
        if not self._is_cuda or self._why_no_graph:
            return compiled
        if compiled.program.is_random:
            # A generator that is seeded for each client would have to be seeded inside the graph.
            self._why_no_graph = "the model draws random numbers"
            return compiled

        def take() -> None:
            self._take(compiled, compiled.rows)

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

        try:
            return replace(compiled, graph=Graph(take, restart, results, self._device))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what CUDA does not let be captured runs as it is
            self._why_no_graph = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            return compiled

    def _plain_step(
        self, x: Tensor, y: Tensor, count: Tensor, client: Client, hyper: Hyper
    ) -> tuple[Tensors, dict[str, Slots]]:
        with torch.enable_grad():
            found = torch.autograd.grad(self._loss(x, y), list(self._params.values()), allow_unused=True)
        with torch.no_grad():
            grads = {name: g for name, g in zip(self._params, found, strict=True) if g is not None}
            return self._step(self._params, grads, self._slots, count, client, hyper)

    def _find_what_is_read(self) -> None:
        """Tensors of the client that some program reads, and where they are found."""
        parts: list[tuple[Tensor, int, tuple[str, ...]]] = [
            (tensor, 0, (name,)) for name, tensor in self._client.anchor.items()
        ]
        parts += [(tensor, 3, (name,)) for name, tensor in self._client.facts.items()]
        for number in (1, 2):
            state: State = self._client[number]  # type: ignore[assignment]
            parts += [(t, number, (key, name)) for key, tensors in state.items() for name, t in tensors.items()]
        self._read = [one for one in parts if any(c.program.reads(one[0]) for c in self._compiled.values())]


def _clone(state: Any) -> Any:
    """The same tensors by name, or by two names, in memory of their own."""
    return {key: one.clone() if isinstance(one, Tensor) else _clone(one) for key, one in state.items()}
