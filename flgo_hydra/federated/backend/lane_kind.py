"""Steps of all lanes by kind, H lanes and B samples a batch: what they read, and a round of them lying ready."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flgo_hydra.federated.transfer import to_device
from flgo_hydra.recorder.graph import Graph
from flgo_hydra.recorder.writer import Program

_PLAN_BYTES = 2**25
"""Of the steps that lie ready on a GPU."""


@dataclass(frozen=True)
class Step:
    """A step of all lanes, as it stands on the device."""

    kind: int
    count: int
    """its number in the round, from 1"""
    rows: Tensor
    index: Tensor | None
    weights: Tensor | None
    is_active: Tensor | None


@dataclass
class Kind:
    """Steps of one kind: where they find their samples, their program, and those that lie ready."""

    rows: Tensor
    """of the training samples, (H * B,)"""
    x: Tensor
    """of the samples, (H, B, …); of one client alone, (B, …)"""
    y: Tensor
    x_rows: Tensor
    """the same memory, (H * B, …)"""
    y_rows: Tensor
    weights: Tensor | None = None
    """of each sample in its batch's mean, (H, B)"""
    is_active: Tensor | None = None
    """(H,)"""
    index: Tensor | None = None
    """of the samples in the dual form, (H * B,)"""
    stepped: frozenset[str] = frozenset()
    """parameters that have a direction in such a step"""
    program: Program | None = None
    reads_x: bool = True
    counts: bool = True
    """the step reads its number"""
    plan: "Plan | None" = None
    graph: Graph | None = None

    @property
    def is_masked(self) -> bool:
        return self.is_active is not None

    def read(self, step: Step) -> None:
        """Copies what the step says besides its rows."""
        if self.weights is not None and self.is_active is not None:
            assert step.weights is not None and step.is_active is not None
            self.weights.copy_(step.weights)
            self.is_active.copy_(step.is_active)
        if step.index is not None and self.index is not None:
            self.index.copy_(step.index)

    def add_plan(self, most_steps: int, count: Tensor | None) -> None:
        """Makes room for the steps of a round.

        Args:
            count: where the number of the step is read; None: nowhere.
        """
        mine = {"rows": self.rows}
        if self.weights is not None and self.is_active is not None:
            mine |= {"weights": self.weights, "is_active": self.is_active}
        if self.index is not None:
            mine["index"] = self.index
        if count is not None:
            mine["count"] = count
        self.plan = Plan(mine, most_steps)


class Plan:
    """Steps of one kind that lie ready on the device.

    Args:
        mine: the tensors that a step reads, by the name of its part.
        most_steps: of a round; there is room for fewer if they are large.
    """

    def __init__(self, mine: Mapping[str, Tensor], most_steps: int) -> None:
        self.room = max(1, min(most_steps, _PLAN_BYTES // sum(t.nbytes for t in mine.values())))
        self._parts = {part: (t, t.new_zeros(self.room, *t.shape)) for part, t in mine.items()}
        self._position = torch.zeros(1, dtype=torch.int64, device=mine["rows"].device)

    def fill(self, steps: Sequence[Step]) -> None:
        """Puts these steps, `room` at most, in place of those before."""
        for part, (mine, planned) in self._parts.items():
            if part == "count":
                counts = torch.tensor([step.count for step in steps], dtype=planned.dtype)
                planned[: len(steps)].copy_(to_device(counts, mine.device))
            else:
                torch.stack([getattr(step, part) for step in steps], out=planned[: len(steps)])
        self._position.zero_()

    def fetch_next(self) -> None:
        """Brings the next step to where it is read; nothing is asked of the host."""
        for mine, planned in self._parts.values():
            torch.index_select(planned, 0, self._position, out=mine.unsqueeze(0))
        self._position.add_(1)


def first_that_fit(steps: Sequence[Step], room: Mapping[int, int]) -> Sequence[Step]:
    """The first steps, as many as there is room for steps of each kind."""
    used: Counter[int] = Counter()
    for i, step in enumerate(steps):
        if used[step.kind] == room[step.kind]:
            return steps[:i]
        used[step.kind] += 1
    return steps
