"""What `gpu.py` trains: the reference workload's data and models on any device, and programs that take its rounds.

100 clients of 40 samples, cohort 10, batch 10, 5 local epochs, lr 0.1 (`peers/workload.py`), for the MLP 784-200-10 and
the FedAvg paper's CNN; the small ResNet has 50 samples of 3x32x32 a client. A round ends with an evaluation of 1,000
samples as validation and again as test samples, as a run's does: that is what waits for the GPU.

Imports nothing but torch, numpy and what of flgo_hydra needs no more.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import workload as w
from plain import train_round

from flgo_hydra.config.option import EngineConf, OptionConf
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend.choice import build_backend
from flgo_hydra.federated.backend.fused import FusedBackend, Member
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.data.on_device import Data, HeldOut
from flgo_hydra.federated.evaluation import metrics_of
from flgo_hydra.federated.model import arrange_for_cpu, resnet
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.rounds import Run, RunState, Status, rounds
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

MODELS = ("mlp", "cnn", "resnet")
IMAGE = {"mlp": (784,), "cnn": (784,), "resnet": (3, 32, 32)}
FOREVER = 10**9


@dataclass(frozen=True)
class Size:
    num_clients: int
    per_client: int
    cohort: int
    epochs: int
    num_test: int
    batch: int = w.BATCH

    @property
    def steps(self) -> int:
        """Local steps of a round, all clients together."""
        return self.cohort * self.epochs * math.ceil(self.per_client / self.batch)


QUICK = Size(num_clients=6, per_client=20, cohort=3, epochs=1, num_test=40)
FULL = {name: Size(w.NUM_CLIENTS, w.PER_CLIENT, w.COHORT, w.EPOCHS, 1000) for name in ("mlp", "cnn")} | {
    "resnet": Size(w.NUM_CLIENTS, 50, w.COHORT, w.EPOCHS, 1000)
}


@dataclass(frozen=True)
class Workload:
    name: str
    size: Size
    data: Data

    @property
    def device(self) -> torch.device:
        return self.data.x_train.device

    def work(self, seed: int) -> LocalWork:
        return LocalWork(self.size.batch, self.size.epochs, None, seed)

    def model(self) -> nn.Module:
        if self.name == "resnet":
            torch.manual_seed(0)
            model = resnet(IMAGE["resnet"], 10, channels=[16, 32, 64], num_blocks=1, num_groups=8)
        else:
            model = w.torch_model(self.name)
        if self.device.type == "cpu":
            arrange_for_cpu(model)
        return model.to(self.device)


def make_workload(name: str, file: Path | None, is_quick: bool, device: torch.device) -> Workload:
    """Args:
    file: the MNIST images that `peers/workload.py` makes; None, and for the ResNet: noise around ten patterns.
    """
    size = QUICK if is_quick else FULL[name]
    num_train = size.num_clients * size.per_client
    if file is None or name == "resnet":
        x, y = _synthetic(num_train + size.num_test, IMAGE[name])
        x_train, y_train, x_test, y_test = x[:num_train], y[:num_train], x[num_train:], y[num_train:]
    else:
        with np.load(file) as arrays:
            x_train, y_train, x_test, y_test = (arrays[key] for key in ("x_train", "y_train", "x_test", "y_test"))
        x_train, y_train = x_train[:num_train], y_train[:num_train]
        x_test, y_test = x_test[: size.num_test], y_test[: size.num_test]
    x_train, y_train, x_test, y_test = (torch.from_numpy(a).to(device) for a in (x_train, y_train, x_test, y_test))
    weights = torch.full((len(y_test),), 1 / len(y_test), dtype=torch.float64, device=device)
    held_out = HeldOut(x_test, y_test, weights)
    offsets = list(range(0, num_train + 1, size.per_client))
    return Workload(name, size, Data(x_train, y_train, offsets, held_out, held_out, is_classification=True))


def _synthetic(num_samples: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((10, *shape), dtype=np.float32)
    y = rng.integers(10, size=num_samples)
    return 0.3 * patterns[y] + 0.3 * rng.standard_normal((num_samples, *shape), dtype=np.float32), y


@dataclass
class Program:
    """Something that takes rounds."""

    take: Callable[[], float]
    """trains a round of all its points and evaluates them; returns the test loss, of the first point"""
    note: Callable[[], dict[str, Any]] = dict
    """what ran, as in result.json"""


def by_hand(workload: Workload) -> Program:
    """The plain loop that one writes by hand: autograd, `torch.optim.SGD`, tensors that are on the device already."""
    model, size, data = workload.model(), workload.size, workload.data
    server = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    rng = np.random.default_rng(0)

    def take() -> float:
        nonlocal server
        cohort = rng.choice(size.num_clients, size.cohort, replace=False).tolist()
        server = train_round(model, server, [data.client(k) for k in cohort], size.epochs, size.batch)
        model.load_state_dict(server)
        return metrics_of(model, data)["test_loss"]

    return Program(take)


class _Silent:
    """Follows a run and says nothing."""

    def evaluated(self, state: RunState, is_best: bool) -> None:
        pass

    def finished_round(self, state: RunState) -> Status | None:
        return None


def _begin(workload: Workload, backend: Any, model: nn.Module, seed: int) -> Run:
    size, algorithm = workload.size, FedAvg()
    option = OptionConf(
        num_rounds=FOREVER,
        proportion=size.cohort / size.num_clients,
        batch_size=size.batch,
        num_epochs=size.epochs,
        lr=w.LR / (1 + seed),
        seed=seed,
    )
    state = RunState(server_state(model, algorithm), ClientStates({}, size.num_clients))
    return rounds(backend, workload.data, algorithm, {}, option, state, _Silent())


def alone(workload: Workload, engine: EngineConf) -> Program:
    """A run of ours."""
    model, data = workload.model(), workload.data
    step = LocalStep(FedAvg(), build_optimizer("sgd"))
    backend = build_backend(engine, model, data, step, workload.work(0), workload.size.cohort, FOREVER)
    run = _begin(workload, backend, model, 0)
    asked = run.send(metrics_of(backend.load(next(run).server), data))

    def take() -> float:
        nonlocal asked
        trained = backend.train(asked.server, asked.clients, asked.cohort, asked.hyper, asked.round_num)
        metrics = metrics_of(backend.load(run.send(trained).server), data)
        asked = run.send(metrics)
        return metrics["test_loss"]

    return Program(take, lambda: backend.note)


def fused(workload: Workload, num_points: int) -> Program:
    """Runs that differ in learning rate and seed, as one program."""
    runs, members = {}, {}
    for i in range(num_points):
        model = workload.model()
        step, work = LocalStep(FedAvg(), build_optimizer("sgd")), workload.work(i)
        loop = LoopBackend(model, workload.data, step, work)
        runs[i], members[i] = _begin(workload, loop, model, i), Member(FedAvg(), "sgd", 0.0, 0.0, 0.0, work, loop)
    backend = FusedBackend(workload.model(), workload.data, members, num_points, engine=EngineConf(graph="on"))

    metrics = backend.evaluate({i: next(run) for i, run in runs.items()})

    def take() -> float:
        nonlocal metrics
        works = {i: runs[i].send(one) for i, one in metrics.items()}
        evaluations = {i: runs[i].send(server) for i, server in backend.train(works).items()}
        metrics = backend.evaluate(evaluations)
        return metrics[0]["test_loss"]

    return Program(take, lambda: backend.note)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begin


def failure_of(error: Exception) -> str:
    """A few words on why a row has no numbers."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:150]}"


def what_ran(note: dict[str, Any]) -> str:
    """A note of result.json in a few words: what was asked for may not be what ran."""
    if not note:
        return ""
    parts = [note["backend"]] if "runs_at_once" not in note else [f"{note['runs_at_once']} at once"]
    parts += ["graph"] if note.get("cuda_graph") else []
    parts += ["dual"] if note.get("dual_layers") else []
    return ", ".join(parts + [f"{key}: {value}" for key, value in note.items() if key.startswith("why_")])
