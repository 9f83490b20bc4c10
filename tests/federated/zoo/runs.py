"""Runs of the zoo: as a job makes them, from a composed config to the server's state, and the plain loop beside them.

The config says so many rounds that every faster form pays; the run is asked to stop after a few, as a launcher asks.
"""

import copy
import functools
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from flgo_hydra import app, compose, reference
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.algorithm.build import build_algorithm
from flgo_hydra.federated.data.task import Task, build_task
from flgo_hydra.federated.fit import build_fitting_model
from flgo_hydra.federated.randomness import Purpose, generators_kept, seed_all, torch_seed
from flgo_hydra.federated.training import LocalWork
from flgo_hydra.job import fused as fused_jobs
from flgo_hydra.job import native, preparation
from flgo_hydra.launch import reporter

from . import plain_loop
from .plain_loop import Arrays, End

SIZES = {
    "ragged": (8, 6, 12, 5),  # in fours: whole batches, and partial ones of two and of one
    "pairs": (8, 6, 12, 7),  # no batch of one, which batch statistics cannot do with
    "even": (8, 8, 8, 8),  # all batches whole
}
NUM_ROUNDS = 2
PAYING_ROUNDS = 2000
"""of the config: 100 steps or more of every batch size, and more than 3000 steps in all"""
ENGINES = {
    "auto": {},
    "plain": {"backend": "loop", "compile": "off"},
    "recorded": {"backend": "loop"},
    "vmap": {"backend": "vmap"},
    "vmap, plain steps": {"backend": "vmap", "compile": "off"},
}
POINTS = ({}, {"lr": 0.03, "seed": 1})
"""of runs that are fused, or not: the first is the one that runs alone"""


@dataclass(frozen=True)
class Case:
    """A model and an algorithm in a federation."""

    name: str
    build: Callable[..., nn.Module]
    """the model, called as `model._target_` is"""
    source: Callable[[tuple[int, ...]], dict[str, np.ndarray]]
    """the training samples of so many clients, and test samples, as a task's source returns them"""
    sizes: str = "ragged"
    algorithm: type[Algorithm] | None = None
    """None: FedAvg"""
    numbers: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    is_one_model: bool = False
    """the plain loop has one working model, since it keeps something in Python or cannot be copied"""
    before: Callable[[], None] | None = None
    """called before a run: what the model keeps outside itself begins anew"""

    def __hash__(self) -> int:
        return hash((self.name, self.sizes))


@functools.cache
def _composed(algorithm: str) -> DictConfig:
    """`config.yaml` with a task and a model of the user's own."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    compose.prepare()
    GlobalHydra.instance().clear()
    base = {k: v for k, v in compose.hydra_main_arguments().items() if k == "version_base"}
    own = ["task=custom", "task/partition=given", "task.num_clients=null", "model=custom", f"algorithm={algorithm}"]
    with initialize_config_dir(config_dir=str(conf_dir()), **base):
        return hydra_compose("config", overrides=own)


def config(case: Case, dtype: str, engine: str, **options: Any) -> DictConfig:
    """The composed config of a run."""
    name = "".join(c if c.isalnum() else "_" for c in case.name)
    cfg = copy.deepcopy(_composed("fedavg" if case.algorithm is None else "custom"))
    targets = {"task.source": f"source_{name}_{case.sizes}", "model": f"model_{name}"}
    reference.give(f"{reference.GIVEN}.{targets['model']}", case.build)
    reference.give(f"{reference.GIVEN}.{targets['task.source']}", _source(case))
    if case.algorithm is not None:
        targets["algorithm"] = f"algorithm_{name}"
        reference.give(f"{reference.GIVEN}.{targets['algorithm']}", case.algorithm)
        for key, value in case.numbers.items():
            OmegaConf.update(cfg, f"algorithm.{key}", value, force_add=True)
    for key, target in targets.items():
        OmegaConf.update(cfg, f"{key}._target_", f"{reference.GIVEN}.{target}")
    few = {"num_rounds": PAYING_ROUNDS, "proportion": 0.75, "batch_size": 4, "num_epochs": 2, "lr": 0.1}
    engines = {f"engine.{key}": value for key, value in ENGINES[engine].items()}
    for key, value in {**few, "device": "cpu", "dtype": dtype, **engines, **case.options, **options}.items():
        OmegaConf.update(cfg, key, value)
    return cfg


def _source(case: Case) -> Callable[[], dict[str, np.ndarray]]:
    sizes = SIZES[case.sizes]

    def source() -> dict[str, np.ndarray]:
        """The last sample of each client is for validation."""
        found = case.source(tuple(n + 1 for n in sizes))
        ends = np.cumsum([n + 1 for n in sizes]) - 1
        client = np.repeat(np.arange(len(sizes)), [n + 1 for n in sizes])
        return {**found, "client": client, "valid": np.isin(np.arange(len(client)), ends)}

    # The task cache tells functions apart by their names.
    source.__qualname__ = f"zoo.{case.source.__name__}.{case.sizes}"
    return source


# Ours.


@dataclass
class Ran:
    """A run as the app leaves it."""

    end: End
    data: Any
    text: str = ""
    """why it did not run as it was asked to"""


def alone(
    case: Case,
    folder: Path,
    monkeypatch: Any,
    dtype: str = "float64",
    engine: str = "auto",
    num_rounds: int = NUM_ROUNDS,
    **options: Any,
) -> Ran:
    """Runs as a single job does, in this process.

    Raises:
        what the job would have failed with.
    """
    if case.before is not None:
        case.before()
    return _alone(config(case, dtype, engine, **options), folder, monkeypatch, num_rounds)


def _alone(cfg: DictConfig, folder: Path, monkeypatch: Any, num_rounds: int = NUM_ROUNDS) -> Ran:
    found: list[tuple[preparation.ReadyRun, list[tuple[float, float]]]] = []

    def preparing(*args: Any) -> preparation.ReadyRun:
        run = preparation.prepare(*args)
        found.append((run, _listen(run)))
        return run

    monkeypatch.setattr(native, "prepare", preparing)
    monkeypatch.setattr(
        reporter, "_current", reporter.Reporter(is_stopping=lambda: found[0][0].state.round_num >= num_rounds)
    )
    try:
        app.run(compose.to_conf(cfg), folder)
    except KeyboardInterrupt:  # stopped, as it was asked to
        [(run, losses)] = found
        return Ran(_end(run, losses), run.data)
    raise AssertionError("it ended before it was asked to")


def _listen(run: preparation.ReadyRun) -> list[tuple[float, float]]:
    losses: list[tuple[float, float]] = []
    evaluated = run.watcher.evaluated

    def listening(state: Any, is_best: bool) -> None:
        losses.append((state.last["valid_loss"], state.last["test_loss"]))
        evaluated(state, is_best)

    run.watcher.evaluated = listening  # type: ignore[method-assign]
    return losses


def _end(run: preparation.ReadyRun, losses: list[tuple[float, float]]) -> End:
    kept = {k: run.state.clients.get(k) for k in sorted(run.state.clients.used)}
    server = run.state.server
    return End(server.params, server.buffers, server.state, kept, losses, run.model, run.backend.note)


class _Job:
    """One of several jobs that a worker runs as one program."""

    def __init__(self, cfg: DictConfig, folder: Path, run: Callable[[], preparation.ReadyRun]) -> None:
        self.cfg, self.folder = cfg, folder
        self.reporter = reporter.Reporter(is_stopping=lambda: run().state.round_num >= NUM_ROUNDS)
        self.error: BaseException | None = None

    def current(self):
        return nullcontext()

    def finish(self, value: Any) -> None:
        raise AssertionError("it stops before its end")

    def fail(self, error: BaseException) -> None:
        self.error = error


def fused(case: Case, folder: Path, monkeypatch: Any, dtype: str = "float64", points: Any = POINTS) -> list[Ran]:
    """Runs points as one program, as a worker runs a group, and one by one where that asks for it."""
    runs: list[preparation.ReadyRun] = []
    losses: list[list[tuple[float, float]]] = []

    def preparing(*args: Any) -> preparation.ReadyRun:
        runs.append(preparation.prepare(*args))
        losses.append(_listen(runs[-1]))
        return runs[-1]

    monkeypatch.setattr(fused_jobs, "prepare", preparing)
    cfgs = [config(case, dtype, "auto", **point) for point in points]
    assert len({fused_jobs.fuse_key(cfg) for cfg in cfgs}) == 1
    for i in range(len(points)):
        (folder / str(i)).mkdir(parents=True)
    if case.before is not None:
        case.before()
    jobs = [_Job(cfg, folder / str(i), lambda i=i: runs[i]) for i, cfg in enumerate(cfgs)]
    try:
        fused_jobs.job_group(jobs, len(points))
    except KeyboardInterrupt:
        return [Ran(_end(run, of_run), run.data) for run, of_run in zip(runs, losses, strict=True)]
    except reporter.RunApart as why:
        text = str(why)
    else:
        raise next(job.error for job in jobs if job.error is not None)
    apart = []
    for i, job in enumerate(jobs):
        ran = _alone(job.cfg, job.folder, monkeypatch)
        ran.end.losses[:0] = losses[i] if len(ran.end.losses) < NUM_ROUNDS + 1 else []
        ran.text = text
        apart.append(ran)
    return apart


# The plain loop.


@functools.lru_cache(64)
def plain(case: Case, dtype: str = "float64", num_rounds: int = NUM_ROUNDS, **options: Any) -> End:
    """The plain loop's end of the same run; nothing of the process's generators changes."""
    with generators_kept():
        conf = compose.to_conf(config(case, dtype, "plain", **options))
        task, kind = build_task(conf.task), getattr(torch, dtype)
        seed_all(torch_seed(conf.seed, Purpose.SERVER))
        algorithm, numbers = build_algorithm(compose.parameters(conf.algorithm))
        work = LocalWork(conf.batch_size, conf.num_epochs, conf.num_steps, conf.seed)
        model = compose.parameters(conf.model)
        fitting = build_fitting_model(model, task, work, kind, torch.device("cpu"), has_own_loss=True)
        arrays = arrays_of(task, kind)
        if case.before is not None:
            case.before()
        return plain_loop.train(fitting.model, arrays, algorithm, numbers, conf, num_rounds, case.is_one_model)


def arrays_of_case(case: Case, dtype: str) -> Arrays:
    """Its samples as they come from their source."""
    return arrays_of(build_task(compose.to_conf(config(case, dtype, "plain")).task), getattr(torch, dtype))


def arrays_of(task: Task, dtype: torch.dtype) -> Arrays:
    """The task's arrays as tensors."""

    def tensor(array: np.ndarray) -> torch.Tensor:
        found = torch.from_numpy(array.copy())
        return found.to(dtype) if found.is_floating_point() else found

    n, v = task.train_sizes, task.valid_sizes
    assert (v > 0).all()
    return Arrays(
        tensor(task.x_train),
        tensor(task.y_train),
        np.array(task.train_offsets),
        tensor(task.x_valid),
        tensor(task.y_valid),
        torch.from_numpy(np.repeat(n / n.sum() / v, v)),
        tensor(task.x_test),
        tensor(task.y_test),
    )


def generators() -> tuple[torch.Tensor, Any, Any]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


# What is the same.


def differences(plain: End, ours: End) -> dict[str, float]:
    """The largest difference in each part, as a share of the number where that is above 1."""
    found = {
        "params": _difference(plain.params, ours.params),
        "buffers": _difference(plain.buffers, {name: ours.buffers.get(name) for name in plain.buffers}),
        "losses": _distance(*(torch.tensor(end.losses, dtype=torch.float64) for end in (plain, ours))),
    }
    for key, tensors in plain.state.items():
        found[f"server's {key}"] = _difference(tensors, ours.state[key])
    for k, state in ours.kept.items():
        for key, tensors in state.items():
            found[f"client {k}'s {key}"] = _difference(plain.kept[k][key], tensors)
    return found


def _difference(plain: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> float:
    assert plain.keys() == ours.keys(), f"{sorted(plain)} here, {sorted(ours)} there"
    return max((_distance(t, ours[name]) for name, t in plain.items()), default=0.0)


def _distance(plain: torch.Tensor, ours: torch.Tensor) -> float:
    assert plain.shape == ours.shape, f"{tuple(plain.shape)} here, {tuple(ours.shape)} there"
    assert plain.dtype == ours.dtype, f"{plain.dtype} here, {ours.dtype} there"
    kind = torch.complex128 if plain.is_complex() else torch.float64
    a, b = plain.detach().to(kind), ours.detach().to(kind)
    found = float(((a - b).abs() / a.abs().clamp(min=1.0)).max()) if a.numel() else 0.0
    return found if found == found else float("inf")
