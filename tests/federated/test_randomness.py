import random

import numpy as np
import pytest
import torch

from flgo_hydra.federated.randomness import (
    Purpose,
    generators_kept,
    numpy_generator,
    permutations,
    seed_all,
    torch_seed,
)


def test_an_address_gives_the_same_numbers_and_every_other_address_others():
    draws = {
        key: numpy_generator(*key).integers(2**60)
        for key in [
            (0, Purpose.COHORT, 1, 0),
            (1, Purpose.COHORT, 1, 0),
            (0, Purpose.BATCH_ORDER, 1, 0),
            (0, Purpose.COHORT, 2, 0),
            (0, Purpose.COHORT, 1, 1),
        ]
    }
    assert len(set(draws.values())) == len(draws)
    for key, value in draws.items():
        assert numpy_generator(*key).integers(2**60) == value


def test_the_numbers_stay_the_same_from_version_to_version():
    """Published results depend on them: a change here is a change of every result."""
    assert [int(p) for p in Purpose] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert numpy_generator(7, Purpose.COHORT, 3, 0).permutation(8).tolist() == FIRST_PERMUTATION
    assert torch_seed(7, Purpose.INITIAL_WEIGHTS) == FIRST_SEED


def orders(*clients, seed=7, purpose=Purpose.BATCH_ORDER, round_num=3, num_epochs=2, num_samples=6):
    return permutations(seed, purpose, round_num, np.array(clients), num_epochs, num_samples)


def test_orders_are_permutations_that_no_other_client_has_a_part_in():
    many = orders(4, 0, 9)
    assert many.shape == (3, 2, 6) and (np.sort(many, axis=-1) == np.arange(6)).all()
    assert orders(9).tolist() == many[2:].tolist()
    assert orders(4, num_epochs=1).tolist() == many[:1, :1].tolist()


def test_each_part_of_the_address_decides_the_order():
    others = [{}, {"seed": 8}, {"purpose": Purpose.COHORT}, {"round_num": 4}, {"seed": 2**70}]
    found = [orders(4, num_samples=50, **other).tobytes() for other in others]
    assert len({*found, orders(5, num_samples=50).tobytes()}) == len(others) + 1


def test_all_orders_are_equally_likely_and_epochs_know_nothing_of_each_other():
    """Of 3 samples: 6 orders, 36 pairs of them, of 36,000 clients about 1,000 each (standard deviation 31)."""
    found = orders(*range(36_000), num_samples=3)
    number = found[..., 0] * 2 + (found[..., 1] > found[..., 2])
    counts = np.bincount(number[:, 0] * 6 + number[:, 1], minlength=36)
    assert counts.min() > 1000 - 4 * 31 and counts.max() < 1000 + 4 * 31


def test_orders_stay_the_same_from_version_to_version():
    assert orders(4).tolist() == FIRST_ORDERS


FIRST_ORDERS = [[[5, 1, 4, 3, 2, 0], [2, 3, 5, 0, 4, 1]]]
FIRST_PERMUTATION = [2, 7, 4, 6, 0, 3, 1, 5]
FIRST_SEED = 3317731564112288844


DRAWS = {
    "torch": lambda: torch.rand(4).tolist(),
    "numpy": lambda: np.random.standard_normal(3).tolist(),  # an odd number: one is kept for the next call
    "random": lambda: [random.gauss(0, 1) for _ in range(3)],
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_seed_decides_what_each_of_the_processs_generators_draws(draw):
    with generators_kept():
        found = []
        for value in (3, 3, 2**62 + 4):
            seed_all(value, torch.device("cpu"))
            found.append(draw())
            draw()
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_generators_are_left_as_they_were_also_by_what_fails(draw):
    with generators_kept():
        seed_all(5)
        draw()
        expected = [draw(), draw()]
        seed_all(5)
        draw()
        with pytest.raises(RuntimeError), generators_kept():
            seed_all(6)
            draw()
            raise RuntimeError
        assert [draw(), draw()] == expected
