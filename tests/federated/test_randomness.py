import torch

from flgo_hydra.federated.randomness import Purpose, numpy_generator, seed_torch, torch_seed


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
    assert [int(p) for p in Purpose] == [1, 2, 3, 4]
    assert numpy_generator(7, Purpose.COHORT, 3, 0).permutation(8).tolist() == FIRST_PERMUTATION
    assert torch_seed(7, Purpose.INITIAL_WEIGHTS) == FIRST_SEED


FIRST_PERMUTATION = [2, 7, 4, 6, 0, 3, 1, 5]
FIRST_SEED = 3317731564112288844


def test_seed_torch_decides_what_dropout_draws():
    with torch.random.fork_rng():
        seed_torch(3, torch.device("cpu"))
        first = torch.rand(4)
        seed_torch(3, torch.device("cpu"))
        assert torch.equal(first, torch.rand(4))
