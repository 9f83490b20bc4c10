"""Sizes of clients as they may be expected: by what all draws of one split have in common."""

import numpy as np
import pytest

from flgo_hydra.federated import partition
from flgo_hydra.federated.backend.expected import expected_sizes

LABELS = np.arange(2000) % 10


def test_clients_that_are_alike_to_a_sample_are_so():
    assert expected_sizes(np.full(20, 40), 10) == [40] * 10
    assert expected_sizes(np.array([4, 5, 4, 5]), 4) == [4, 4, 5, 5]  # however small
    assert expected_sizes(np.array([4, 5, 4, 5]), 2) == [4, 5]


@pytest.mark.parametrize(
    "split, values",
    [
        (partition.iid, {}),
        (partition.shards, {"shards_per_client": 2}),
        (partition.dirichlet, {"alpha": 0.1, "balanced": True}),
        (partition.dirichlet, {"alpha": 0.5}),
        (partition.dirichlet, {"alpha": 0.1}),
        (partition.quantity, {"sigma": 0.3}),
        (partition.quantity, {"sigma": 1.0}),
    ],
)
def test_other_draws_of_a_split_are_expected_alike(split, values):
    found = set()
    for seed in range(20):
        client_of = partition.assign(split, values, LABELS, 50, np.random.default_rng(seed))
        found.add(tuple(expected_sizes(np.bincount(client_of), 10)))
    assert len(found) == 1


def test_they_have_the_mean_of_the_task_and_spread_with_it():
    wild = np.array([1500, 200, *[10] * 18])
    sizes = expected_sizes(wild, 10)
    assert sizes == sorted(sizes) and sum(sizes) / 10 == pytest.approx(wild.mean(), rel=0.01)
    milder = expected_sizes(np.array([30, 50, 60, 40, 20]), 10)
    assert max(sizes) / np.mean(sizes) > max(milder) / np.mean(milder) > 1.5
    assert min(expected_sizes(np.array([1, 1, 60]), 3)) >= 1
