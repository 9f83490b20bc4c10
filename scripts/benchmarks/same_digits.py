"""The same command, the same digits: one grid run in many ways, whose rounds.jsonl may differ in `seconds` only.

    python scripts/benchmarks/same_digits.py                  # lr x 3 seeds, 120 rounds, each way once
    python scripts/benchmarks/same_digits.py --ways alone busy --rounds 30 model=cnn task=mnist5k

The grid is trained point by point, one process each (`alone`, what all others are compared with); beside two loops that
keep the processor busy; with 1, 2 and 4 slots; with its points in another order; with kills of workers and of the whole
command with -9, each time gone on from what is there; and as programs of 4 points and of all, which are compared with
each other, since they round otherwise than one alone. Exits with 1 where a line differs, or where the engines in the
results do. Further overrides are passed on.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kills import ROOT, live
from machine import machine, versions

LRS, SEEDS = ("0.1", "0.03", "0.01"), ("0", "1", "2")
SWEEP = ("hydra.launcher.view=none", "hydra.launcher.max_retries=99", "hydra.launcher.backoff_s=0.05")
BUSY = "while True: pass"
Rounds = dict[tuple[float, int], list[dict[str, Any]]]
"""Lines without their seconds, by learning rate and seed."""
WAYS: dict[str, tuple[str, ...]] = {
    "alone": (),
    "busy": (),
    "slots 1": ("hydra.launcher.slots=1",),
    "slots 2": ("hydra.launcher.slots=2",),
    "slots 4": ("hydra.launcher.slots=4",),
    "other order": (),
    "killed": ("hydra.launcher.slots=2",),
    "fused 9": ("hydra.launcher.fuse=9",),
    "fused 4": ("hydra.launcher.fuse=4",),
    "fused, killed": ("hydra.launcher.fuse=4",),
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flgo_hydra", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def grid(is_reversed: bool = False) -> list[str]:
    axes = {"lr": LRS, "seed": SEEDS}
    if not is_reversed:
        return [f"{key}={','.join(values)}" for key, values in axes.items()]
    return [f"{key}={','.join(reversed(axes[key]))}" for key in reversed(axes)]


def run_alone(folder: Path, given: argparse.Namespace) -> None:
    for lr in LRS:
        for seed in SEEDS:
            where = f"hydra.run.dir={folder}/{lr}-{seed}"
            call(command(f"lr={lr}", f"seed={seed}", *given.task, where), folder.with_suffix(".log"))


def run_sweep(folder: Path, given: argparse.Namespace, way: str) -> None:
    points = grid(is_reversed=way == "other order")
    call(
        command("-m", *points, *SWEEP, *WAYS[way], *given.task, f"hydra.sweep.dir={folder}"), folder.with_suffix(".log")
    )


def run_killed(folder: Path, given: argparse.Namespace, way: str, expected_s: float, rng: random.Random) -> int:
    """Kills the sweep again and again, its workers too; returns how many processes that were."""
    start = command("-m", *grid(), *SWEEP, *WAYS[way], *given.task, f"hydra.sweep.dir={folder}")
    again = [sys.executable, "-m", "flgo_hydra.resume", str(folder)]
    num_killed = 0
    with open(folder.with_suffix(".log"), "ab") as log:
        for _ in range(given.kills):
            arguments = again if (folder / "multirun.yaml").exists() else start
            process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment(), cwd=folder.parent)
            num_killed += 1 + live(process, rng.uniform(2.0, 2.0 + 2 * expected_s / given.kills), rng)
            process.kill()
            process.wait()
    call(again if (folder / "multirun.yaml").exists() else start, folder.with_suffix(".log"))
    return num_killed


def call(arguments: list[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        done = subprocess.run(arguments, stdout=file, stderr=file, env=environment(), cwd=log.parent, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(arguments)} ended with status {done.returncode}:\n{log.read_text()[-3000:]}")


@contextmanager
def busy(is_so: bool) -> Iterator[None]:
    """Inside, two loops use what processors they can get."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(2 if is_so else 0)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def read(folder: Path) -> tuple[Rounds, set[str]]:
    """The rounds of all points, and what trained them."""
    found: Rounds = {}
    engines = set()
    for path in folder.glob("*/result.json"):
        result = json.loads(path.read_text())
        lines = [json.loads(line) for line in (path.parent / "rounds.jsonl").read_text().splitlines()]
        for line in lines:
            del line["seconds"]
        found[result["option"]["lr"], result["seed"]] = lines
        engine = result["engine"]
        kept = {key: engine.get(key) for key in ("backend", "num_threads", "compiled_batch_sizes")}
        engines.add(", ".join(f"{key} {value}" for key, value in kept.items() if value is not None))
    return found, engines


def difference(rounds: Rounds, expected: Rounds) -> str:
    """The first line that differs, or nothing."""
    if rounds.keys() != expected.keys():
        return f"other points: {sorted(rounds)}"
    for point, lines in sorted(rounds.items()):
        if len(lines) != len(expected[point]):
            return f"lr={point[0]} seed={point[1]}: {len(lines)} lines, not {len(expected[point])}"
        for line, other in zip(lines, expected[point], strict=True):
            for key in line.keys() | other.keys():
                if line.get(key) != other.get(key):
                    where = f"lr={point[0]} seed={point[1]} round {line['round']}: {key}"
                    return f"{where} {line.get(key)!r}, not {other.get(key)!r}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=120)
    parser.add_argument("--kills", type=int, default=5, help="of the whole command, in each of the killed ways")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    given, overrides = parser.parse_known_args()
    given.task = [f"num_rounds={given.rounds}", "checkpoint_interval=10", *overrides]
    print(f"{machine()}\n{versions('torch', 'numpy')}")
    print(f"{len(LRS)} learning rates x {len(SEEDS)} seeds, {given.rounds} rounds, {' '.join(overrides) or 'defaults'}")
    print(f"{'':15}{'seconds':>8}{'lines':>7}  {'engine':60}{'digits':20}", flush=True)
    wrong = 0
    expected: dict[bool, tuple[Rounds, set[str]]] = {}
    alone_s = 30.0
    with tempfile.TemporaryDirectory() as temporary:
        for way in given.ways:
            folder = Path(temporary, way.replace(", ", "-").replace(" ", "-"))
            begin, num_killed = time.perf_counter(), 0
            with busy(way == "busy"):
                if way in ("alone", "busy"):
                    run_alone(folder, given)
                elif "killed" in way:
                    num_killed = run_killed(folder, given, way, alone_s, random.Random(given.seed))
                else:
                    run_sweep(folder, given, way)
            seconds = time.perf_counter() - begin
            if way == "slots 2":
                alone_s = seconds
            rounds, engines = read(folder)
            reference = expected.setdefault("fused" in way, (rounds, engines))
            found = difference(rounds, reference[0])
            if not found and engines != reference[1]:
                found = f"other engines than {' | '.join(sorted(reference[1]))}"
            wrong += bool(found) or len(engines) != 1
            num_lines = sum(map(len, rounds.values()))
            verdict = found or (
                "as " + ("alone" if "fused" not in way else "fused") if reference[0] is not rounds else ""
            )
            verdict += f" ({num_killed} processes killed)" if num_killed else ""
            print(f"{way:15}{seconds:>8.1f}{num_lines:>7}  {' | '.join(sorted(engines)):60}{verdict}", flush=True)
    print("the same digits" if not wrong else f"{wrong} ways differ")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
