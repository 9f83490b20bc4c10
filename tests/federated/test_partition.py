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
    # Balanced: a client's mix over K equal classes is Dir(a, ..., a) too (scaling makes it a little flatter).
    labels = np.arange(40_000) % 10
    mixes = table(assign(partition.dirichlet, {"alpha": 0.5, "balanced": True}, labels, 40), labels, 40) / 1000
    assert mixes.var() == pytest.approx(0.1 * 0.9 / 6, rel=0.2)


@pytest.mark.parametrize("is_balanced", [False, True])
def test_dirichlet_with_large_alpha_is_iid(is_balanced):
    params = {"alpha": 1e8, "balanced": is_balanced}
    counts = table(assign(partition.dirichlet, params, num_clients=10), num_clients=10)
    np.testing.assert_allclose(counts, np.tile(np.arange(1, 7), (10, 1)), atol=1)


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
