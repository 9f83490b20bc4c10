"""How time and memory grow with clients, cohort, model and the points of a grid that train as one program.

Every client holds 10 samples of 784 random features and takes 20 local steps on all 10, so that a client costs the same
in every row. Blocks: `clients` and `cohort` (FedAvg, and SCAFFOLD and Ditto, whose clients keep a model's worth),
`model` (dense ones, and the FedAvg paper's CNN), `points`: that many points of a grid, learning rates times seeds, each
10 of 100 clients a round, trained all at once (`FusedBackend`) and each evaluated after every round, on one sample of
each client and one test sample. The other rows evaluate nothing.

Each row runs in a process of its own, which reports its largest resident memory; training data are counted in it
(31 MiB for 1,000 clients). Times are CPU time, evaluation included, which with one thread is the time on an idle
machine, and steadier on a busy one: the median of `--rounds` rounds, and of as many more as take a second, after a
first one, which also records the step. `rounds/s` is points times rounds; `of first` compares the time of a client's
local step with the algorithm's first row of the block; `wall` is a step on the clock, where a disk may be waited for,
in the fastest round; `kernel` is the share of the time that the kernel took, which finds a place for what a client
keeps when it takes part for the first time. On the CPU a point needs its lanes' memory: the block ends before it would
need more than `--most-gib`, by what the rows before it have needed.

    python scripts/benchmarks/growth.py [--rounds 3] [--threads 1] [--block clients|cohort|model|points …]
        [--backend auto] [--most-gib 8]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import machine, versions

if TYPE_CHECKING:
    from torch import nn

    from flgo_hydra.federated.data.on_device import Data
    from flgo_hydra.federated.rounds import RunState, Status

FEATURES, SAMPLES, STEPS = 784, 10, 20
# Rates that keep random labels from diverging, so that no point of a grid ends early.
RATES = (0.05, 0.04, 0.03, 0.02, 0.01, 0.008, 0.006, 0.004, 0.002, 0.001)
ALGORITHMS: dict[str, tuple[str, dict[str, float]]] = {
    "fedavg": ("fedavg.FedAvg", {}),
    "scaffold": ("scaffold.Scaffold", {"eta": 1.0}),
    "ditto": ("ditto.Ditto", {"lam": 1.0}),
}
"""Where each is, and its numbers."""
FOREVER = 10**9
LEAST_S = 1.0
"""Time that a row is measured for, at least: a round of a small one takes 5 ms, and a few of them tell little."""


@dataclass(frozen=True)
class Row:
    algorithm: str
    num_clients: int
    cohort: int
    model: str = "mlp 200"
    """`mlp` and its hidden widths, or `cnn`"""
    points: int | None = None
    """trained as one program; None: one run, by the backend that was asked for"""


BLOCKS = {
    "clients": [
        Row(a, n, k) for a in ALGORITHMS for n, k in ((10, 10), (100, 10), (1000, 10), (10_000, 10), (10_000, 100))
    ],
    "cohort": [Row(a, 10_000, k) for a in ALGORITHMS for k in (1, 10, 100, 1000)],
    "model": [Row("fedavg", 100, 10, model) for model in ("mlp", "mlp 50", "mlp 200", "mlp 800", "mlp 800 800", "cnn")],
    "points": [Row("fedavg", 100, 10, points=n) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)],
}

# Imports of what imports torch are inside functions: the peak memory of a new process counts what its parent held when
# it was started.


def measure(row: Row, rounds: int, threads: int, backend: str) -> dict[str, Any]:
    """Trains a few rounds in this process."""
    import torch

    torch.set_num_threads(threads)
    data = make_data(row.num_clients)
    seconds, wall = [], []
    with tempfile.TemporaryDirectory() as folder:
        program = train_points(row, data) if row.points else train(row, data, backend, Path(folder))
        for _ in range(2):  # where it begins, and after the first round
            note = next(program)
        before = os.times()
        while len(seconds) < rounds or sum(seconds) < LEAST_S:
            begin, begin_wall = time.process_time(), time.perf_counter()
            note = next(program)
            seconds.append(time.process_time() - begin)
            wall.append(time.perf_counter() - begin_wall)
        after = os.times()
    return {
        "seconds": statistics.median(seconds),
        "wall": min(wall),
        "kernel": (after.system - before.system) / sum(seconds),
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parameters": sum(p.numel() for p in make_model(row.model, 0).parameters()),
        "backend": note["backend"],
        "clients_at_once": note.get("clients_at_once", note.get("runs_at_once", 0) * row.cohort or 1),
        "dual_layers": note.get("dual_layers", []),
    }


def make_data(num_clients: int) -> "Data":
    import numpy as np
    import torch

    from flgo_hydra.federated.data.on_device import to_data
    from flgo_hydra.federated.data.task import Task

    rng = np.random.default_rng(0)
    n = num_clients * SAMPLES
    x, y = rng.random((n, FEATURES), np.float32), rng.integers(0, 10, n)
    offsets, held = np.arange(0, n + 1, SAMPLES), np.arange(num_clients + 1)
    task = Task("growth", x, y, offsets, x[:1].repeat(num_clients, 0), y[:num_clients], held, x[:1], y[:1], 10)
    return to_data(task, torch.device("cpu"), torch.float32)


def make_model(name: str, seed: int) -> "nn.Module":
    from flgo_hydra.federated.model import arrange_for_cpu, build_model

    kind, *widths = name.split()
    if kind == "mlp":
        target = {"_target_": "flgo_hydra.federated.model.mlp", "hidden": [int(width) for width in widths]}
        return build_model(target, (FEATURES,), 10, seed)
    sys.path.insert(0, str(Path(__file__).parent / "peers"))
    from workload import torch_model

    model: nn.Module = torch_model(kind)
    arrange_for_cpu(model)
    return model


def train(row: Row, data: "Data", backend_name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields once before the first round and after each; what ran."""
    import numpy as np

    from flgo_hydra.config.option import EngineConf
    from flgo_hydra.federated.algorithm.build import build_algorithm
    from flgo_hydra.federated.backend.choice import build_backend
    from flgo_hydra.federated.clients.client_state import ClientStates
    from flgo_hydra.federated.cohort import sample_cohort
    from flgo_hydra.federated.optimizer import build_optimizer
    from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

    target, given = ALGORITHMS[row.algorithm]
    algorithm, numbers = build_algorithm({"_target_": f"flgo_hydra.federated.algorithm.{target}", **given})
    model = make_model(row.model, 0)
    step, work = LocalStep(algorithm, build_optimizer("sgd")), LocalWork(SAMPLES, STEPS, None, 0)
    backend = build_backend(EngineConf(backend_name), model, data, step, work, row.cohort, float("inf"))
    server = server_state(model, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), row.num_clients, folder)
    sizes, share, rng = np.diff(data.offsets), row.cohort / row.num_clients, np.random.default_rng(0)
    for round_num in range(1, FOREVER):
        yield backend.note
        cohort = sample_cohort(sizes, share, "uniform", "other", algorithm.weighting, rng)
        server = backend.train(server, clients, cohort, {"lr": RATES[0], **numbers}, round_num)


def train_points(row: Row, data: "Data") -> Iterator[dict[str, Any]]:
    """The same of a grid's points, all at once, as a launcher that fuses them trains them."""
    from flgo_hydra.config.option import OptionConf
    from flgo_hydra.federated.algorithm.fedavg import FedAvg
    from flgo_hydra.federated.backend.fused import FusedBackend, Member
    from flgo_hydra.federated.backend.loop import LoopBackend
    from flgo_hydra.federated.clients.client_state import ClientStates
    from flgo_hydra.federated.optimizer import build_optimizer
    from flgo_hydra.federated.rounds import RunState, rounds
    from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

    assert row.algorithm == "fedavg"
    runs, members = {}, {}
    for i in range(row.points or 0):
        seed, rate = divmod(i, len(RATES))
        algorithm, model = FedAvg(), make_model(row.model, seed)
        share = row.cohort / row.num_clients
        option = OptionConf(num_rounds=FOREVER, proportion=share, lr=RATES[rate], seed=seed)
        work = LocalWork(SAMPLES, STEPS, None, seed)
        loop = LoopBackend(model, data, LocalStep(algorithm, build_optimizer("sgd")), work)
        state = RunState(server_state(model, algorithm), ClientStates({}, row.num_clients))
        runs[i] = rounds(loop, data, algorithm, {}, option, state, Silent())
        members[i] = Member(algorithm, "sgd", 0.0, 0.0, 0.0, work, loop)
    backend = FusedBackend(make_model(row.model, 0), data, members, len(members))
    asked: dict[int, Any] = {i: next(run) for i, run in runs.items()}
    while True:
        metrics = backend.evaluate(asked)
        works = {i: runs[i].send(one) for i, one in metrics.items()}
        yield backend.note
        asked = {i: runs[i].send(server) for i, server in backend.train(works).items()}


class Silent:
    """Follows a run and says nothing."""

    def evaluated(self, state: "RunState", is_best: bool) -> None:
        pass

    def finished_round(self, state: "RunState") -> "Status | None":
        return None


def needed_mib(used: list[tuple[int, float]], points: int) -> float:
    """Memory that so many points will need, on the line through the last two rows; 0 where there are none.

    Args:
        used: points of each row so far, and their memory.
    """
    if len(used) < 2:
        return 0.0
    (before, less), (last, more) = used[-2:]
    return more + (more - less) / (last - before) * (points - last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", choices=BLOCKS, nargs="+", default=list(BLOCKS))
    parser.add_argument("--rounds", type=int, default=3, help="that are timed, at least")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=("auto", "loop", "vmap"), default="auto", help="but not of `points`")
    parser.add_argument("--most-gib", type=float, default=8.0, help="memory of a process in the block `points`")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(Row(**json.loads(given.row)), given.rounds, given.threads, given.backend)))
        return
    print(f"{machine()}\n{versions('torch', 'numpy')}")
    print(f"{given.threads} thread(s), median of at least {given.rounds} rounds, CPU time of the process")
    print(
        f"{'algorithm':10}{'points':>7}{'clients':>8}{'cohort':>7}  {'model':12}{'parameters':>11}{'rounds/s':>10}",
        end="",
    )
    print(f"{'us/step':>9}{'of first':>9}{'wall':>9}{'of first':>9}{'kernel':>8}{'MiB':>7}", end="")
    print(f"  {'backend':8}{'at once':>8}  in the dual form")
    for block in given.block:
        first: dict[str, tuple[float, float]] = {}
        used: list[tuple[int, float]] = []
        for row in BLOCKS[block]:
            points = row.points or 1
            if row.points and (gib := needed_mib(used, points) / 1024) > given.most_gib:
                print(f"not run: {points:,} points and more, which need {gib:.1f} GiB; --most-gib {given.most_gib:g}")
                break
            got = measure_apart(row, given)
            used.append((points, got["memory_mib"]))
            num_steps = points * row.cohort * STEPS
            cpu, wall = got["seconds"] / num_steps, got["wall"] / num_steps
            first_cpu, first_wall = first.setdefault(row.algorithm, (cpu, wall))
            print(
                f"{row.algorithm:10}{points:>7,}{row.num_clients:>8,}{row.cohort:>7,}  {row.model:12}"
                f"{got['parameters']:>11,}{points / got['seconds']:>10.2f}{cpu * 1e6:>9.1f}{cpu / first_cpu:>9.2f}"
                f"{wall * 1e6:>9.1f}{wall / first_wall:>9.2f}{got['kernel']:>8.0%}{got['memory_mib']:>7.0f}"
                f"  {got['backend']:8}{got['clients_at_once']:>8,}  {', '.join(got['dual_layers']) or '-'}",
                flush=True,
            )
        print()


def measure_apart(row: Row, given: argparse.Namespace) -> dict[str, Any]:
    """The same as `measure` in a process of its own."""
    options = ["--rounds", str(given.rounds), "--threads", str(given.threads), "--backend", given.backend]
    command = [sys.executable, __file__, "--row", json.dumps(asdict(row)), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    got: dict[str, Any] = json.loads(done.stdout)
    return got


if __name__ == "__main__":
    main()
