"""How time and memory grow with clients, cohort and model.

Every client holds 10 samples of 784 features and takes 20 local steps on batches of 10, so that a client costs the same
in every row. Each row runs in a process of its own, which reports its largest resident memory; training data are
counted in it (31 MiB for 1,000 clients), and so are pages of a file that the kernel may take back. One table, with the
time of a client's local step beside that of the first row of its block. Times are CPU time, which with one thread is
the time on an idle machine, and steadier on a busy one.

    python scripts/benchmarks/growth.py [--rounds 4] [--threads 1] [--block clients|cohort|model …] [--backend auto]
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

FEATURES, SAMPLES, STEPS = 784, 10, 20


@dataclass(frozen=True)
class Row:
    algorithm: str
    num_clients: int
    cohort: int
    hidden: tuple[int, ...] = (200,)


BLOCKS = {
    "clients": [Row(a, n, 10) for a in ("fedavg", "scaffold") for n in (10, 100, 1000, 10_000)],
    "cohort": [Row(a, 10_000, k) for a in ("fedavg", "scaffold") for k in (1, 10, 100, 1000)],
    "model": [Row("fedavg", 100, 10, hidden) for hidden in ((), (50,), (200,), (800,), (800, 800))],
}


def run(row: Row, rounds: int, threads: int, backend_name: str) -> dict[str, object]:
    """Trains a few rounds in this process."""
    import numpy as np
    import torch

    from flgo_hydra.app import build_algorithm
    from flgo_hydra.config import EngineConf
    from flgo_hydra.federated.backend.choice import build_backend
    from flgo_hydra.federated.client_state import ClientStates
    from flgo_hydra.federated.cohort import sample_cohort
    from flgo_hydra.federated.data import to_data
    from flgo_hydra.federated.model import build_model
    from flgo_hydra.federated.optimizer import build_optimizer
    from flgo_hydra.federated.task import Task
    from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    n = row.num_clients * SAMPLES
    x, y = rng.random((n, FEATURES), np.float32), rng.integers(0, 10, n)
    offsets = np.arange(0, n + 1, SAMPLES)
    ones = np.ones(row.num_clients, np.int64)
    held = np.cumsum([0, *ones])
    task = Task("growth", x, y, offsets, x[:1].repeat(row.num_clients, 0), y[: row.num_clients], held, x[:1], y[:1], 10)
    data = to_data(task, torch.device("cpu"), torch.float32)
    target = (
        "flgo_hydra.federated.algorithm." + {"fedavg": "fedavg.FedAvg", "scaffold": "scaffold.Scaffold"}[row.algorithm]
    )
    algorithm, numbers = build_algorithm({"_target_": target, "eta": 1.0})
    model = build_model({"_target_": "flgo_hydra.federated.model.mlp", "hidden": list(row.hidden)}, (FEATURES,), 10, 0)
    step, work = LocalStep(algorithm, build_optimizer("sgd")), LocalWork(SAMPLES, STEPS, None, 0)
    backend = build_backend(EngineConf(backend_name), model, data, step, work, row.cohort, float("inf"))
    server = server_state(model, algorithm)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        clients = ClientStates(algorithm.init_client(server.params), row.num_clients, Path(folder))
        for r in range(1, rounds + 1):
            cohort = sample_cohort(
                task.train_sizes, row.cohort / row.num_clients, "uniform", "other", algorithm.weighting, rng
            )
            begin = time.process_time()
            server = backend.train(server, clients, cohort, {"lr": 0.05, **numbers}, r)
            seconds.append(time.process_time() - begin)
    return {
        "seconds": statistics.median(seconds[1:]),
        "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parameters": sum(p.numel() for p in model.parameters()),
        "backend": backend.note["backend"],
        "clients_at_once": backend.note.get("clients_at_once", 1),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", choices=BLOCKS, nargs="+", default=list(BLOCKS))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--backend", choices=("auto", "loop", "vmap"), default="auto")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(run(Row(**json.loads(arguments.row)), arguments.rounds, arguments.threads, arguments.backend)))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{machine}, {arguments.threads} thread(s), median of {arguments.rounds - 1} rounds, CPU time of the process")
    print(f"{'algorithm':10}{'clients':>8}{'cohort':>8}{'parameters':>12}{'s/round':>10}{'us/step':>9}{'of first':>9}"
          f"{'MiB':>7}  backend")  # fmt: skip
    for block in arguments.block:
        first: dict[str, float] = {}
        for row in BLOCKS[block]:
            common = ["--rounds", str(arguments.rounds), "--threads", str(arguments.threads)]
            command = [sys.executable, __file__, "--row", json.dumps(asdict(row)), *common]
            done = subprocess.run(
                [*command, "--backend", arguments.backend], stdout=subprocess.PIPE, text=True, check=True
            )
            got = json.loads(done.stdout)
            per_step = got["seconds"] / (row.cohort * STEPS)
            ratio = per_step / first.setdefault(row.algorithm, per_step)
            print(
                f"{row.algorithm:10}{row.num_clients:>8,}{row.cohort:>8,}{got['parameters']:>12,}{got['seconds']:>10.3f}"
                f"{per_step * 1e6:>9.1f}{ratio:>9.2f}{got['memory_mib']:>7.0f}  {got['backend']}"
                + (f", {got['clients_at_once']} at once" if got["clients_at_once"] > 1 else ""),
                flush=True,
            )
        print()


if __name__ == "__main__":
    main()
