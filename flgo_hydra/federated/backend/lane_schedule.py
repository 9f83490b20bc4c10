"""What lanes do in each step, as arrays: which samples, how much each counts, and who is done.

H lanes, B samples a batch.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

Order = Sequence[np.ndarray]
"""Rows of the training samples in each local step of a client; all of them are among the client's own."""
MASKED = 0
"""In place of a batch size: lanes differ."""


@dataclass(frozen=True)
class StepArrays:
    """A step of all lanes."""

    kind: int
    """batch size of every lane, or MASKED"""
    rows: np.ndarray
    """of the training samples, (H, B)"""
    weights: np.ndarray | None = None
    """of each sample in its batch's mean, (H, B)"""
    is_active: np.ndarray | None = None
    """(H,)"""


def kinds_of(orders: Sequence[Order], sizes: Collection[int]) -> list[int]:
    """The kind of each step: a batch size that all lanes share and that is among `sizes`, or MASKED."""
    kinds = []
    for t in range(max(map(len, orders))):
        found = {len(order[t]) if t < len(order) else 0 for order in orders}
        size = next(iter(found))
        kinds.append(size if len(found) == 1 and size in sizes else MASKED)
    return kinds


def schedule(orders: Sequence[Order], sizes: Collection[int], width: int) -> list[StepArrays]:
    """The steps of the lanes' clients.

    Args:
        width: B of masked steps, the largest batch there is.
    """
    steps = []
    for t, kind in enumerate(kinds_of(orders, sizes)):
        if kind != MASKED:
            steps.append(StepArrays(kind, np.stack([order[t] for order in orders])))
            continue
        rows = np.empty((len(orders), width), np.int64)
        weights = np.zeros((len(orders), width))
        is_active = np.zeros(len(orders), bool)
        for lane, order in enumerate(orders):
            batch = order[min(t, len(order) - 1)]
            rows[lane, : len(batch)] = batch
            rows[lane, len(batch) :] = batch[0]  # as finite as the batch itself
            if t < len(order):
                weights[lane, : len(batch)] = 1.0 / len(batch)
                is_active[lane] = True
        steps.append(StepArrays(MASKED, rows, weights, is_active))
    return steps


def visited(orders: Sequence[Order], most: int) -> np.ndarray:
    """The different samples that each lane visits, in order, filled up with the last one, (H, most)."""
    found = np.empty((len(orders), most), np.int64)
    for lane, order in enumerate(orders):
        rows = np.unique(np.concatenate(order))
        found[lane, : len(rows)] = rows
        found[lane, len(rows) :] = rows[-1]
    return found


def positions(steps: Sequence[StepArrays], samples: np.ndarray, rows_per_lane: int) -> list[np.ndarray]:
    """For each step, where its samples are among those that the lanes visit: lane * rows_per_lane + number, (H, B).

    Args:
        samples: as `visited` returns them.
    """
    together = np.concatenate([step.rows for step in steps], axis=1)
    for lane, own in enumerate(samples):
        together[lane] = np.searchsorted(own, together[lane]) + lane * rows_per_lane
    ends = np.cumsum([step.rows.shape[1] for step in steps])
    return np.split(together, ends[:-1], axis=1)
