import numpy as np
import pytest

from flgo_hydra.federated.cohort import sample_cohort

SIZES = np.array([10, 20, 30, 40])


@pytest.mark.parametrize(
    "num_clients, proportion, size",
    [(10, 0.2, 2), (10, 0.05, 1), (100, 0.29, 29), (3, 1.0, 3), (7, 0.5, 3)],
)
def test_size_is_the_share_rounded_down_but_at_least_one(num_clients, proportion, size):
    cohort = sample_cohort(np.ones(num_clients), proportion, "uniform", "other", "samples", np.random.default_rng(0))
    assert len(cohort.clients) == size
    assert cohort.participation == pytest.approx(size / num_clients)


@pytest.mark.parametrize(
    "aggregate, weighting, weights, model_factor",
    [
        ("other", "samples", [0.1, 0.2, 0.3, 0.4], 1.0),
        ("other", "uniform", [0.25] * 4, 1.0),
        ("uniform", "samples", [0.25] * 4, 1.0),
        ("weighted_com", "samples", [0.1, 0.2, 0.3, 0.4], 1.0),
        ("weighted_scale", "samples", [0.1, 0.2, 0.3, 0.4], 1.0),
    ],
)
def test_weights_of_everyone(aggregate, weighting, weights, model_factor):
    cohort = sample_cohort(SIZES, 1.0, "full", aggregate, weighting, np.random.default_rng(0))
    assert cohort.clients.tolist() == [0, 1, 2, 3]
    assert cohort.weights == pytest.approx(weights)
    assert cohort.model_factor == pytest.approx(model_factor)


def test_weights_of_a_part():
    rng = np.random.default_rng(3)
    chosen = np.sort(np.random.default_rng(3).choice(4, 2, replace=False))
    share = SIZES[chosen] / 100
    for aggregate, weights, factor in [
        ("other", share / share.sum(), 1.0),
        ("weighted_com", share, 1.0),
        ("weighted_scale", 2 * share, 2 * share.sum()),
    ]:
        rng = np.random.default_rng(3)
        cohort = sample_cohort(SIZES, 0.5, "uniform", aggregate, "samples", rng)
        assert cohort.clients.tolist() == chosen.tolist()
        assert cohort.weights == pytest.approx(weights)
        assert cohort.model_factor == pytest.approx(factor)


def test_a_client_drawn_twice_trains_once_and_counts_twice():
    """md draws with replacement: with one huge client almost every draw is it."""
    sizes = np.array([1, 10_000, 1])
    cohort = sample_cohort(sizes, 1.0, "md", "uniform", "samples", np.random.default_rng(0))
    assert cohort.clients.tolist() == [1]
    assert cohort.weights.tolist() == [1.0]
    assert cohort.num_drawn == 3
    assert cohort.participation == pytest.approx(1 / 3)  # of three clients one took part


def test_md_follows_the_data_volume():
    rng = np.random.default_rng(0)
    hits = np.zeros(4)
    for _ in range(2000):
        cohort = sample_cohort(SIZES, 0.25, "md", "uniform", "samples", rng)
        hits[cohort.clients] += 1
    assert hits / 2000 == pytest.approx(SIZES / 100, abs=0.04)
