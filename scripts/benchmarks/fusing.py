"""Throughput of runs that are trained as one program, beside runs trained one after another.

The reference workload (mnist5k in 100 IID clients, cohort 10, batch 10, 5 local epochs, evaluation every round), in 1,
2, 4, … runs that differ in learning rate and seed. `loop` trains a run alone; `fused n` trains n at once. Every row is
runs x rounds a second, evaluation included, the median over rounds; rows take turns, so that a machine whose speed
drifts is the same for all. On a GPU, with the memory that torch had reserved at most.

    python scripts/benchmarks/fusing.py [--model mlp|cnn] [--runs 1,2,4,8] [--rounds 5] [--device cuda] [--threads 1]
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import workload as w

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend.fused import FusedBackend, Member
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.data.on_device import Data, HeldOut
from flgo_hydra.federated.evaluation import metrics_of
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.rounds import Evaluation, Run, RunState, Status, rounds
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

FOREVER = 10**9


class Silent:
    """Follows a run and says nothing."""

    def evaluated(self, state: RunState, is_best: bool) -> None:
        pass

    def finished_round(self, state: RunState) -> Status | None:
        return None


def reference_data(device: torch.device) -> Data:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLGO_HYDRA_WORKLOAD"] = f"{folder}/workload.npz"
        w.make_arrays(os.environ["FLGO_HYDRA_WORKLOAD"])
        x_train, y_train, x_test, y_test = (torch.from_numpy(array).to(device) for array in w.arrays())
    weights = torch.full((len(y_test),), 1 / len(y_test), dtype=torch.float64, device=device)
    test = HeldOut(x_test, y_test, weights)
    offsets = list(range(0, len(y_train) + 1, w.PER_CLIENT))
    return Data(x_train, y_train, offsets, test, test, is_classification=True)


def make_run(name: str, data: Data, seed: int) -> tuple[Run, Member, torch.nn.Module]:
    model = w.torch_model(name).to(data.x_train.device)
    option = OptionConf(
        num_rounds=FOREVER,
        proportion=w.COHORT / w.NUM_CLIENTS,
        batch_size=w.BATCH,
        num_epochs=w.EPOCHS,
        lr=w.LR / (1 + seed),
        seed=seed,
    )
    algorithm = FedAvg()
    work = LocalWork(w.BATCH, w.EPOCHS, None, seed)
    loop = LoopBackend(model, data, LocalStep(algorithm, build_optimizer("sgd")), work)
    server = server_state(model, algorithm)
    state = RunState(server, ClientStates({}, w.NUM_CLIENTS))
    member = Member(algorithm, "sgd", 0.0, 0.0, 0.0, work, loop)
    return rounds(loop, data, algorithm, {}, option, state, Silent()), member, model


def run_alone(name: str, data: Data) -> Iterator[None]:
    run, member, _ = make_run(name, data, 0)
    asked = next(run)
    while True:
        if isinstance(asked, Evaluation):
            asked = run.send(metrics_of(member.loop.load(asked.server), data))
            yield
        else:
            asked = run.send(member.loop.train(asked.server, asked.clients, asked.cohort, asked.hyper, asked.round_num))


def run_fused(name: str, data: Data, num_runs: int) -> Iterator[None]:
    made = [make_run(name, data, seed) for seed in range(num_runs)]
    backend = FusedBackend(made[0][2], data, {i: one[1] for i, one in enumerate(made)}, num_runs)
    asked = {i: next(one[0]) for i, one in enumerate(made)}
    while True:
        metrics = backend.evaluate(asked)
        works = {i: made[i][0].send(one) for i, one in metrics.items()}
        yield
        asked = {i: made[i][0].send(server) for i, server in backend.train(works).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="mlp", choices=["mlp", "cnn"])
    parser.add_argument("--runs", default="1,2,4,8", help="how many at once, separated by commas")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that are timed, after one that is not")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    data = reference_data(device)
    sizes = [int(text) for text in arguments.runs.split(",")]
    programs = {"loop": (1, run_alone(arguments.model, data))}
    for size in sizes:
        programs[f"fused {size}"] = (size, run_fused(arguments.model, data, size))
    times: dict[str, list[float]] = {label: [] for label in programs}
    peaks: dict[str, float] = dict.fromkeys(programs, 0.0)
    for turn in range(arguments.rounds + 1):
        for label, (size, program) in programs.items():
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            begin = time.perf_counter()
            next(program)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                peaks[label] = torch.cuda.max_memory_reserved(device) / 2**20
            if turn > 0:
                times[label].append((time.perf_counter() - begin) / size)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()}, CPU"
    print(f"{arguments.model}, {where}, {arguments.threads} threads, torch {torch.__version__}, ", end="")
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {arguments.rounds} rounds in turn\n")
    print("| program | runs x rounds a second | ms a run's round | times the loop | reserved MiB |")
    print("|---|---|---|---|---|")
    loop = statistics.median(times["loop"])
    for label in programs:
        seconds = statistics.median(times[label])
        memory = f"{peaks[label]:.0f}" if device.type == "cuda" else "-"
        print(f"| {label} | {1 / seconds:.1f} | {1000 * seconds:.1f} | {loop / seconds:.2f} | {memory} |")


if __name__ == "__main__":
    main()
