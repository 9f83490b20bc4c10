"""A grid of small runs on one device: as one program, as a process a point, and under our launcher (for `gpu.py`).

A process a point is the best that one can do without fusing: each trains by itself with the fastest engine for one run
(clients side by side, CUDA graphs). All are started and warm before the first is timed; of them n train at once for the
same seconds while the others wait for their turn and do nothing. How their kernels share the device is the driver's
default (time slices, unless an MPS daemon runs). The n with the most rounds a second is the best packing.

A worker is this file, run with where it works; it reads a line with a number of seconds, answers with the rounds that
it took in them, and ends with its input.
"""

import argparse
import contextlib
import gc
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_workload import MODELS, QUICK, Workload, failure_of, fused, make_workload, seconds_of, synchronize, what_ran
from gpu_workload import alone as run_alone

from flgo_hydra.config.option import EngineConf

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 2


def fused_row(workload: Workload, num_points: int, num_rounds: int, seconds: float) -> dict[str, Any]:
    """Trains so many points as one program, some rounds or seconds; at least one round after the first ones."""
    if workload.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        program, times = fused(workload, num_points), []
        end = time.perf_counter() + seconds
        while len(times) < WARM_UP + 1 or (len(times) < WARM_UP + num_rounds and time.perf_counter() < end):
            times.append(seconds_of(program.take, workload.device))
        found: dict[str, Any] = {"seconds": statistics.median(times[WARM_UP:]), "note": what_ran(program.note())}
    except Exception as error:  # a row that fails leaves the others
        found = {"failure": failure_of(error)}
    if workload.device.type == "cuda":
        found["mib"] = torch.cuda.max_memory_reserved() / 2**20
    return found


def free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        with contextlib.suppress(Exception):
            torch.cuda.empty_cache()


@dataclass
class Processes:
    """Workers, each with a run of its own on the same device."""

    arguments: Sequence[str]
    """of a worker"""
    workers: list[subprocess.Popen[str]] = field(default_factory=list)
    """that are warm"""
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    note: str = ""
    failure: str = ""
    """of the worker that first said one"""

    def start(self, count: int, deadline: float) -> None:
        """Starts workers and waits until they are warm; those that fail or are late are left out."""
        command = [sys.executable, "-u", __file__, *self.arguments]
        new = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        self.started += new
        for worker, told in zip(new, self._hear(new, deadline), strict=True):
            if told is not None and "failure" not in told:
                self.workers.append(worker)
                self.note = str(told["note"])
                continue
            self.failure = self.failure or str(told["failure"] if told else "a worker ended, or was not ready in time")
            worker.kill()

    def measure(self, count: int, seconds: float) -> float | None:
        """Rounds a second of the first workers, all together; None if there are fewer, or one failed."""
        if count > len(self.workers):
            return None
        chosen = self.workers[:count]
        with contextlib.suppress(BrokenPipeError):
            for worker in chosen:
                assert worker.stdin is not None
                print(seconds, file=worker.stdin, flush=True)
        told = self._hear(chosen, time.monotonic() + seconds + 30)
        if any(one is None or "failure" in one for one in told):
            reasons = [str(one["failure"]) for one in told if one is not None and "failure" in one]
            self.failure = self.failure or next(iter(reasons), "a worker ended, or did not answer")
            self.workers = []
            return None
        return sum(one["rounds"] / one["seconds"] for one in told if one)

    def _hear(self, workers: Sequence[subprocess.Popen[str]], deadline: float) -> list[dict[str, Any] | None]:
        """The next line of each, or None of one that ended or said nothing until then."""
        answers: queue.Queue[tuple[int, str]] = queue.Queue()

        def wait(i: int, worker: subprocess.Popen[str]) -> None:
            assert worker.stdout is not None
            answers.put((i, worker.stdout.readline()))

        for i, worker in enumerate(workers):
            threading.Thread(target=wait, args=(i, worker), daemon=True).start()
        found: list[dict[str, Any] | None] = [None] * len(workers)
        for _ in workers:
            try:
                i, line = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            found[i] = json.loads(line) if line else None
        return found

    def stop(self) -> None:
        for worker in self.started:
            worker.kill()
            worker.wait()


def work(workload: Workload) -> None:
    """What a worker does."""

    def tell(**values: object) -> None:
        print(json.dumps(values), flush=True)

    try:
        program = run_alone(workload, EngineConf("vmap"))
        for _ in range(WARM_UP):
            program.take()
        synchronize(workload.device)
        tell(note=what_ran(program.note()))
        for line in sys.stdin:
            begin, num_rounds = time.perf_counter(), 0
            while time.perf_counter() - begin < float(line):
                program.take()  # its metrics are numbers: the device has been waited for
                num_rounds += 1
            tell(rounds=num_rounds, seconds=time.perf_counter() - begin)
    except Exception as error:
        tell(failure=failure_of(error))


def launcher_rows(workload: Workload, file: Path, counts: Sequence[int], alone_s: float, deadline: float) -> None:
    """The same points through `python -m flgo_hydra -m`, as processes in n slots and fused, as far as time allows."""
    print(
        "| through the launcher | points x rounds/s in training | of the whole command | overlap |\n|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        with np.load(file) as arrays:
            shape = (-1, 784) if workload.name == "mlp" else (-1, 1, 28, 28)
            given = {key: a.reshape(shape) if key.startswith("x") else a for key, a in arrays.items()}
        np.savez(Path(folder) / "data.npz", **given)
        for fuse, count in [*(("off", n) for n in counts), (str(max(counts)), max(counts))]:
            label = f"{count} points, hydra.launcher.fuse={fuse}"
            num_rounds = max(10, int(16 / (alone_s * count)))
            if workload.size == QUICK:
                num_rounds = 2
            try:
                found = _launch(workload, folder, f"{fuse}-{count}", fuse, count, num_rounds, deadline)
            except subprocess.TimeoutExpired:
                found = "left out: no time"
            print(f"| {label} | {found} |", flush=True)


def _launch(workload: Workload, folder: str, name: str, fuse: str, count: int, num_rounds: int, deadline: float) -> str:
    size = workload.size
    command = [sys.executable, "-m", "flgo_hydra", "-m", "task=npz", "task.path=data.npz", "task/partition=iid"]
    command += [f"task.num_clients={size.num_clients}", f"proportion={size.cohort / size.num_clients}", "lr=0.1"]
    command += [f"batch_size={size.batch}", f"num_epochs={size.epochs}", f"num_rounds={num_rounds}"]
    command += ["model=mlp", "model.hidden=[200]"] if workload.name == "mlp" else ["model=cnn"]
    command += [f"seed={','.join(map(str, range(count)))}", "engine.backend=vmap", "task.cache_dir=cache"]
    command += [f"hydra.launcher.fuse={fuse}", f"hydra.launcher.slots={count}", "hydra.launcher.scheduler=ledger"]
    command += ["hydra/launcher=flgo_hydra", "hydra.launcher.view=none", f"hydra.sweep.dir={name}"]
    command += ["hydra.launcher.devices=cpu", "num_threads=1"] if workload.device.type == "cpu" else []
    begin = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=max(1.0, deadline - begin),
    )
    wall_s = time.monotonic() - begin
    if done.returncode:
        return f"failed: {(done.stderr or done.stdout).strip().splitlines()[-1][:150]}"
    spans = []
    for job in range(count):
        records = Path(folder) / name / str(job) / "rounds.jsonl"
        seconds = json.loads(records.read_text().splitlines()[-1])["seconds"]
        end = records.stat().st_mtime  # the last record is written when the training ends
        spans.append((end - seconds, end))
    longest = max(end for _, end in spans) - min(begin for begin, _ in spans)
    overlap = max(0.0, min(end for _, end in spans) - max(begin for begin, _ in spans)) / longest
    total = count * num_rounds
    return f"{total / longest:.1f} | {total / wall_s:.1f} | {overlap:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="A worker of gpu.py.")
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--workload", type=Path)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    work(make_workload(given.model, given.workload, given.quick, torch.device(given.device)))


if __name__ == "__main__":
    main()
