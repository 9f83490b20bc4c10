"""Kills a sweep with -9 at random moments, goes on with it, and compares it with one that was left alone.

    python scripts/benchmarks/kills.py --points 108 --kills 8

While a sweep runs, its workers are killed at random too. After the last kill it may end, and then each point has to
have exactly one COMPLETE trial, whose value is the minimum of its curve, with the rounds, the numbers and the winner
of the undisturbed sweep. Exits with 1 and says what differs otherwise. The seed is printed: `--seed` repeats the plan
(not the machine's timing).
"""

import argparse
import collections
import csv
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
AXES = {
    "algorithm": ("fedavg", "fedprox", "scaffold"),
    "lr": ("0.3", "0.1", "0.03", "0.01"),
    "num_steps": ("1", "2", "3"),
    "seed": ("0", "1", "2"),
}
FIXED = ("model=logistic", "num_rounds=10", "early_stop=3", "task.num_clients=5", "checkpoint_interval=2")
PATIENT = ("hydra.launcher.max_retries=50", "hydra.launcher.backoff_s=0.05", "hydra.launcher.view=none")


def grid(num_points: int) -> list[str]:
    """The axes, cut short until their product is at most `num_points`."""
    axes = {key: list(values) for key, values in AXES.items()}
    while _product(axes) > num_points:
        longest = max(axes, key=lambda key: len(axes[key]))
        axes[longest].pop()
    return [f"{key}={','.join(values)}" for key, values in axes.items()]


def _product(axes: dict[str, list[str]]) -> int:
    return len(list(itertools.product(*axes.values())))


def start(folder: Path, overrides: list[str], log: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "flgo_hydra.resume", str(folder)]
    if not (folder / "multirun.yaml").exists():  # killed before it wrote anything
        command = [sys.executable, "-m", "flgo_hydra", "-m", *FIXED, *PATIENT, *overrides, f"hydra.sweep.dir={folder}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=folder.parent)


def live(process: "subprocess.Popen[bytes]", seconds: float, rng: random.Random) -> int:
    """Lets the sweep run for a while, killing workers now and then; returns how many."""
    killed = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(min(max(end - time.monotonic(), 0.0), rng.uniform(0.2, 1.5)))
        try:
            server = psutil.Process(process.pid).children()
            workers = [worker for child in server for worker in child.children()]
            if workers and time.monotonic() < end:
                os.kill(rng.choice(workers).pid, signal.SIGKILL)
                killed += 1
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass
    return killed


def read(folder: Path) -> list[Any]:
    """Every trial of the sweep's study."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    return list(optuna.load_study(study_name=None, storage=storage).trials)


def compare(folder: Path, alone: Path, num_points: int) -> list[str]:
    """What is wrong with the disturbed sweep."""
    wrong = []
    complete = [trial for trial in read(folder) if trial.state.name == "COMPLETE"]
    points = collections.Counter(tuple(trial.user_attrs["overrides"]) for trial in complete)
    if len(complete) != num_points or set(points.values()) != {1}:
        wrong.append(f"{len(complete)} COMPLETE trials of {len(points)} points, not {num_points} of {num_points}")
    if any(trial.state.name == "RUNNING" for trial in read(folder)):
        wrong.append("a trial is still RUNNING")
    expected = {tuple(trial.user_attrs["overrides"]): trial for trial in read(alone)}
    for trial in complete:
        name = tuple(trial.user_attrs["overrides"])
        attributes, curve = trial.user_attrs, trial.intermediate_values
        rounds = [json.loads(line) for line in (folder / str(attributes["job"]) / "rounds.jsonl").open()]
        if trial.value != min(curve.values()) or curve[attributes["best_round"]] != trial.value:
            wrong.append(f"{name}: value {trial.value} is not the minimum of its curve")
        if [line["round"] for line in rounds] != list(range(attributes["last_round"] + 1)):
            wrong.append(f"{name}: rounds {[line['round'] for line in rounds]}")
        other = expected[name]
        for key in ("best_round", "last_round", "status"):
            if attributes[key] != other.user_attrs[key]:
                wrong.append(f"{name}: {key} is {attributes[key]}, undisturbed {other.user_attrs[key]}")
        if (trial.value, curve) != (other.value, other.intermediate_values):
            wrong.append(f"{name}: other numbers than undisturbed")
    best = [yaml.safe_load((path / "best.yaml").read_text()) for path in (folder, alone)]
    if best[0]["overrides"] != best[1]["overrides"] or best[0]["best_valid_loss"] != best[1]["best_valid_loss"]:
        wrong.append(f"the best is {best[0]['overrides']}, undisturbed {best[1]['overrides']}")
    with (folder / "results.csv").open() as file:
        if len(list(csv.reader(file))) != num_points + 1:
            wrong.append("results.csv has not one row a point")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=108)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10_000)
    rng = random.Random(seed)
    overrides = grid(given.points)
    num_points = _product({text.partition("=")[0]: text.partition("=")[2].split(",") for text in overrides})
    with tempfile.TemporaryDirectory() as temporary:
        folder, alone = Path(temporary, "killed"), Path(temporary, "alone")
        with open(Path(temporary, "log"), "w+b") as log:
            begin = time.monotonic()
            status = start(alone, overrides, log).wait()
            undisturbed_s = time.monotonic() - begin
            print(f"seed {seed}: {num_points} points, {undisturbed_s:.1f} s undisturbed (status {status})", flush=True)
            num_workers = 0
            for i in range(given.kills):
                process = start(folder, overrides, log)
                # From the first imports on; a life is a fraction of the sweep, so that all kills meet a part of it.
                lifetime_s = rng.uniform(0.5, 2.0 * undisturbed_s / (given.kills + 1) + 2.0)
                num_workers += live(process, lifetime_s, rng)
                process.kill()
                process.wait()
                results = len(list(folder.glob("*/result.json")))
                print(f"kill {i + 1}: after {lifetime_s:.1f} s, {results} of {num_points} results", flush=True)
            status = start(folder, overrides, log).wait()
            print(f"workers killed: {num_workers}; the last resume ended with status {status}")
            wrong = compare(folder, alone, num_points)
            states = collections.Counter(trial.state.name for trial in read(folder))
            if wrong or status != 0:
                log.seek(0)
                print(log.read().decode(errors="replace")[-5000:])
        print(f"trials: {dict(states)}")
        for line in wrong:
            print(f"WRONG: {line}")
        print("as undisturbed" if not wrong else f"{len(wrong)} differences")
    sys.exit(1 if wrong or status != 0 else 0)


if __name__ == "__main__":
    main()
