"""Steps as programs, one for each kind: recorded once, called with a batch, on CUDA captured as graphs.

A kind of step is its batch size, or steps with masks. Who trains clients one after another (`recorded_steps.py`) and
who trains them side by side (`lanes.py`) both have theirs here; what a step computes they say. Whether a program does
what the plain step does is tried before it is used.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flgo_hydra.config.option import EngineConf
from flgo_hydra.federated.backend.cannot import one_line
from flgo_hydra.federated.backend.lane_kind import Kind
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.recorder.arena import Arena
from flgo_hydra.recorder.graph import Graph
from flgo_hydra.recorder.program import Rewrite, compile_program
from flgo_hydra.recorder.tape import record

_log = logging.getLogger(__name__)
Pairs = list[tuple[Tensor, Tensor]]
"""A tensor that a step changes, and its next value."""


class StepPrograms:
    """The kinds of steps that are ready, and what their programs have in common.

    Args:
        exact: dtype of the step's number: as exact as a float of Python, which is what a plain step uses.
        scalars: hyper-parameters that each call brings, by the tensors that stand for them.
    """

    def __init__(self, data: Data, engine: EngineConf, exact: torch.dtype, scalars: dict[str, Tensor]) -> None:
        self._data, self._scalars = data, scalars
        self._device = data.x_train.device
        self._compiles = engine.compiles
        self._arena = Arena(self._device)
        self.count = torch.zeros((), dtype=exact, device=self._device)
        """where programs read the number of the step"""
        self.kinds: dict[int, Kind] = {}
        """by batch size, or `MASKED`"""
        self._why_no_graph = "" if engine.captures else "engine.graph=off"
        if not engine.compiles:
            self._why_no_graph = "engine.compile=off"

    def record(self, kind: Kind, step: Callable[[], Pairs], rewrite: Rewrite | None = None) -> None:
        """Records a kind's step and, where steps are compiled, gives the kind its program.

        Args:
            step: takes it on the kind's own tensors.
        Raises:
            CannotRecord: there is no program.
        """
        ops, results = record(step)
        if self._compiles:
            kind.program = compile_program(ops, results, self._scalars, self._arena, rewrite)
            kind.reads_x, kind.counts = kind.program.reads(kind.x), kind.program.reads(self.count)

    def read(self, kind: Kind, rows: Tensor) -> None:
        """Brings these rows of the training samples to where a kind's step reads them."""
        if kind.reads_x:
            torch.index_select(self._data.x_train, 0, rows, out=kind.x_rows)
        torch.index_select(self._data.y_train, 0, rows, out=kind.y_rows)

    def run(self, kind: Kind, *numbers: float) -> None:
        """Takes the step that a kind's program is of, on what has been read.

        Args:
            numbers: of the scalars, whose tensors hold them too.
        """
        assert kind.program is not None
        kind.program.run(*(numbers if self._scalars else ()))

    def reads(self, tensor: Tensor) -> bool:
        """Whether some step reads it; a step without a program may."""
        return any(kind.program is None or kind.program.reads(tensor) for kind in self.kinds.values())

    def capture(
        self, kind: Kind, take: Callable[[], None], restart: Callable[[], None], results: Callable[[], Sequence[Tensor]]
    ) -> None:
        """On CUDA, captures a kind's step as a graph; without one it runs operation by operation.

        Args:
            take, restart, results: as for `Graph`.
        """
        if self._device.type != "cuda" or kind.program is None or self._why_no_graph:
            return
        try:
            kind.graph = Graph(take, restart, results, self._device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # what CUDA does not let be captured runs as it is
            self.say_why_no_graph(one_line(error))
            _log.warning("local steps run without a CUDA graph: %s", self._why_no_graph)

    def say_why_no_graph(self, why: str) -> None:
        self._why_no_graph = why

    @property
    def is_recorded(self) -> bool:
        """Some kind of step is a program."""
        return any(kind.program is not None for kind in self.kinds.values())

    @property
    def compiled(self) -> list[int]:
        """Kinds that have a program, ascending."""
        return sorted(number for number, kind in self.kinds.items() if kind.program is not None)

    @property
    def graph_note(self) -> dict[str, Any]:
        """On CUDA, whether steps run as graphs, and why not."""
        if self._device.type != "cuda":
            return {}
        has_graph = any(kind.graph is not None for kind in self.kinds.values())
        return {"cuda_graph": has_graph} | ({"why_no_cuda_graph": self._why_no_graph} if self._why_no_graph else {})
