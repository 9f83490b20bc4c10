"""Who has the largest losses."""

import numpy as np
import pytest

from flgo_hydra.federated.parts.power_of_choice import PowerOfChoice

SIZES = np.array([5, 1, 9, 3, 0, 2])
LOSSES = np.array([1.0, 5.0, 2.0, 4.0, 9.0, 3.0])


def draw(candidates, size=2, seed=0):
    asked = []

    def losses(clients):
        asked.extend(clients.tolist())
        return LOSSES[clients]

    found = PowerOfChoice().draw(np.random.default_rng(seed), SIZES, size, losses, {"candidates": candidates})
    return found.tolist(), asked


def test_of_all_candidates_those_with_the_largest_losses():
    """Client 4 has no samples, and is never drawn."""
    assert draw(5) == ([1, 3], draw(5)[1])
    for seed in range(20):
        found, asked = draw(3, seed=seed)
        assert len(asked) == 3 and 4 not in asked
        assert found == sorted(asked, key=lambda k: -LOSSES[k])[:2]


def test_as_many_candidates_as_are_taken_is_a_draw_by_volume():
    counts = np.zeros(6)
    for seed in range(400):
        counts[draw(1, 1, seed)[0]] += 1
    np.testing.assert_allclose(counts / 400, SIZES / SIZES.sum(), atol=0.08)


@pytest.mark.parametrize("candidates", [1, 7])
def test_candidates_there_cannot_be(candidates):
    with pytest.raises(ValueError, match="`2 <= candidates <= 6, the cohort and all clients` must hold"):
        draw(candidates)
