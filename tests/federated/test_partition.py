import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flgo_hydra.federated import partition

# 6 classes with 10, 20, ..., 60 samples
LABELS = np.repeat(np.arange(6), np.arange(10, 70, 10))

SPLITS = [
    (partition.iid, {}),
    (partition.quantity, {"sigma": 0.0}),
    (partition.quantity, {"sigma": 2.0}),
    (partition.dirichlet, {"alpha": 1e-3}),
    (partition.dirichlet, {"alpha": 0.5}),
    (partition.dirichlet, {"alpha": 1e-3, "balanced": True}),
    (partition.dirichlet, {"alpha": 0.5, "balanced": True}),
    (partition.shards, {"shards_per_client": 2}),
    (partition.classes, {"classes_per_client": 3}),
]


def assign(split, params, labels=LABELS, num_clients=7, seed=0, **others):
    return partition.assign(split, params, labels, num_clients, np.random.default_rng(seed), **others)


def table(client_of, labels=LABELS, num_clients=7):
    """Samples by client and class."""
    counts = np.zeros((num_clients, labels.max() + 1), int)
    np.add.at(counts, (client_of, labels), 1)
    return counts


@settings(max_examples=25, deadline=None)
@given(data=st.data(), num_clients=st.integers(1, 9), min_samples=st.integers(1, 3), seed=st.integers(0, 2**40))
@pytest.mark.parametrize("split, params", SPLITS)
def test_every_sample_once_nobody_without(split, params, data, num_clients, min_samples, seed):
    need = max(num_clients * min_samples, num_clients * params.get("shards_per_client", 1))
    size = data.draw(st.integers(need, need + 60))
    if split is partition.classes:  # k <= classes <= k * clients
        num_classes, size = data.draw(st.integers(3, 3 * num_clients)), size + 27
        labels = np.arange(size) % num_classes
    else:
        labels = np.array(data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size)))
    client_of = assign(split, params, labels, num_clients, seed, min_samples=min_samples)
    assert client_of.shape == labels.shape and client_of.dtype == np.int64
    sizes = np.bincount(client_of)
    assert len(sizes) == num_clients and sizes.min() >= min_samples
    np.testing.assert_array_equal(client_of, assign(split, params, labels, num_clients, seed, min_samples=min_samples))


@pytest.mark.parametrize("split, params", SPLITS)
def test_another_seed_is_another_split(split, params):
    assert (assign(split, params, seed=0) != assign(split, params, seed=1)).any()


@pytest.mark.parametrize(
    "split, params",
    [
        (partition.iid, {}),
        (partition.quantity, {"sigma": 0.0}),
        (partition.shards, {"shards_per_client": 2}),
        (partition.dirichlet, {"alpha": 0.1, "balanced": True}),
        (partition.dirichlet, {"alpha": 1e-6, "balanced": True}),
    ],
)
def test_equal_sizes(split, params):
    labels = np.arange(2100) % 6
    assert np.ptp(np.bincount(assign(split, params, labels))) <= (0 if split is not partition.shards else 2)


def test_quantity_is_log_normal():
    labels = np.zeros(1_000_000, int)
    sizes = np.bincount(assign(partition.quantity, {"sigma": 0.7}, labels, num_clients=2000))
    assert np.log(sizes).std() == pytest.approx(0.7, rel=0.05)
    huge = np.bincount(assign(partition.quantity, {"sigma": 1e4}, labels[:100], num_clients=5))
    assert sorted(huge) == [1, 1, 1, 1, 96]  # no overflow; the smallest are filled up


def test_dirichlet_shares_follow_their_distribution():
    # A share of Dir(a, ..., a) over N clients has mean 1/N and variance (1/N)(1 - 1/N) / (N a + 1).
    labels = np.arange(40_000) % 40
    shares = table(assign(partition.dirichlet, {"alpha": 0.5}, labels, 10), labels, 10) / 1000
    assert shares.var() == pytest.approx(0.1 * 0.9 / 6, rel=0.2)


def test_dirichlet_with_large_alpha_divides_classes_evenly():
    counts = table(assign(partition.dirichlet, {"alpha": 1e8}, num_clients=10), num_clients=10)
    np.testing.assert_allclose(counts, np.tile(np.arange(1, 7), (10, 1)), atol=1)


def _balanced(alpha, labels, num_clients, seed):
    """Each client's counts of each class, shape (num_clients, classes)."""
    client_of = assign(partition.dirichlet, {"alpha": alpha, "balanced": True}, labels, num_clients, seed)
    return table(client_of, labels, num_clients)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0, 100.0, 1e9])
@pytest.mark.parametrize("counts", [[500] * 10, [3000, 1500, 400, 100]])
def test_balanced_mixes_follow_hsus_law(alpha, counts):
    """Shares of m draws by a mix ~ Dir(alpha p): mean p, variance p (1 - p) (1 + (m - 1) / (alpha + 1)) / m."""
    labels = np.repeat(np.arange(len(counts)), counts)
    num_clients, m, p = 50, sum(counts) // 50, np.array(counts) / sum(counts)
    shares = np.concatenate([_balanced(alpha, labels, num_clients, seed) for seed in range(40)]) / m
    np.testing.assert_allclose(shares.mean(axis=0), p)
    law = p * (1 - p) * (1 + (m - 1) / (alpha + 1)) / m
    found = ((shares - p) ** 2).mean(axis=0)
    assert found.sum() / law.sum() == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(found / law, 1, atol=0.2)  # the rarest class has as many samples as a single client


@pytest.mark.parametrize("alpha", [0.2, 5.0])
def test_a_clients_mix_is_dirichlet_multinomial_while_pools_are_full(alpha):
    """Not the variance alone: the whole distribution, of 4 draws from two classes."""
    labels = np.arange(4000) % 2
    found = np.bincount(np.concatenate([_balanced(alpha, labels, 1000, seed)[:, 0] for seed in range(6)]), minlength=5)
    a = alpha / 2

    def log_beta(x, y):
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    def chance(k):
        return math.comb(4, k) * math.exp(log_beta(k + a, 4 - k + a) - log_beta(a, a))

    np.testing.assert_allclose(found / found.sum(), [chance(k) for k in range(5)], atol=0.02)


def test_balanced_with_large_alpha_is_no_more_even_than_iid():
    labels = np.arange(2000) % 10

    def unevenness(split):
        counts = [table(assign(split, params, labels, 20, seed), labels, 20) for seed in range(60)]
        return np.var(counts)

    params = {}
    dealt = unevenness(partition.iid)
    for alpha in (1e3, 1e9):
        params = {"alpha": alpha, "balanced": True}
        assert 0.98 * dealt < unevenness(partition.dirichlet) < 1.35 * dealt


@pytest.mark.parametrize("alpha", [1e-300, 1e-12, 1e-3, 0.5, 1e12])
def test_classes_that_run_out(alpha):
    """Clients of one class each: whoever comes last takes what is left, and every sample is dealt once."""
    labels = np.repeat(np.arange(3), [1, 50, 49])
    for seed in range(20):
        counts = _balanced(alpha, labels, 5, seed)
        assert counts.sum(axis=0).tolist() == [1, 50, 49] and (counts.sum(axis=1) == 20).all()
        if alpha < 1e-6:
            assert ((counts > 0).sum(axis=1) == 1).sum() >= 3


def test_late_clients_are_no_other_ones():
    """The order of drawing is random: no client's number says how skewed it is."""
    labels = np.arange(2000) % 10
    by_client = np.mean([_balanced(1.0, labels, 10, seed) / 200 - 0.1 for seed in range(200)], axis=0)
    spread = np.mean([(_balanced(1.0, labels, 10, seed) / 200 - 0.1) ** 2 for seed in range(200)], axis=(0, 2))
    assert np.abs(by_client).max() < 0.07 and np.ptp(spread) < 0.35 * spread.mean()


def test_shards_of_one_class_each():
    # 6 shards of 4 samples: with sorted labels every shard is one class
    labels = np.tile(np.arange(6), 4)
    counts = table(assign(partition.shards, {"shards_per_client": 2}, labels, 3), labels, 3)
    assert sorted(counts.ravel()) == [0] * 12 + [4] * 6
    assert (counts.sum(axis=1) == 8).all()


def test_classes_are_held_evenly():
    # 7 clients x 3 classes = 21 places: three classes have 4 holders, three have 3
    counts = table(assign(partition.classes, {"classes_per_client": 3}))
    assert ((counts > 0).sum(axis=1) == 3).all()
    assert sorted((counts > 0).sum(axis=0)) == [3, 3, 3, 4, 4, 4]
    for kind in counts.T:
        assert np.ptp(kind[kind > 0]) <= 1


def test_given_renumbers_in_sorted_order():
    ids = np.array([30, 10, 10, 20])
    labels = np.zeros(4, int)
    for num_clients in (None, 3):
        assert assign(partition.given, {}, labels, num_clients, client=ids).tolist() == [2, 0, 0, 1]
    names = assign(partition.given, {}, labels, None, client=np.array(["b", "a", "b", "c"]), min_samples=2)
    assert names.tolist() == [1, 0, 1, 2]  # ids are kept, whatever min_samples says


def test_filling_takes_from_the_largest():
    # sizes 6, 4, 0, 0 and at least 2 each: 6 -> 5 -> 4, then 4 -> 3 twice, one each
    def lopsided(labels):
        return np.array([0] * 6 + [1] * 4)

    client_of = assign(lopsided, {}, np.zeros(10), 4, min_samples=2)
    assert np.bincount(client_of).tolist() == [3, 3, 2, 2]
    # nobody moved who did not have to
    assert ((client_of == lopsided(None)) | (client_of >= 2)).all()


def test_a_users_own_is_given_what_it_takes():
    def by_hand(labels, num_clients, rng, offset):
        return (np.arange(len(labels)) + offset) % num_clients

    assert assign(by_hand, {"offset": 1}, np.zeros(4), 2).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    "split, params, labels, num_clients, words",
    [
        (partition.iid, {}, LABELS, None, ["iid", "num_clients", "null"]),
        (partition.iid, {}, LABELS, 211, ["211 * 1 = 211 > 210"]),
        (partition.shards, {"shards_per_client": 31}, LABELS, 7, ["7 * 31 = 217", "210"]),
        (partition.classes, {"classes_per_client": 7}, LABELS, 7, ["7 of 6"]),
        (partition.classes, {"classes_per_client": 1}, LABELS, 5, ["5 * 1 < 6"]),
        (partition.dirichlet, {"alpha": 1}, np.zeros((210, 1), np.float32), 7, ["dirichlet", "regression"]),
        (partition.given, {}, LABELS, None, ["client ids"]),
        (partition.iid, {"alpha": 1}, LABELS, 7, ["task.partition", "alpha"]),
        (lambda labels: labels[1:], {}, LABELS, 7, ["210", "(209,)"]),
        (lambda labels: labels / 2, {}, LABELS, 7, ["210 integers", "float64"]),
        (lambda labels: labels + 2, {}, LABELS, 7, ["0..6", "2..7"]),
        (lambda labels, client: labels * 0, {}, LABELS, 2, ["client 1 has none"]),
    ],
)
def test_errors_name_the_numbers(split, params, labels, num_clients, words):
    with pytest.raises(ValueError) as error:
        assign(split, params, labels, num_clients)
    assert all(word in str(error.value) for word in words), error.value


def test_a_masked_client_is_refused_with_its_index():
    def hides(labels):
        return np.ma.array(np.arange(len(labels)) % 2, mask=np.arange(len(labels)) == 2)

    with pytest.raises(ValueError, match=r"partition hides returns .*masked.*index \(2,\)"):
        assign(hides, {}, np.zeros(4), 2)


def test_given_must_match_num_clients():
    with pytest.raises(ValueError, match="3, or null, but got 5"):
        assign(partition.given, {}, np.zeros(4), 5, client=np.array([1, 2, 3, 3]))
