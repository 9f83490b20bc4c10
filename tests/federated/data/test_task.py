import re
import subprocess
import sys
import textwrap
import warnings
from dataclasses import replace

import numpy as np
import pytest

from flgo_hydra.config.task import DirichletConf, PartitionConf, SourceConf, SyntheticConf, TaskConf
from flgo_hydra.federated import partition, sources, synthetic
from flgo_hydra.federated.data import task

OURS = "flgo_hydra.federated"
IID = PartitionConf(_target_=f"{OURS}.partition.iid", name="iid")
GIVEN = PartitionConf(_target_=f"{OURS}.partition.given", name="given")


@pytest.fixture
def conf(tmp_path):
    source = SourceConf(_target_=f"{OURS}.sources.npz")
    return TaskConf(name="toy", source=source, partition=IID, num_clients=2, cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def with_arrays(conf, tmp_path):
    """Makes the conf of a task with these arrays."""

    def make(**arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return replace(conf, path=str(tmp_path / "mine.npz"))

    return make


# every sample tells which it is, and which label it has
X = np.arange(40.0).reshape(40, 1)
Y = np.arange(40) % 3


def all_of(built):
    return np.concatenate([built.x_train, built.x_valid, built.x_test]).ravel()


def equal(one, other):
    names = ("x_train", "y_train", "train_offsets", "x_valid", "y_valid", "valid_offsets", "x_test", "y_test")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_every_sample_is_somewhere_once(with_arrays):
    built = task.build_task(with_arrays(x_train=X, y_train=Y))
    # 8 of 40 held out for test; 16 a client, of which int(1.6) for validation
    assert len(built.y_test) == 8 and built.train_sizes.tolist() == [15, 15] and built.valid_sizes.tolist() == [1, 1]
    assert sorted(all_of(built)) == list(range(40))
    for split in ("train", "valid", "test"):
        x, y = getattr(built, f"x_{split}"), getattr(built, f"y_{split}")
        assert x.dtype == np.float32 and y.dtype == np.int64
        np.testing.assert_array_equal(x.ravel() % 3, y)
    assert (built.num_clients, built.input_shape, built.num_classes, built.num_outputs) == (2, (1,), 3, 3)


def test_clients_lie_one_after_another(with_arrays):
    ids = np.arange(40) % 4
    conf = replace(with_arrays(x_train=X, y_train=Y, x_test=X, y_test=Y, client=ids), num_clients=None, partition=GIVEN)
    built = task.build_task(conf)
    assert built.num_clients == 4 and len(built.y_test) == 40
    assert built.train_offsets.tolist() == [0, 9, 18, 27, 36] and built.valid_offsets.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(built.x_train.ravel() % 4, np.repeat(range(4), 9))
    np.testing.assert_array_equal(built.x_valid.ravel() % 4, range(4))


def test_the_seed_decides(with_arrays, tmp_path):
    conf = with_arrays(x_train=X, y_train=Y)
    built = task.build_task(conf)
    assert equal(built, task.build_task(conf))
    assert equal(built, task.build_task(replace(conf, cache_dir=str(tmp_path / "other"))))
    assert not equal(built, task.build_task(replace(conf, seed=1)))


def test_the_test_split_is_the_same_under_any_partition(with_arrays):
    conf = with_arrays(x_train=X, y_train=Y)
    skewed = DirichletConf(_target_=f"{OURS}.partition.dirichlet", name="dirichlet", alpha=0.1)
    one, other = (task.build_task(replace(conf, partition=split)) for split in (IID, skewed))
    np.testing.assert_array_equal(one.x_test, other.x_test)
    assert not equal(one, other)


@pytest.mark.parametrize(
    "size, share, held",
    [
        (1, 0.5, 0),
        (2, 0.1, 1),
        (2, 0.999, 1),
        (10, 0.1, 1),
        (19, 0.1, 1),
        (20, 0.1, 2),
        (100, 0.29, 29),
        (100, 0.57, 57),
    ],
)
def test_held_out_of_a_client(size, share, held):
    # a second client with two samples, so that there is some validation sample
    client_of = np.repeat([0, 1], [size, 2])
    train, train_offsets, valid, valid_offsets = task.split_clients(client_of, share, np.random.default_rng(0))
    assert np.diff(valid_offsets).tolist() == [held, 1] and np.diff(train_offsets).tolist() == [size - held, 1]
    assert sorted([*train, *valid]) == list(range(size + 2))
    assert (client_of[train] == np.repeat([0, 1], np.diff(train_offsets))).all()


@pytest.mark.parametrize("sizes, share, test", [((4, 1, 0, 2, 10), 0.5, (2, 0, 0, 1, 5)), ((4, 1, 3), 0.1, (1, 0, 1))])
def test_held_out_samples_are_split_again(sizes, share, test):
    """FLGo's rule: of one sample nothing is taken, of more at least one."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    is_valid, valid_offsets, test_offsets = task.split_held_out(offsets, share)
    assert tuple(np.diff(test_offsets)) == test and (np.diff(valid_offsets) + np.diff(test_offsets) == sizes).all()
    for k, num_test in enumerate(test):
        own = is_valid[offsets[k] : offsets[k + 1]]
        assert not own[:num_test].any() and own[num_test:].all()


def test_clients_own_test_samples_are_taken_from_validation(with_arrays):
    """All else is as without them, and so is its place in the cache."""
    rng = np.random.default_rng(0)
    made = with_arrays(x_train=rng.normal(size=(200, 3)).astype(np.float32), y_train=rng.integers(0, 3, 200))
    made = replace(made, num_clients=4, train_holdout=0.3, standardize=True)
    plain, split = task.build_task(made), task.build_task(replace(made, local_test=0.4))
    assert plain.x_own_test is None and plain.data_sha256 == task.build_task(made).data_sha256 != split.data_sha256
    for name in ("x_train", "y_train", "train_offsets", "x_test", "y_test"):
        assert (getattr(plain, name) == getattr(split, name)).all(), name
    for k in range(4):
        offsets = [getattr(split, f"{part}_offsets")[k : k + 2] for part in ("own_test", "valid")]
        parts = [x[slice(*at)] for x, at in zip((split.x_own_test, split.x_valid), offsets, strict=True)]
        assert len(parts[0]) == int(0.4 * sum(map(len, parts)))
        held_out = plain.x_valid[plain.valid_offsets[k] : plain.valid_offsets[k + 1]]
        np.testing.assert_array_equal(np.concatenate(parts), held_out)


def test_valid_says_which_are_held_out(with_arrays):
    valid = X.ravel() < 12
    conf = with_arrays(x_train=X, y_train=Y, x_test=X, y_test=Y, client=Y, valid=valid)
    built = task.build_task(replace(conf, num_clients=3, partition=GIVEN, train_holdout=0.9))
    assert sorted(built.x_valid.ravel()) == list(range(12)) and built.valid_sizes.tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    "arrays, changes, words",
    [
        ({}, {"num_clients": 32}, ["32 clients have 32 samples", "valid_loss"]),
        ({}, {"num_clients": 33}, ["33 * 1 = 33 > 32"]),
        ({}, {"num_clients": None}, ["task.num_clients"]),
        ({}, {"partition": GIVEN}, ["client ids"]),
        ({"client": Y, "valid": Y == 1}, {"partition": GIVEN, "num_clients": 3}, ["`valid` marks all", "client 1"]),
        ({"client": Y, "valid": Y == 7}, {"partition": GIVEN, "num_clients": 3}, ["hold out none"]),
        ({"client": Y}, {"partition": GIVEN, "num_clients": 5}, ["3", "5"]),
        ({"y_train": Y - 1}, {}, ["mine.npz", "labels", "-1"]),
        ({"x_train": X[:39]}, {}, ["mine.npz", "y_train", "39"]),
        ({"x_train": X[:1], "y_train": Y[:1]}, {}, ["2 samples"]),
        ({}, {"partition": {"_target_": f"{OURS}.partition.iid", "min_samples": 0}}, ["min_samples >= 1", "0"]),
    ],
)
def test_impossible_requests(with_arrays, arrays, changes, words):
    with pytest.raises(ValueError) as error:
        task.build_task(replace(with_arrays(**{"x_train": X, "y_train": Y} | arrays), **changes))
    assert all(word in str(error.value) for word in words), error.value


def test_uint8_is_intensity_and_other_types_are_kept(with_arrays):
    x = np.array([[0], [51], [255], [102]], np.uint8)
    built = task.build_task(with_arrays(x_train=x, y_train=Y[:4]))
    np.testing.assert_allclose(np.sort(all_of(built)), [0, 0.2, 0.4, 1], rtol=1e-6)
    built = task.build_task(with_arrays(x_train=x.astype(int), y_train=Y[:4]))
    assert np.sort(all_of(built)).tolist() == [0, 51, 102, 255]


def test_regression(with_arrays):
    built = task.build_task(with_arrays(x_train=X, y_train=np.stack([Y, Y, Y / 2], axis=1)))
    assert built.num_classes is None and built.num_outputs == 3
    assert built.y_train.dtype == np.float32 and built.y_train.shape == (30, 3)


@pytest.mark.parametrize("shape", [(3,), (3, 4, 5)])
def test_standardize(with_arrays, shape):
    rng = np.random.default_rng(0)
    scale = np.array([1, 20, 0]).reshape(3, *[1] * (len(shape) - 1))
    x = 5 + scale * rng.standard_normal((200, *shape))
    conf = with_arrays(x_train=x, y_train=np.arange(200) % 2, x_test=x[:50], y_test=np.arange(50) % 2)
    raw, built = task.build_task(conf), task.build_task(replace(conf, standardize=True))
    axes = (0, *range(2, x.ndim))
    mean, std = raw.x_train.astype(float).mean(axes, keepdims=True), raw.x_train.astype(float).std(axes, keepdims=True)
    for key in ("x_train", "x_valid", "x_test"):
        expected = (getattr(raw, key) - mean) / np.where(std == 0, 1, std)
        np.testing.assert_allclose(getattr(built, key), expected, atol=1e-5)


def test_synthetic_keeps_its_clients(conf):
    source = SyntheticConf(_target_=f"{OURS}.synthetic.synthetic", num_features=4, num_classes=3)
    built = task.build_task(replace(conf, source=source, partition=GIVEN, num_clients=5))
    made = synthetic.synthetic(0, 5, 1.0, 1.0, 4, 3)
    assert built.num_clients == 5 and built.input_shape == (4,)
    assert len(built.y_train) + len(built.y_valid) + len(built.y_test) == len(made["y_train"])
    client_of = {row.tobytes(): client for row, client in zip(made["x_train"], made["client"], strict=True)}
    owners = [client_of[np.asarray(row).tobytes()] for row in built.x_train]
    assert owners == np.repeat(np.arange(5), built.train_sizes).tolist()


MODULE = """
import numpy as np

def make(num_samples, seed, scale=1):
    return {"x_train": scale * np.arange(num_samples)[:, None] + seed / 10, "y_train": np.arange(num_samples) % 2}

def evens(labels, num_clients):
    return np.arange(len(labels)) % num_clients
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_toy", raising=False)
    monkeypatch.delitem(sys.modules, "my_data", raising=False)
    (tmp_path / "my_toy.py").write_text(MODULE)
    return tmp_path / "my_toy.py"


def test_a_users_own_source_and_partition(conf, module):
    own = {"_target_": "my_toy.make", "num_samples": 30, "scale": 2}
    conf = replace(conf, source=own, partition={"_target_": "my_toy.evens", "name": "evens"}, seed=5)
    built = task.build_task(conf)
    assert built.train_sizes.tolist() == [11, 11]
    np.testing.assert_allclose(np.sort(all_of(built)), 2 * np.arange(30) + 0.5)
    # `+task.source.num_samples=30` on top of a typed source adds attributes
    typed = SourceConf(_target_="my_toy.make")
    vars(typed).update(num_samples=30, scale=2)
    assert equal(built, task.build_task(replace(conf, source=typed)))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"source": {"_target_": "my_toy.nothing"}}, ["task.source._target_", "nothing"]),
        ({"source": {"_target_": "no_such_module.f"}}, ["no_such_module"]),
        ({"source": {"_target_": "???"}}, ["task.source._target_"]),
        ({"source": {}}, ["task.source._target_"]),
        ({"source": {"_target_": "my_toy.make"}}, ["task.source", "num_samples"]),
        ({"source": {"_target_": "my_toy.make", "num_samples": 3, "scael": 1}}, ["scael"]),
        ({"partition": {"_target_": "my_toy.evens", "name": "e", "sigma": 1}}, ["task.partition", "sigma"]),
        ({"partition": IID, "num_clients": None}, ["task.num_clients"]),
        ({"source": {"_target_": f"{OURS}.sources.cifar10"}}, ["data_batch_1"]),
        ({"source": {"_target_": f"{OURS}.sources.npz"}, "path": "no.npz"}, ["task.path", "no.npz"]),
    ],
)
def test_check_task(conf, module, changes, words, monkeypatch):
    monkeypatch.chdir(module.parent)
    good = {"source": {"_target_": "my_toy.make", "num_samples": 30}}
    task.check_task(replace(conf, **good))
    with pytest.raises(ValueError) as error:
        task.check_task(replace(conf, **good | changes))
    assert all(word in str(error.value) for word in words), error.value


def test_what_makes_another_task(with_arrays, module, tmp_path):
    def content(conf):
        return task._content(conf, task._plan(conf))

    conf = with_arrays(x_train=X, y_train=Y)
    first = content(conf)
    assert content(replace(conf, cache_dir="elsewhere", name="other", data_dir="elsewhere")) == first
    skewed = DirichletConf(_target_=f"{OURS}.partition.dirichlet", name="dirichlet")
    changes = [{"seed": 1}, {"num_clients": 3}, {"train_holdout": 0.2}, {"test_holdout": 0.3}, {"standardize": True}]
    contents = [first, *(content(replace(conf, **change)) for change in [*changes, {"partition": skewed}])]
    contents.append(content(replace(conf, partition=replace(skewed, alpha=0.1))))
    conf = replace(conf, source={"_target_": "my_toy.make", "num_samples": 30})
    contents.append(content(conf))
    module.write_text(MODULE + "# changed\n")
    contents.append(content(conf))
    assert len({str(content) for content in contents}) == len(contents)


def test_integers_stay_exact_unless_they_are_standardized(with_arrays):
    ids = 2**24 + np.arange(40).reshape(40, 1)
    built = task.build_task(with_arrays(x_train=ids, y_train=Y))
    assert built.x_train.dtype == built.x_valid.dtype == built.x_test.dtype == np.int64
    assert sorted(all_of(built)) == ids.ravel().tolist()
    scaled = task.build_task(replace(with_arrays(x_train=ids, y_train=Y), standardize=True))
    assert scaled.x_train.dtype == np.float32 and abs(scaled.x_train.mean()) < 0.1


DRAWING = """
import random
import numpy as np

def make():
    return {"x_train": np.random.rand(40, 2) + random.random(), "y_train": np.arange(40) % 3}

def with_torch():
    import torch
    return {"x_train": torch.rand(40, 2).numpy(), "y_train": np.arange(40) % 3}

def split(labels, num_clients):
    return np.random.permutation(np.arange(len(labels)) % num_clients)
"""


@pytest.mark.parametrize("draws", ["", "rng = random.random()"], ids=["none", "own"])
def test_what_an_import_draws_is_no_draw_of_the_sources(conf, module, draws):
    """Whatever was imported before: the first call in a process is as the second."""
    (module.parent / "my_data.py").write_text("import random\nrandom.random()\n")
    code = ["import random", "def draw():", "    import my_data", f"    {draws or 'rng = 0'}"]
    code += [
        "    x = [[float(i + rng)] for i in range(30)]",
        "    return {'x_train': x, 'y_train': [i % 2 for i in range(30)]}",
    ]
    module.write_text("\n".join(code))
    confs = [replace(conf, source={"_target_": "my_toy.draw"}, cache=False, seed=seed) for seed in (0, 0, 1)]
    first, second, other = (task.build_task(one) for one in confs)
    assert equal(first, second) and first.source == second.source and first.data_sha256 == second.data_sha256
    assert (first.source == other.source) == (not draws) or first.source.endswith(":")
    assert first.source.endswith(":") == bool(draws)


def test_what_a_source_and_a_partition_draw_follows_the_tasks_seed(conf, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "drawing_task", raising=False)
    (tmp_path / "drawing_task.py").write_text(DRAWING)
    split = {"_target_": "drawing_task.split", "name": "split"}
    for i, source in enumerate(("make", "with_torch")):
        own = replace(conf, source={"_target_": f"drawing_task.{source}"}, partition=split)

        def built(name, seed, own=own, i=i):
            np.random.seed(len(name))  # whatever was drawn before
            return task.build_task(replace(own, seed=seed, cache_dir=str(tmp_path / f"{name}{i}")))

        np.random.seed(1)
        expected = np.random.rand()
        first = built("a", 0)
        assert equal(first, built("another", 0)) and not equal(first, built("b", 1))
        np.random.seed(1)
        built("c", 0)
        np.random.seed(1)
        assert np.random.rand() == expected


def test_a_source_that_imports_torch_first_is_seeded_all_the_same(conf, tmp_path):
    (tmp_path / "drawing_task.py").write_text(DRAWING)
    code = (
        "import sys, dataclasses\n"
        "from flgo_hydra.config.task import PartitionConf, TaskConf\n"
        "from flgo_hydra.federated.data import task\n"
        f"iid = PartitionConf('{OURS}.partition.iid', 'iid')\n"
        "conf = TaskConf('t', {'_target_': 'drawing_task.with_torch'}, iid, num_clients=2, cache_dir=sys.argv[1])\n"
        "assert 'torch' not in sys.modules\n"
        "print(task.build_task(conf).x_train.sum())\n"
    )
    sums = [
        subprocess.run([sys.executable, "-c", code, name], cwd=tmp_path, capture_output=True, text=True, check=True)
        for name in ("a", "b")
    ]
    assert sums[0].stdout == sums[1].stdout != ""


def test_the_example_of_the_docstring(conf, tmp_path, module):
    text = sources.__doc__
    code = re.search(r"my_data\.py.*?:\n\n(.*?)\n\nRun it", text, re.DOTALL)
    (tmp_path / "my_data.py").write_text(textwrap.dedent(code[1]))
    assert "task.source._target_=my_data.moons +task.source.noise=0.2" in text
    source = {"_target_": "my_data.moons", "noise": 0.2}
    built = task.build_task(replace(conf, source=source, num_clients=10))
    assert built.num_clients == 10 and built.input_shape == (2,) and built.num_classes == 2
    assert len(all_of(built)) == 800


def test_digits_and_torch_does_not_warn(conf):
    torch = pytest.importorskip("torch")
    conf = replace(conf, source=SourceConf(_target_=f"{OURS}.sources.digits"), num_clients=20)
    for _ in range(2):  # built, then loaded
        built = task.build_task(conf)
        assert built.input_shape == (1, 8, 8) and built.num_classes == 10 and built.num_clients == 20
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.from_numpy(built.x_train)
    assert len(built.y_test) == 359 and partition.takes_ids(partition.given)
