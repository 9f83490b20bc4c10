"""What lanes do in each step, as arrays: which samples, how much each counts, and who is done.

H lanes, B samples a batch.
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from flgo_hydra.federated.schedule import Order

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
    patterns = {order.sizes for order in orders}
    longest = max(map(len, patterns))
    found = np.zeros((len(patterns), longest), np.int64)
    for row, pattern in zip(found, patterns, strict=True):
        row[: len(pattern)] = pattern
    is_shared = (found == found[0]).all(axis=0)
    return [
        size if same and size in sizes else MASKED
        for size, same in zip(found[0].tolist(), is_shared.tolist(), strict=True)
    ]


def schedule(orders: Sequence[Order], sizes: Collection[int], width: int) -> list[StepArrays]:
    """The steps of the lanes' clients.

    Args:
        width: B of masked steps, the largest batch there is.
    """
    kinds = kinds_of(orders, sizes)
    forms = [_padded(order.sizes, len(kinds), width) for order in orders]
    if all(form is forms[0] for form in forms):
        rows = np.stack([order.rows for order in orders])[:, forms[0].places]
    else:
        rows = np.stack([order.rows[form.places] for order, form in zip(orders, forms, strict=True)])
    steps = []
    for t, kind in enumerate(kinds):
        if kind != MASKED:
            steps.append(StepArrays(kind, rows[:, t, :kind]))
            continue
        weights = np.stack([form.weights[t] for form in forms])
        is_active = np.array([form.is_active[t] for form in forms])
        steps.append(StepArrays(MASKED, rows[:, t], weights, is_active))
    return steps


@dataclass(frozen=True)
class _Form:
    """How the steps of a client are filled up, T steps of B samples."""

    places: np.ndarray  # in the client's order, (T, B)
    weights: np.ndarray  # (T, B)
    is_active: np.ndarray  # (T,)


@functools.lru_cache(4096)
def _padded(sizes: tuple[int, ...], num_steps: int, width: int) -> _Form:
    """A batch is filled up with its own first sample, as finite as the batch itself, and the steps with the last."""
    places = np.empty((num_steps, width), np.int64)
    weights = np.zeros((num_steps, width))
    begin = 0
    for t, size in enumerate(sizes):
        places[t, :size] = np.arange(begin, begin + size)
        places[t, size:] = begin
        weights[t, :size] = 1.0 / size
        begin += size
    places[len(sizes) :] = places[len(sizes) - 1]
    return _Form(places, weights, np.arange(num_steps) < len(sizes))


class Visited:
    """The different samples that each lane visits, n at most.

    Attributes:
        rows: of the training samples, ascending, filled up with the last one, (H, n).
    """

    def __init__(self, orders: Sequence[Order], most: int) -> None:
        ends = np.array([order.whole or (0, 0) for order in orders])
        self.rows = np.minimum(ends[:, :1] + np.arange(most), ends[:, 1:])
        self._first = ends[:, 0]
        self._scattered = [lane for lane, order in enumerate(orders) if order.whole is None]
        for lane in self._scattered:
            rows = np.unique(orders[lane].rows)
            self.rows[lane, : len(rows)] = rows
            self.rows[lane, len(rows) :] = rows[-1]

    def positions(self, steps: Sequence[np.ndarray], rows_per_lane: int) -> list[np.ndarray]:
        """For the rows of each step, (H, B), where they are in `rows`: lane * rows_per_lane + number, (H, B)."""
        lanes = np.arange(len(self.rows))
        offsets = (lanes * rows_per_lane - self._first)[:, np.newaxis]
        found = [rows + offsets for rows in steps]
        for lane in self._scattered:
            for place, rows in zip(found, steps, strict=True):
                place[lane] = np.searchsorted(self.rows[lane], rows[lane]) + lane * rows_per_lane
        return found
