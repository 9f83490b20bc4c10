"""How busy an adaptive sweep keeps its slots: every point is asked for when a slot is free, not ahead.

    python scripts/benchmarks/adaptive.py --trials 40 --slots 2 --seconds 0.8

Runs `python -m flgo_hydra -m` with TPE over a log-uniform lr, and reads from the journal when each trial began and
ended. A slot is idle while no job has it, between its first job and its last: while the sweeper tells the study, asks
the sampler, composes and checks the point, and forks the worker. The last jobs end at different times with any
sampler, so the time after the first slot has had its last job is shown apart.

`--seconds` is how long a job trains about; the number of rounds is found by a run beforehand.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXED = ["model=logistic", "eval_interval=1000000"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.8, help="about how long a job trains")
    parser.add_argument("--sampler", default="tpe")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        probe = sweep(Path(folder) / "probe", "random", 1, 1, 200)
        num_rounds = max(1, round(200 * arguments.seconds / probe[0]["seconds"]))
        begin = time.perf_counter()
        sweep_folder = Path(folder) / "sweep"
        jobs = sweep(sweep_folder, arguments.sampler, arguments.trials, arguments.slots, num_rounds)
        wall = time.perf_counter() - begin
    report(jobs, arguments, num_rounds, wall)


def sweep(folder: Path, sampler: str, trials: int, slots: int, num_rounds: int) -> list[dict[str, float]]:
    """Runs a sweep; returns begin and end of each job, and the seconds it trained."""
    command = [sys.executable, "-m", "flgo_hydra", "-m", *FIXED, f"num_rounds={num_rounds}"]
    command += [
        "lr=tag(log,interval(0.001,0.3))",
        f"hydra.sweeper.sampler={sampler}",
        f"hydra.sweeper.n_trials={trials}",
    ]
    command += ["hydra.launcher.devices=cpu", f"hydra.launcher.slots={slots}", "hydra.launcher.view=none"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, f"hydra.sweep.dir={folder}"], check=True, env=env, stdout=subprocess.DEVNULL)
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = optuna.load_study(
        study_name=None, storage=JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    )
    assert len(study.trials) == trials and all(trial.state.name == "COMPLETE" for trial in study.trials)
    jobs = []
    for trial in study.trials:
        run = folder / str(trial.user_attrs["job"])
        seconds = json.loads((run / "result.json").read_text())["seconds"]
        # The worker's log is made when its process is started; result.json is the last thing it writes.
        (log,) = run.glob("attempt-*.log")
        asked, told = trial.datetime_start.timestamp(), trial.datetime_complete.timestamp()
        ended = (run / "result.json").stat().st_mtime
        jobs.append({"asked": asked, "started": birth(run, asked), "ended": ended, "told": told, "seconds": seconds})
    return jobs


def birth(run: Path, otherwise: float) -> float:
    """When the worker began: the first thing it writes are Hydra's own records of its config."""
    path = run / ".hydra" / "config.yaml"
    return path.stat().st_mtime if path.exists() else otherwise


def report(jobs: list[dict[str, float]], arguments: argparse.Namespace, num_rounds: int, wall: float) -> None:
    slots = arguments.slots
    print(
        f"{arguments.sampler}, {len(jobs)} trials of {num_rounds} rounds, {slots} slots, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}\n"
    )
    begin, end = min(job["asked"] for job in jobs), max(job["told"] for job in jobs)
    # From here on one slot has nothing left to ask for.
    full = sorted(job["told"] for job in jobs)[-slots]
    print("| | |\n|---|---|")
    print(f"| whole command | {wall:.2f} s |")
    print(f"| first point asked to last one told | {end - begin:.2f} s |")
    print(f"| a job, training (mean) | {sum(job['seconds'] for job in jobs) / len(jobs):.2f} s |")
    names = {
        "a job has the slot": ("asked", "told"),
        "a worker runs (from its first file to result.json)": ("started", "ended"),
    }
    for name, (first, last) in names.items():
        busy = sum(max(0.0, min(job[last], full) - min(job[first], full)) for job in jobs)
        slot_s = slots * (full - begin)
        print(f"| slots idle, {name} | {100 * (1 - busy / slot_s):.1f} % of {slot_s:.1f} s |")
    print(f"| at the end, one slot with nothing left to try | {end - full:.2f} s |")
    ahead = max(sum(other["asked"] <= job["asked"] < other["told"] for other in jobs) for job in jobs)
    print(f"| most trials open at once | {ahead} |")


if __name__ == "__main__":
    main()
