"""Time of a FedAvg round, beside a plain PyTorch loop over the same clients.

The workload: mnist5k in 100 IID clients, cohort 10, batch 10, 5 local epochs, lr 0.1; after each round the model is
evaluated on all validation and test samples. The two take their rounds in turn in one process, so that a machine whose
speed drifts is the same for both; the table gives medians and their ratio.

    python scripts/benchmarks/round_time.py [--model mlp|cnn] [--rounds 50] [--threads 1]

The plain loop is what one writes by hand: an nn.Module, autograd, torch.optim.SGD, tensors that are loaded once.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flgo_hydra.config import CnnConf, MlpConf, PartitionConf, SourceConf, TaskConf
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.data import Data, to_data
from flgo_hydra.federated.evaluation import evaluate
from flgo_hydra.federated.model import build_model
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.randomness import Purpose, numpy_generator
from flgo_hydra.federated.task import Task, build_task
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

BATCH, EPOCHS, LR, COHORT = 10, 5, 0.1, 10
MODELS = {
    "mlp": MlpConf("flgo_hydra.federated.model.mlp", "mlp", hidden=[200]),
    "cnn": CnnConf("flgo_hydra.federated.model.cnn", "cnn"),
}


def reference_task() -> Task:
    source = SourceConf("flgo_hydra.federated.sources.mnist5k")
    partition = PartitionConf("flgo_hydra.federated.partition.iid", "iid")
    return build_task(TaskConf("mnist5k", source, partition, num_clients=100))


def build(name: str, task: Task) -> nn.Module:
    return build_model({**vars(MODELS[name])}, task.input_shape, task.num_outputs, seed=0)


def our_round(name: str, task: Task, data: Data) -> Callable[[int], float]:
    """Our round, as `rounds.run_rounds` does it; returns the test accuracy."""
    model = build(name, task)
    algorithm = FedAvg()
    step = LocalStep(algorithm, build_optimizer("sgd"))
    backend = LoopBackend(model, data, step, LocalWork(BATCH, EPOCHS, None, seed=0))
    server = server_state(model, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), task.num_clients)

    def run(round_num: int) -> float:
        nonlocal server
        rng = numpy_generator(0, Purpose.COHORT, round_num)
        cohort = sample_cohort(task.train_sizes, COHORT / task.num_clients, "uniform", "other", "samples", rng)
        server = backend.train(server, clients, cohort, {"lr": LR}, round_num)
        loaded = backend.load(server)
        both = torch.cat([evaluate(loaded, data, data.valid), evaluate(loaded, data, data.test)]).tolist()
        return both[3]

    return run


def plain_round(name: str, task: Task, data: Data) -> Callable[[int], float]:
    """The loop one writes by hand; returns the test accuracy."""
    model = build(name, task)
    server = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    rng = np.random.default_rng(0)

    def held_out(x: Tensor, y: Tensor, weights: Tensor) -> tuple[float, float]:
        outputs = model(x)
        losses = functional.cross_entropy(outputs, y, reduction="none")
        is_right = (outputs.argmax(1) == y).double()
        return (losses * weights).sum().item(), (is_right * weights).sum().item()

    def run(round_num: int) -> float:
        nonlocal server
        cohort = rng.choice(task.num_clients, COHORT, replace=False)
        sizes = task.train_sizes[cohort] / task.train_sizes[cohort].sum()
        mean = {key: torch.zeros_like(tensor) for key, tensor in server.items()}
        for k, share in zip(cohort.tolist(), sizes.tolist(), strict=True):
            x, y = data.client(k)
            model.load_state_dict(server)
            optimizer = torch.optim.SGD(model.parameters(), lr=LR)
            for _ in range(EPOCHS):
                for rows in torch.randperm(len(x)).split(BATCH):
                    optimizer.zero_grad()
                    functional.cross_entropy(model(x[rows]), y[rows]).backward()
                    optimizer.step()
            for key, tensor in model.state_dict().items():
                mean[key] += share * tensor
        server = mean
        model.load_state_dict(server)
        with torch.no_grad():
            held_out(data.valid.x, data.valid.y, data.valid.weights)
            return held_out(data.test.x, data.test.y, data.test.weights)[1]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = reference_task()
    data = to_data(task, torch.device("cpu"), torch.float32)
    variants = {
        "plain PyTorch loop": plain_round(arguments.model, task, data),
        "flgo_hydra, loop": our_round(arguments.model, task, data),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    accuracy: dict[str, float] = {}
    for round_num in range(1, arguments.rounds + 1):
        for name, run in variants.items():
            begin = time.perf_counter()
            accuracy[name] = run(round_num)
            seconds[name].append(time.perf_counter() - begin)
    warm_up = min(5, arguments.rounds // 2)
    medians = {name: statistics.median(values[warm_up:]) for name, values in seconds.items()}
    plain = medians["plain PyTorch loop"]
    print(f"{arguments.model}, {arguments.threads} thread(s), torch {torch.__version__}, {platform.machine()}")
    print(f"medians of {arguments.rounds - warm_up} rounds taken in turn")
    print(f"{'':22}{'ms/round':>10}{'of plain':>10}{'accuracy':>10}")
    for name, median in medians.items():
        print(f"{name:22}{median * 1e3:>10.1f}{median / plain:>10.2f}{accuracy[name]:>10.3f}")


if __name__ == "__main__":
    main()
