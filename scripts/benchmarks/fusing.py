"""Throughput of runs that are trained as one program, beside runs trained one after another.

The reference workload (mnist5k in 100 IID clients, cohort 10, batch 10, 5 local epochs, evaluation every round), in 1,
2, 4, … runs that differ in learning rate and seed. `loop` trains a run alone; `fused n` trains n at once. Every row is
runs x rounds a second, evaluation included, the median over rounds; rows take turns, so that a machine whose speed
drifts is the same for all. On a GPU, with the memory that torch had reserved at most.

    python scripts/benchmarks/fusing.py [--model mlp|cnn] [--runs 1,2,4,8] [--rounds 5] [--device cuda] [--threads 1]
"""

import argparse
import platform
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from round_time import BATCH, COHORT, EPOCHS, LR, build, reference_task

from flgo_hydra.config import OptionConf
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend.fused import FusedBackend, Member
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.client_state import ClientStates
from flgo_hydra.federated.data import Data, to_data
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.rounds import Run, RunState, Status, rounds
from flgo_hydra.federated.task import Task
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

FOREVER = 10**9


class Silent:
    """Follows a run and says nothing."""

    def evaluated(self, state: RunState, is_best: bool) -> None:
        pass

    def finished_round(self, state: RunState) -> Status | None:
        return None


def make_run(name: str, task: Task, data: Data, seed: int) -> tuple[Run, Member, torch.nn.Module]:
    model = build(name, task).to(data.x_train.device)
    option = OptionConf(
        num_rounds=FOREVER, proportion=COHORT / 100, batch_size=BATCH, num_epochs=EPOCHS, lr=LR / (1 + seed), seed=seed
    )
    algorithm = FedAvg()
    work = LocalWork(BATCH, EPOCHS, None, seed)
    loop = LoopBackend(model, data, LocalStep(algorithm, build_optimizer("sgd")), work)
    server = server_state(model, algorithm)
    state = RunState(server, ClientStates({}, task.num_clients))
    member = Member(algorithm, "sgd", 0.0, 0.0, 0.0, work, loop)
    return rounds(loop, data, algorithm, {}, option, state, Silent()), member, model


def run_alone(name: str, task: Task, data: Data) -> Iterator[None]:
    run, member, _ = make_run(name, task, data, 0)
    work = next(run)
    while True:
        work = run.send(member.loop.train(work.server, work.clients, work.cohort, work.hyper, work.round_num))
        yield


def run_fused(name: str, task: Task, data: Data, num_runs: int) -> Iterator[None]:
    made = [make_run(name, task, data, seed) for seed in range(num_runs)]
    backend = FusedBackend(made[0][2], data, {i: one[1] for i, one in enumerate(made)}, is_auto=False)
    works = {i: next(one[0]) for i, one in enumerate(made)}
    while True:
        servers = backend.train(works)
        works = {i: made[i][0].send(server) for i, server in servers.items()}
        yield


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
    task = reference_task()
    data = to_data(task, device, torch.float32)
    sizes = [int(text) for text in arguments.runs.split(",")]
    programs = {"loop": (1, run_alone(arguments.model, task, data))}
    for size in sizes:
        programs[f"fused {size}"] = (size, run_fused(arguments.model, task, data, size))
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
