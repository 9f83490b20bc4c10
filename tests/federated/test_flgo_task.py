"""FLGo's task folders: same samples at the same clients."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from flgo_hydra.federated.data.task import build_task, check_task

PARTITION = [[4, 0, 9], [1, 2], [7, 3, 5, 6, 8]]


def write_folder(folder, partition=PARTITION, benchmark="bench_mine", **more):
    """As FLGo 0.4.4 writes it."""
    names = [f"Client{k:02d}" for k in range(len(partition))]
    folder.mkdir()
    (folder / "info").write_text(json.dumps({"benchmark": benchmark, "scene": "horizontal", "num_clients": len(names)}))
    clients = {name: {"data": own} for name, own in zip(names, partition, strict=True)}
    (folder / "data.json").write_text(json.dumps({"client_names": names, **clients, **more}))


def write_idx(path, array):
    with gzip.open(path, "wb") as file:
        file.write(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes())


@pytest.fixture
def arrays(empty_folder):
    """Ten samples: number i is (i, -i), of class i % 2."""
    i = np.arange(10)
    given = {"x_train": np.stack([i, -i], 1).astype(float), "y_train": i % 2}
    given |= {"x_test": given["x_train"][:4] + 0.5, "y_test": given["y_train"][:4]}
    np.savez("data.npz", **given)
    return given


def samples_by_client(task):
    """The first feature of each client's training and validation samples, sorted."""
    parts = []
    for k in range(task.num_clients):
        train = task.x_train[task.train_offsets[k] : task.train_offsets[k + 1]]
        valid = task.x_valid[task.valid_offsets[k] : task.valid_offsets[k + 1]]
        parts.append(sorted(np.concatenate([train, valid])[:, 0].tolist()))
    return parts


def test_every_client_keeps_its_samples(make_conf, empty_folder, arrays):
    write_folder(empty_folder / "mine")
    task = build_task(make_conf("task=flgo", "task.path=mine", "task.source.data=data.npz").task)
    assert samples_by_client(task) == [sorted(own) for own in PARTITION]
    assert task.y_train.tolist() == [int(x) % 2 for x in task.x_train[:, 0]]
    assert task.x_test[:, 0].tolist() == [0.5, 1.5, 2.5, 3.5]


def test_a_changed_partition_is_another_task(make_conf, empty_folder, arrays):
    conf = make_conf("task=flgo", "task.path=mine", "task.source.data=data.npz").task
    write_folder(empty_folder / "mine")
    build_task(conf)
    for file in ("info", "data.json"):
        (empty_folder / "mine" / file).unlink()
    (empty_folder / "mine").rmdir()
    write_folder(empty_folder / "mine", [[0, 1, 2], [3, 4, 5]])
    assert samples_by_client(build_task(conf)) == [[0, 1, 2], [3, 4, 5]]


def test_a_benchmark_of_flgo_finds_our_source_and_is_normalised_as_there(make_conf, empty_folder):
    rng = np.random.default_rng(0)
    (empty_folder / "data").mkdir()
    images = rng.integers(0, 256, (10, 28, 28), dtype=np.uint8)
    labels = (np.arange(10) % 10).astype(np.uint8)
    for name, array in (("train-images-idx3", images), ("train-labels-idx1", labels)):
        write_idx(empty_folder / "data" / f"{name}-ubyte.gz", array)
        write_idx(empty_folder / "data" / f"{name.replace('train', 't10k')}-ubyte.gz", array[:3])
    write_folder(empty_folder / "mnist", benchmark="flgo.benchmark.mnist_classification")
    task = build_task(make_conf("task=flgo", "task.path=mnist").task)
    for x, y in zip(task.x_train, task.y_train, strict=True):  # the label is the sample's index
        assert x == pytest.approx((images[y][None] / 255 - 0.1307) / 0.3081, abs=1e-5)
    assert task.train_sizes.tolist() == [2, 1, 4]


@pytest.mark.parametrize(
    "benchmark, partition, arguments, says",
    [
        ("flgo.benchmark.sst2_classification", PARTITION, [], "'sst2_classification', whose data are not among our"),
        ("bench_mine", PARTITION, ["task.source.data=absent.npz"], "`task.source.data=absent.npz`: there is no such"),
        ("bench_mine", [[0, 10], [1]], ["task.source.data=data.npz"], "samples 0 to 10, but the training data of"),
        ("bench_mine", [[0, 1], []], ["task.source.data=data.npz"], "client 'Client01' has none"),
        ("flgo.benchmark.mnist_classification", PARTITION, [], "MNIST"),
    ],
)
def test_what_is_missing_is_said_before_anything_trains(command, arrays, benchmark, partition, arguments, says):
    write_folder(Path("mine"), partition, benchmark)
    done = command("task=flgo", "task.path=mine", *arguments)
    assert done.status == 1 and says in done.err and "Traceback" not in done.err


@pytest.mark.parametrize("path", ["absent", "."])
def test_a_folder_that_is_none_of_flgo(make_conf, empty_folder, path):
    with pytest.raises(ValueError, match="must be a folder that FLGo's gen_task has written"):
        check_task(make_conf("task=flgo", f"task.path={path}").task)


def test_a_vertical_task_and_perturbed_inputs_are_refused(make_conf, empty_folder, arrays):
    conf = make_conf("task=flgo", "task.path=mine", "task.source.data=data.npz").task
    write_folder(empty_folder / "mine", local_perturbation=[[0.1]] * 3)
    with pytest.raises(ValueError, match="GaussianPerturbationPartitioner"):
        build_task(conf)
    (empty_folder / "mine" / "info").write_text(json.dumps({"benchmark": "bench_mine", "scene": "vertical"}))
    with pytest.raises(ValueError, match="horizontal scene, but its `info` says 'vertical'"):
        build_task(conf)
