"""FLGo's task folders as tasks of ours: the same samples at the same clients, index for index.

FLGo writes a folder with `info` (benchmark, scene, partitioner, as JSON) and `data.json`: the clients' names, and for
each of them the indices of its samples in the benchmark's training data. The samples themselves are not in it: they
come from the source of ours that has the same data in the same order (`_SOURCES`), or, for other benchmarks, from an
.npz file with the benchmark's own arrays (`task.source.data`).

Images are normalised as FLGo's benchmarks do it. What FLGo draws when it starts a run (which of a client's samples are
held out for validation) is not in the folder; here `task.train_holdout` and `task.seed` decide it.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flgo_hydra.federated import sources
from flgo_hydra.federated.sources import Arrays, Input, reads
from flgo_hydra.record.schema import Defect, parse_object, read_bytes

# benchmark: source, mean and standard deviation of each channel
_CIFAR = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.262)
_SOURCES: dict[str, tuple[Any, tuple[float, ...], tuple[float, ...]]] = {
    "mnist_classification": (sources.mnist, (0.1307,), (0.3081,)),
    "fashion_classification": (sources.fashion_mnist, (0.2859,), (0.3530,)),
    "cifar10_classification": (sources.cifar10, *_CIFAR),
    "cifar100_classification": (sources.cifar100, *_CIFAR),
}


def _find(path: str | None, data_dir: str, data: str | None) -> list[Input]:
    benchmark, _ = _read_info(path)
    source, arguments = _find_source(benchmark, data_dir, data)
    assert path is not None
    return [Path(path, "data.json"), Path(path, "info"), *sources.find_inputs(source, arguments)]


@reads(_find)
def flgo(path: str | None, data_dir: str, data: str | None = None) -> Arrays:
    """A task folder of FLGo.

    Args:
        path: the folder, with `data.json` and `info`.
        data: an .npz file with the benchmark's x_train, y_train, x_test and y_test; None: by the benchmark.
    Returns:
        the clients' samples one client after another, with the client's number for each.
    """
    benchmark, scene = _read_info(path)
    if scene not in ("horizontal", "unknown"):
        raise ValueError(f"{path} must be a task of FLGo's horizontal scene, but its `info` says {scene!r}.")
    source, arguments = _find_source(benchmark, data_dir, data)
    assert path is not None
    indices = _read_partition(Path(path))
    arrays = source(**{key: value for key, value in arguments.items() if value is not None})
    if data is None:
        _, mean, std = _SOURCES[benchmark]
        arrays = {key: _normalize(a, mean, std) if key.startswith("x") else a for key, a in arrays.items()}
    chosen = np.concatenate(indices)
    num_samples = len(arrays["x_train"])
    if chosen.min() < 0 or chosen.max() >= num_samples:
        raise ValueError(
            f"{path}/data.json gives clients the samples {chosen.min()} to {chosen.max()}, but the training data of "
            f"{data or benchmark} have {num_samples}. These are other data than those that FLGo split."
        )
    if "x_test" not in arrays:
        raise ValueError(f"{data} must have x_test and y_test: all of x_train belongs to the clients of {path}.")
    clients = np.repeat(np.arange(len(indices)), [len(own) for own in indices])
    return {
        "x_train": arrays["x_train"][chosen],
        "y_train": arrays["y_train"][chosen],
        "x_test": arrays["x_test"],
        "y_test": arrays["y_test"],
        "client": clients,
    }


def is_task_folder(path: str) -> bool:
    """Whether the folder is one that FLGo wrote."""
    return Path(path, "data.json").is_file() and Path(path, "info").is_file()


def task_sha256(path: str | None) -> str:
    """A hash of what FLGo has written into a task folder: which samples are whose. The samples lie elsewhere.

    Raises:
        ValueError: it is no task folder.
    """
    _read_info(path)
    assert path is not None
    content = hashlib.sha256()
    for name in ("info", "data.json"):
        content.update(_read(Path(path, name)))
    return content.hexdigest()


def read_benchmark(path: str) -> str:
    """The benchmark that a task folder was made with, as the module that FLGo imports."""
    return str(_read_json(Path(path, "info")).get("benchmark", ""))


def _read_info(path: str | None) -> tuple[str, str]:
    """The benchmark's last name and the scene."""
    if path is None or not is_task_folder(path):
        raise ValueError(
            f"`task.path` must be a folder that FLGo's gen_task has written, with data.json and info, but got {path}"
            f"{'' if path is None else f', seen from {Path.cwd()}'}."
        )
    info = _read_json(Path(path, "info"))
    return str(info.get("benchmark", "")).rpartition(".")[2], str(info.get("scene", "unknown"))


def _find_source(benchmark: str, data_dir: str, data: str | None) -> tuple[Any, dict[str, Any]]:
    """The source with the samples, and its arguments."""
    if data is not None:
        if not Path(data).is_file():
            raise ValueError(f"`task.source.data={data}`: there is no such file in {Path.cwd()}.")
        return sources.npz, {"path": data}
    if benchmark not in _SOURCES:
        raise ValueError(
            f"The task was made with FLGo's benchmark {benchmark!r}, whose data are not among our sources (there are "
            f"{', '.join(_SOURCES)}). Write its arrays to a file, np.savez('data.npz', x_train=..., y_train=..., "
            "x_test=..., y_test=...) in the benchmark's order, and set `task.source.data=data.npz`; or run it with "
            "`algorithm=flgo`, which reads the folder with FLGo."
        )
    return _SOURCES[benchmark][0], {"data_dir": data_dir}


def _read_partition(path: Path) -> list[NDArray[np.int64]]:
    """Sample indices of each client, in the order of the clients' names."""
    content = _read_json(path / "data.json")
    names = content.get("client_names")
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}/data.json must list `client_names`, as FLGo's horizontal tasks do.")
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{path}/data.json must list each client in `client_names` once, by a text.")
    if content.get("local_perturbation") is not None:
        raise ValueError(
            f"{path}/data.json perturbs the clients' inputs (GaussianPerturbationPartitioner), which is done by FLGo "
            "only: run it with `algorithm=flgo`."
        )
    indices = []
    for name in names:
        own = content.get(name, {}).get("data") if isinstance(content.get(name), dict) else None
        if not isinstance(own, list) or not own or not all(type(i) is int and abs(i) < 2**62 for i in own):
            raise ValueError(
                f"{path}/data.json must give each client the indices of its samples, at least one, but client "
                f"{name!r} has {'none' if own is None or own == [] else 'something else'}."
            )
        indices.append(np.array(own, np.int64))
    return indices


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return parse_object(path, _read(path))
    except Defect as defect:
        raise ValueError(f"{path} must be a JSON object as FLGo writes it, but it {defect.why}.") from None


def _read(path: Path) -> bytes:
    try:
        content = read_bytes(path)
    except Defect as defect:
        raise ValueError(f"{path} must be a file that FLGo has written, but it {defect.why}.") from None
    if content is None:
        raise ValueError(f"{path} is gone.")
    return content


def _normalize(images: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    shape = (1, -1, 1, 1)
    scaled = images.astype(np.float32) / np.float32(255)
    normal: NDArray[np.float32] = scaled - np.array(mean, np.float32).reshape(shape)
    normal /= np.array(std, np.float32).reshape(shape)
    return normal
