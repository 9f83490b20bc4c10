"""A task: samples, which client has them, and which are for training, validation and test.

`build_task` calls the source, holds out test samples if it has none of its own, lets the partition name each training
sample's client, holds out a part of each client's samples for valid_loss, and keeps the result in the task cache.
Everything is decided by `task.seed`.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flgo_hydra import own_code, reference
from flgo_hydra.captured import hash_of
from flgo_hydra.config.laws import hold
from flgo_hydra.config.task import TaskConf
from flgo_hydra.federated import partition, sources
from flgo_hydra.federated.data import dependencies, samples, task_cache
from flgo_hydra.federated.randomness import generators_kept, generators_now, seed_all, seed_at

Array = NDArray[Any]
Ints = NDArray[np.int64]

# Raise it when this code builds another task from the same config: cached ones are then left alone.
FORMAT = 5

# Addresses of the generators [task.seed, purpose]. Not 0, since [seed, 0] is [seed]; and far from the small numbers
# that training uses with its own seed, so that equal seeds do not draw equal numbers.
TEST_SPLIT, PARTITION, VALID_SPLIT = 101, 102, 103
# Of the process's own generators, while a user's source and partition run.
SOURCE_DRAWS, PARTITION_DRAWS = 104, 105


@dataclass(frozen=True, eq=False)
class Task:
    """What a federated run learns from. Arrays are mapped from the task cache; nobody writes to them.

    Attributes:
        name: as in results.
        x_train: inputs, client after client, float32 or, where the source has integers, int64, shape (n, *input_shape).
        y_train: labels 0..num_classes-1, int64, shape (n,); of a regression targets, float32, shape (n, num_outputs).
        train_offsets: client k has the training samples train_offsets[k] to train_offsets[k + 1] - 1 (at least
            one); int64, shape (num_clients + 1,).
        x_valid, y_valid, valid_offsets: the clients' validation samples likewise; a client may have none, not all.
        x_test, y_test: the test samples, which belong to no client.
        x_own_test, y_own_test, own_test_offsets: the clients' own test samples likewise; None: there are none.
        num_classes: one more than the largest label; None of a regression.
        data_sha256: of the content of all these arrays, wherever they came from.
        source: a hash of which source was called and how, a colon, and the hash of what it returned: tasks that split
            one source in different ways share both.
    """

    name: str
    x_train: Array
    y_train: Array
    train_offsets: Ints
    x_valid: Array
    y_valid: Array
    valid_offsets: Ints
    x_test: Array
    y_test: Array
    num_classes: int | None
    data_sha256: str = ""
    source: str = ""
    x_own_test: Array | None = None
    y_own_test: Array | None = None
    own_test_offsets: Ints | None = None

    @property
    def num_clients(self) -> int:
        return len(self.train_offsets) - 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample's input."""
        return tuple(self.x_train.shape[1:])

    @property
    def num_outputs(self) -> int:
        """Values that a model returns for a sample: classes, or a regression's targets."""
        return int(self.y_train.shape[1]) if self.num_classes is None else self.num_classes

    @property
    def train_sizes(self) -> Ints:
        """Number of each client's training samples, shape (num_clients,)."""
        return np.diff(self.train_offsets)

    @property
    def valid_sizes(self) -> Ints:
        """Number of each client's validation samples, shape (num_clients,)."""
        return np.diff(self.valid_offsets)


@dataclass(frozen=True)
class _Plan:
    """A config with its references resolved: which functions are called, and with which of their own parameters."""

    source: Callable[..., Any]
    arguments: dict[str, Any]
    inputs: list[sources.Input]
    partition: Callable[..., Any]
    params: dict[str, Any]
    min_samples: int


def check_task(conf: TaskConf) -> None:
    """Raises ValueError for what can be known to be wrong without reading data: references, parameters, files."""
    _plan(conf)


def build_task(conf: TaskConf) -> Task:
    """Returns the task that `conf` describes, from the task cache or, the first time, from its source."""
    plan = _plan(conf)
    folder = task_cache.find_folder(conf.cache_dir) if conf.cache else None
    build = functools.partial(_build, conf, plan)
    made = task_cache.load_or_build(folder, conf.name, _content(conf, plan), build, _arrays(conf))
    targets = [array for key, array in made.arrays.items() if key.startswith("y_") and len(array)]
    is_regression = targets[0].dtype.kind == "f"
    num_classes = None if is_regression else max(int(labels.max()) for labels in targets) + 1
    source = f"{_source_key(plan)}:{made.source_sha256}"
    return Task(name=conf.name, num_classes=num_classes, data_sha256=made.sha256, source=source, **made.arrays)


def _source_key(plan: _Plan) -> str:
    """What all tasks of one source have in common, however they split it: a hash of the call, wherever files lie."""
    name = f"{plan.source.__module__}.{getattr(plan.source, '__qualname__', type(plan.source).__qualname__)}"
    if plan.source.__module__ in ("__main__", "__mp_main__") or "<" in name:  # of a program, where names are no names
        name = str(_identify(plan.source))
    arguments = {key: value for key, value in plan.arguments.items() if key != "data_dir"}
    return hashlib.sha256(json.dumps([name, arguments], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _plan(conf: TaskConf) -> _Plan:
    source, given = _unpack(conf.source, "task.source")
    offered = {key: getattr(conf, key) for key in ("data_dir", "path", "seed", "num_clients")}
    arguments = _bind(source, given, offered, "task.source")
    split, params = _unpack(conf.partition, "task.partition")
    params.pop("name", None)
    min_samples = params.pop("min_samples", 1)
    hold(isinstance(min_samples, int) and min_samples >= 1, "task.partition.min_samples >= 1", min_samples)
    nothing = dict.fromkeys(("labels", "num_clients", "rng", "client", "min_samples"))
    _bind(split, params, nothing, "task.partition")
    partition.require_num_clients(split, conf.num_clients)
    return _Plan(source, arguments, sources.find_inputs(source, arguments), split, params, min_samples)


def _unpack(choice: object, key: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Returns the function that a choice names and the choice's other values."""
    # vars, not dataclasses.fields: `+task.source.noise=0.1` adds an attribute to a SourceConf.
    values = dict(choice) if isinstance(choice, Mapping) else dict(vars(choice))
    target = values.pop("_target_", None)
    if not isinstance(target, str) or target == "???":
        raise ValueError(
            f"`{key}._target_` must name a function as package.module.name, but got {target!r}. "
            f"Set `{key}._target_=my_module.my_function`."
        )
    return reference.load(target, f"{key}._target_"), values


def _bind(
    function: Callable[..., Any], given: Mapping[str, Any], offered: Mapping[str, Any], key: str
) -> dict[str, Any]:
    """Returns the arguments with which `reference.call` would call the function, or raises its errors."""

    @functools.wraps(function, updated=())  # a stand-in with the function's signature
    def arguments(**arguments: Any) -> dict[str, Any]:
        return arguments

    bound: dict[str, Any] = reference.call(arguments, given, offered, key)
    return bound


def _content(conf: TaskConf, plan: _Plan) -> dict[str, Any]:
    """Returns what decides a task's arrays beside the content of files, as JSON."""
    return {
        "format": FORMAT,
        "numpy": np.__version__,  # its generators' streams may change between versions
        "source": _identify(plan.source),
        "arguments": plan.arguments,
        "inputs": [str(item.resolve()) if isinstance(item, Path) else item for item in plan.inputs],
        "partition": _identify(plan.partition),
        "params": plan.params,
        "min_samples": plan.min_samples,
        "split": [conf.num_clients, conf.train_holdout, conf.test_holdout, conf.standardize, conf.seed],
        **({"local_test": conf.local_test} if conf.local_test else {}),
    }


def _identify(function: Callable[..., Any]) -> list[Any]:
    """Returns a function's name, its file with the hash of the text, what it captured, and the user's own modules that
    it imports: edited code builds another task."""
    module = function.__module__
    name = f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    file = getattr(sys.modules.get(module), "__file__", None)
    text = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    if module.startswith("flgo_hydra."):
        return [name, text]
    if module in ("__main__", "__mp_main__") or "<locals>" in name:  # a program's, that has another file in a worker
        return [name, hash_of(function)]
    return [name, file, text, hash_of(function), own_code.hash_files([name])]


def _arrays(conf: TaskConf) -> tuple[str, ...]:
    """What an entry of the cache must have: the arrays of a `Task`."""
    of_clients = ("train", "valid", *(["own_test"] if conf.local_test else []))
    return (
        *(f"{kind}_{part}" for part in (*of_clients, "test") for kind in ("x", "y")),
        *(f"{part}_offsets" for part in of_clients),
    )


_depended: dict[Any, dependencies.Record] = {}
"""What each source and partition of this process has depended on: a source may keep what it has read once."""


def _build(conf: TaskConf, plan: _Plan) -> tuple[dict[str, Array], dict[str, Any], str]:
    """Makes the arrays of a `Task` by name. Returns them with the state of what they depend on, and the hash of what
    the source returned."""
    key = (plan.source, plan.partition)
    with dependencies.recording() as record:
        arrays, source_sha256 = _make(conf, plan)
    for other in (_depended.get(key), dependencies.files_record(i for i in plan.inputs if isinstance(i, Path))):
        if other is not None:
            record.update(other)
    record.files |= dependencies.named_files(*key)
    _depended[key] = record
    return arrays, dependencies.state_of(record), source_sha256


def _make(conf: TaskConf, plan: _Plan) -> tuple[dict[str, Array], str]:
    """Calls the source and splits what it returns. Returns a `Task`'s arrays by name, and the hash of what it split."""
    where = str(conf.path) if "path" in plan.arguments and conf.path else f"task.source={_identify(plan.source)[0]}"

    def call_source() -> tuple[Any, bool]:
        before = generators_now()
        returned = plan.source(**plan.arguments)
        return returned, generators_now() != before

    returned, draws = _seeded(conf, SOURCE_DRAWS, call_source)
    if draws:  # or what it imports has drawn, which it does once in a process: the second call tells
        returned, draws = _seeded(conf, SOURCE_DRAWS, call_source)
    given = samples.check(returned, where)
    whole = {"x_train": given.x_train, "y_train": given.y_train, "x_test": given.x_test, "y_test": given.y_test}
    whole |= {"client": given.client, "valid": given.valid}
    # What a source has drawn follows the task's seed, and is another for each.
    there = {key: array for key, array in whole.items() if array is not None}
    source_sha256 = "" if draws else task_cache.hash_arrays(there)
    n = len(given.x_train)
    keep: Ints = np.arange(n)
    if given.x_test is not None and given.y_test is not None:
        x_test, y_test = given.x_test.copy(), given.y_test  # standardize writes to it; a user's source may keep its own
    else:
        if n < 2:
            raise ValueError(f"{where} must have at least 2 samples for one to be held out for test, but it has {n}.")
        held = np.zeros(n, bool)
        held[_rng(conf, TEST_SPLIT).permutation(n)[: _num_held(np.array(n), conf.test_holdout)]] = True
        x_test, y_test, keep = given.x_train[held], given.y_train[held], np.flatnonzero(~held)
    client_of = _seeded(
        conf,
        PARTITION_DRAWS,
        lambda: partition.assign(
            plan.partition,
            plan.params,
            given.y_train[keep],
            conf.num_clients,
            _rng(conf, PARTITION),
            None if given.client is None else given.client[keep],
            plan.min_samples,
        ),
    )
    valid = None if given.valid is None else given.valid[keep]
    train, train_offsets, held_out, valid_offsets = split_clients(
        client_of, conf.train_holdout, _rng(conf, VALID_SPLIT), valid
    )
    is_valid, valid_offsets, own_test_offsets = split_held_out(valid_offsets, conf.local_test)
    train, held_out = keep[train], keep[held_out]
    own_test, held_out = held_out[~is_valid], held_out[is_valid]
    arrays = {
        "x_train": _scale(given.x_train[train], conf.standardize),
        "y_train": given.y_train[train],
        "train_offsets": train_offsets,
        "x_valid": _scale(given.x_train[held_out], conf.standardize),
        "y_valid": given.y_train[held_out],
        "valid_offsets": valid_offsets,
        "x_test": _scale(x_test, conf.standardize),
        "y_test": y_test,
    }
    if conf.local_test:
        arrays |= {
            "x_own_test": _scale(given.x_train[own_test], conf.standardize),
            "y_own_test": given.y_train[own_test],
            "own_test_offsets": own_test_offsets,
        }
    if conf.standardize:
        standardize(*(array for key, array in arrays.items() if key.startswith("x_")))
    return arrays, source_sha256


def split_clients(
    client_of: Ints, holdout: float, rng: np.random.Generator, valid: NDArray[np.bool_] | None = None
) -> tuple[Ints, Ints, Ints, Ints]:
    """Holds out samples of each client for validation, at random or as `valid` says.

    A client with n >= 2 samples keeps max(int(n * holdout), 1) out of training, one with a single sample none (FLGo's
    rule).

    Args:
        client_of: each sample's client, shape (n,); every client occurs.
        valid: whether a sample is for validation, shape (n,).
    Returns:
        indices of the training samples, client after client; their offsets; the validation samples and theirs.
    """
    num_clients = int(client_of.max()) + 1
    order = np.lexsort((rng.random(len(client_of)), client_of))
    owner = client_of[order]
    sizes = np.bincount(client_of, minlength=num_clients)
    if valid is None:
        rank = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[owner]
        is_held = rank < _num_held(sizes, holdout)[owner]
    else:
        is_held = valid[order]
    num_valid = np.bincount(owner[is_held], minlength=num_clients)
    if num_valid.sum() == 0:
        raise ValueError(
            f"Some client must have validation samples, or there is no valid_loss, but {num_clients} clients have "
            f"{len(client_of)} samples and hold out none. Lower `task.num_clients`"
            f"{'' if valid is None else ' or mark samples in `valid`'}: a client holds out a sample when it has two."
        )
    if (num_valid == sizes).any():
        client = int(np.argmax(num_valid == sizes))
        raise ValueError(
            f"Every client must have a training sample, but `valid` marks all {sizes[client]} of client {client}'s."
        )
    offsets = [np.concatenate(([0], np.cumsum(counts))).astype(np.int64) for counts in (sizes - num_valid, num_valid)]
    return order[~is_held], offsets[0], order[is_held], offsets[1]


def split_held_out(offsets: Ints, share: float) -> tuple[NDArray[np.bool_], Ints, Ints]:
    """Splits what each client holds out, which lies in random order, into validation and its own test samples.

    Of v >= 2 samples max(int(v * share), 1) are for test, of a single one none (FLGo's rule).

    Args:
        offsets: client k holds the samples offsets[k] to offsets[k + 1] - 1.
        share: 0: all are for validation.
    Returns:
        whether a sample is for validation; offsets of these; offsets of the others.
    """
    sizes = np.diff(offsets)
    num_test = np.where(sizes >= 2, _num_held(sizes, share), 0) if share else np.zeros_like(sizes)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    is_valid = np.arange(offsets[-1]) - offsets[owner] >= num_test[owner]
    ends = [np.concatenate(([0], np.cumsum(counts))).astype(np.int64) for counts in (sizes - num_test, num_test)]
    return is_valid, ends[0], ends[1]


def _num_held(sizes: Ints, share: float) -> Ints:
    # 0.29 * 100 is 28.999999999999996 to a computer; a person means 29.
    held: Ints = np.minimum(np.maximum(np.floor(sizes * share + 1e-9).astype(np.int64), 1), sizes - 1)
    return held


def _rng(conf: TaskConf, purpose: int) -> np.random.Generator:
    return np.random.default_rng([conf.seed, purpose])


def _seeded(conf: TaskConf, purpose: int, call: Callable[[], Any]) -> Any:
    """Calls a user's function with the process's generators seeded for it, and leaves them as they were."""
    value = seed_at([conf.seed, purpose])
    had_torch = "torch" in sys.modules
    with generators_kept():
        seed_all(value)
        returned = call()
        if "torch" in sys.modules and not had_torch:  # it imported torch, whose generators have no seed yet
            seed_all(value)
            returned = call()
    return returned


def _scale(x: Array, is_float: bool) -> Array:
    if x.dtype == np.uint8:
        return x.astype(np.float32) / np.float32(255)
    return x.astype(np.float32, copy=False) if is_float else x


def standardize(x_train: NDArray[np.float32], *others: NDArray[np.float32]) -> None:
    """Subtracts, in place, the training samples' mean and divides by their standard deviation, channel by channel.

    Channels are axis 1 (of images) or features; a channel that never varies is only centred.
    """
    axes = (0, *range(2, x_train.ndim))
    shape = (1, -1, *[1] * (x_train.ndim - 2))
    mean = x_train.mean(axis=axes, dtype=np.float64)
    x_train -= mean.reshape(shape).astype(np.float32)
    # Centred first, and by part, since float64 copies of all images would not fit everywhere.
    square = sum(np.square(part, dtype=np.float64).sum(axis=axes) for part in np.array_split(x_train, 64))
    std = np.sqrt(square / (x_train.size / x_train.shape[1]))
    std[std == 0] = 1
    x_train /= std.reshape(shape).astype(np.float32)
    for x in others:
        x -= mean.reshape(shape).astype(np.float32)
        x /= std.reshape(shape).astype(np.float32)
