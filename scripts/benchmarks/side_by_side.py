"""Throughput of two runs side by side under our launcher, beside one run alone.

The runs: FedAvg on mnist5k in 100 IID clients, cohort 10, batch 10, 5 local epochs, lr 0.1, evaluated each round, on
the MLP 784-200-10 or the FedAvg paper's CNN. `python -m flgo_hydra -m` trains seed 0 alone, then seeds 0 and 1 in two
slots of the CPU, in turn; in both, a run has one thread. Further overrides are passed on.

    python scripts/benchmarks/side_by_side.py [--model mlp|cnn] [--rounds 150] [--repeats 3] [engine.backend=loop …]

The throughput is 2 T_alone / T_two: T is the training time, which the last line of a run's `rounds.jsonl` says, and of
two runs the longer one counts; and the same with the wall time of the whole command, start-up and tables included. Two
cores with nothing in common would give 2.00. Ratios are within a turn; the table has medians and ranges over turns.
`overlap` is the share of the longer training during which the other run trained too: where it is much below 1, take
more rounds. An untimed sweep of one round goes first, so that the task is built and the launcher has seen what memory
such a job takes.
"""

import argparse
import json
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
WORK = ["task=mnist5k", "task.num_clients=100", "proportion=0.1", "batch_size=10", "num_epochs=5", "lr=0.1"]
MODELS = {"mlp": ["model=mlp", "model.hidden=[200]"], "cnn": ["model=cnn"]}
ROUNDS = {"mlp": 150, "cnn": 5}


@dataclass(frozen=True)
class Sweep:
    training_s: float  # of the run that trained longest
    wall_s: float
    overlap: float
    backends: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--rounds", type=int, help=f"by default {ROUNDS['mlp']}, with the CNN {ROUNDS['cnn']}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="passed on to both commands")
    given = parser.parse_args()
    where = machine()
    rounds = given.rounds or ROUNDS[given.model]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep(folder, "warm-up", "0,1", 1, given)
        alone, two = [], []
        for turn in range(given.repeats):
            alone.append(sweep(folder, f"alone-{turn}", "0", rounds, given))
            two.append(sweep(folder, f"two-{turn}", "0,1", rounds, given))
    report(alone, two, rounds, where, given)


def sweep(folder: Path, name: str, seeds: str, rounds: int, given: argparse.Namespace) -> Sweep:
    command = [sys.executable, "-m", "flgo_hydra", "-m", *WORK, *MODELS[given.model]]
    command += [f"seed={seeds}", f"num_rounds={rounds}", "num_threads=1", "task.cache_dir=cache"]
    command += ["hydra/launcher=flgo_hydra", "hydra.launcher.devices=cpu", "hydra.launcher.slots=2"]
    command += ["hydra.launcher.view=none", f"hydra.sweep.dir={name}", *given.overrides]
    begin = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    wall = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
    spans, backends = [], []
    for job in range(len(seeds.split(","))):
        records = folder / name / str(job) / "rounds.jsonl"
        seconds = json.loads(records.read_text().splitlines()[-1])["seconds"]
        # The last record is written when the training ends.
        end = records.stat().st_mtime
        spans.append((end - seconds, end))
        backends.append(json.loads(records.with_name("result.json").read_text())["engine"]["backend"])
    longest = max(end - begin for begin, end in spans)
    both = min(end for _, end in spans) - max(begin for begin, _ in spans)
    return Sweep(longest, wall, max(0.0, both) / longest, tuple(backends))


def report(alone: list[Sweep], two: list[Sweep], rounds: int, where: str, given: argparse.Namespace) -> None:
    print(f"{given.model}, {rounds} rounds, {given.repeats} turns", *given.overrides)
    print(where)
    print(versions("torch", "hydra-core"), end="; ")
    used = sorted({backend for one in [*alone, *two] for backend in one.backends})
    print(f"engine.backend {', '.join(used)}; overlap {statistics.median(one.overlap for one in two):.2f}\n")
    print("| | one run alone, s | two side by side, s | throughput of two, times that of one |\n|---|---|---|---|")
    for label, field in {"training, the longer of two": "training_s", "whole command": "wall_s"}.items():
        first, second = ([getattr(one, field) for one in sweeps] for sweeps in (alone, two))
        ratio = [2 * t_alone / t_two for t_alone, t_two in zip(first, second, strict=True)]
        print(f"| {label} | {spread(first, 1)} | {spread(second, 1)} | {spread(ratio, 2)} |")


def spread(values: list[float], digits: int) -> str:
    median = statistics.median(values)
    return f"{median:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
