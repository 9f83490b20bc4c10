from itertools import combinations, product

import numpy as np
import pytest

from flgo_hydra.federated.cohort import caveats, sample_cohort

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


def expected_weights(sizes, num_drawn, sample, aggregate, weighting):
    """E[weight of each client] over every possible cohort, and E[model_factor]: exact, by going through all draws."""
    n = len(sizes)
    share = np.array(sizes) / sum(sizes)
    draws = product(range(n), repeat=num_drawn) if sample == "md" else combinations(range(n), num_drawn)
    if sample == "full":
        draws = [tuple(range(n))]
    draws = list(draws)
    mean, factor = np.zeros(n), 0.0
    for drawn in draws:
        chance = np.prod(share[list(drawn)]) if sample == "md" else 1 / len(draws)

        class Fixed:
            def choice(self, *_, drawn=drawn, **__):
                return np.array(drawn)

        cohort = sample_cohort(np.array(sizes), num_drawn / n, sample, aggregate, weighting, Fixed())
        mean[cohort.clients] += chance * cohort.weights
        factor += chance * cohort.model_factor
    return mean, factor


SIZES_3 = (1, 2, 5)
SHARES_3 = [0.125, 0.25, 0.625]


@pytest.mark.parametrize(
    "sample, aggregate, weighting, expected",
    [
        ("md", "other", "samples", SHARES_3),
        ("md", "other", "uniform", SHARES_3),
        ("md", "uniform", "samples", SHARES_3),
        ("uniform", "uniform", "samples", [1 / 3] * 3),
        ("uniform", "other", "uniform", [1 / 3] * 3),
        ("uniform", "weighted_scale", "samples", SHARES_3),
        ("uniform", "weighted_com", "samples", np.multiply(2 / 3, SHARES_3)),  # the server's model keeps the rest
        ("full", "other", "samples", SHARES_3),
        ("full", "uniform", "samples", [1 / 3] * 3),
        ("full", "weighted_com", "samples", SHARES_3),
        ("full", "weighted_scale", "samples", SHARES_3),
    ],
)
def test_the_mean_over_all_draws_is_the_full_aggregate(sample, aggregate, weighting, expected):
    """Of two of three clients: E[aggregate] is what everyone together would give, by volume or evenly."""
    mean, factor = expected_weights(SIZES_3, 2, sample, aggregate, weighting)
    assert mean == pytest.approx(expected, abs=1e-12)
    assert factor == pytest.approx(1.0, abs=1e-12)
    assert caveats(sample, aggregate) == []


@pytest.mark.parametrize("aggregate", ["weighted_com", "weighted_scale"])
def test_volume_counted_twice_is_named(aggregate):
    mean, _ = expected_weights(SIZES_3, 2, "md", aggregate, "samples")
    squares = np.square(SHARES_3)
    assert mean / mean.sum() == pytest.approx(squares / squares.sum())  # and not SHARES_3
    (text,) = caveats("md", aggregate)
    assert f"`sample=md aggregate={aggregate}`" in text and "aggregate=other or uniform" in text
