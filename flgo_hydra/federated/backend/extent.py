"""How much the clients of a task compute in a round, at most, and in which kinds of steps."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flgo_hydra.federated.backend.lane_schedule import MASKED
from flgo_hydra.federated.backend.recorded_steps import PAYS_AFTER
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.schedule import batch_sizes
from flgo_hydra.federated.training import LocalWork

_RARE = 0.05
"""Steps a round that all lanes share by chance, below which a size is not worth a program."""
_DUAL_PAYS = 0.7
"""The dual form is taken where it needs at most this share of the multiplications."""


@dataclass(frozen=True)
class Extent:
    """How much the clients compute, at most. It is fixed for a run, and so are the kinds of steps and their shapes."""

    width: int
    """samples of the largest batch"""
    least: int
    """samples of the smallest batch"""
    partial: frozenset[int]
    """sizes of the batches that are filled up"""
    most_steps: int
    least_steps: int
    most_samples: int
    """different ones that a client visits in a round"""
    sizes: frozenset[int]
    """batch sizes that are worth a program of their own"""
    kinds: frozenset[int]
    """of the steps that can come up"""


def extent_of(data: Data, work: LocalWork, visits: float, lanes: int) -> Extent:
    """How much the clients of a task compute at most, and in which kinds of steps.

    Args:
        visits: rounds of the run in which a client is expected to take part.
        lanes: clients trained at once.
    """
    return extent_of_sizes(np.diff(data.offsets), work, visits, lanes)


def extent_of_sizes(num_samples: np.ndarray, work: LocalWork, visits: float, lanes: int) -> Extent:
    """The same, of clients with so many samples."""
    by_client = [(int(n), *work.size(int(n))) for n in np.unique(num_samples)]
    patterns = Counter(batch_sizes(int(n), *work.size(int(n))) for n in num_samples)
    sizes = _shared_sizes(patterns, visits * len(num_samples) / lanes, lanes)
    first = next(iter(patterns))
    width = max(size for _, size, _ in by_client)
    is_masked = len(patterns) > 1 or not sizes.issuperset(first)
    return Extent(
        width=width,
        least=min(min(pattern) for pattern in patterns),
        partial=frozenset(size for pattern in patterns for size in pattern if size < width),
        most_steps=max(map(len, patterns)),
        least_steps=min(map(len, patterns)),
        most_samples=max(min(n, size * num_steps) for n, size, num_steps in by_client),
        sizes=sizes,
        kinds=sizes | {MASKED} if is_masked else sizes,
    )


def _shared_sizes(patterns: Mapping[tuple[int, ...], int], num_rounds: float, lanes: int) -> frozenset[int]:
    """Batch sizes that all lanes are expected to share so often in a run that a program of their own pays.

    Args:
        patterns: how many clients take batches of these sizes.
        num_rounds: of the run, times the parts that a cohort is trained in.
    """
    total = sum(patterns.values())
    per_round: dict[int, float] = {}
    for step in range(max(map(len, patterns))):
        here: Counter[int] = Counter()
        for pattern, count in patterns.items():
            if step < len(pattern):
                here[pattern[step]] += count
        for size, count in here.items():
            # As if lanes were drawn with replacement.
            per_round[size] = per_round.get(size, 0.0) + (count / total) ** lanes
    return frozenset(size for size, steps in per_round.items() if steps >= _RARE and steps * num_rounds >= PAYS_AFTER)


def dual_pays(extent: Extent, num_outputs: int, num_inputs: int) -> bool:
    """Whether a dense layer on the samples is less work in its dual form."""
    n, samples, weights = extent.most_samples, extent.width * extent.most_steps, num_outputs * num_inputs
    plain = 2 * samples * weights
    dual = 2 * n * weights + n * n * num_inputs + 2 * n * samples * num_outputs
    return dual <= _DUAL_PAYS * plain
