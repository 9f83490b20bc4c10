"""How long launchers take: jobs that do nothing, and a real grid, one launcher after another.

    python scripts/benchmarks/launcher.py idle --jobs 200 --slots 2
    python scripts/benchmarks/launcher.py grid lr=0.1,0.05,0.02,0.01 seed=0,1,2 num_rounds=10

`idle` times a Hydra app of its own under Hydra's Basic sweeper: what a launcher costs by itself. Composing every job
for the sweeper's own check is counted apart. `grid` times `python -m flgo_hydra -m …` with all its parts. Launchers
take turns (A B C, A B C, …), so that other load on the machine meets all of them; the median and the spread are
shown, and the load average, without which no figure of this kind means anything.
"""

import argparse
import importlib.util
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "flgo_hydra" / "plugins"
LAUNCHERS = {
    "flgo_hydra": ["hydra/launcher=flgo_hydra", "hydra.launcher.view=none"],
    "basic": ["hydra/launcher=basic"],
    "joblib": ["hydra/launcher=joblib"],
}
APP = """
import sys, time
sys.path[:0] = [{root!r}]
if not any(p.rstrip("/").endswith("plugins") for p in sys.path):
    sys.path.append({plugins!r})
import hydra
from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper

ConfigStore.instance().store("config", {{"x": 0}})
check = Sweeper.validate_batch_is_legal

def timed(self, batch):
    begin = time.perf_counter()
    check(self, batch)
    print(f"CHECKED {{time.perf_counter() - begin}}", flush=True)
    print(f"BEGIN {{time.time()}}", flush=True)

Sweeper.validate_batch_is_legal = timed

@hydra.main(config_path=None, config_name="config"{version})
def main(cfg):
    return cfg.x

if __name__ == "__main__":
    main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["idle", "grid"])
    parser.add_argument("overrides", nargs="*", help="grid: what `python -m flgo_hydra -m` gets")
    parser.add_argument("--launchers", default="flgo_hydra,basic,joblib", help="which, separated by commas")
    parser.add_argument("--jobs", type=int, default=200, help="idle: jobs a sweep")
    parser.add_argument("--slots", type=int, default=2, help="jobs at once")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    names = [name for name in arguments.launchers.split(",") if name != "joblib" or has_joblib()]
    walls: dict[str, list[float]] = {name: [] for name in names}
    cpus: dict[str, list[float]] = {name: [] for name in names}
    loads = []
    for _ in range(arguments.repeats):
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                loads.append(os.getloadavg()[0])
                wall, cpu = measure(arguments, name, Path(folder))
            walls[name].append(wall)
            cpus[name].append(cpu)
    num_jobs = arguments.jobs if arguments.what == "idle" else 1
    unit = "ms a job" if arguments.what == "idle" else "s"
    scale = 1000 / num_jobs if arguments.what == "idle" else 1
    print(
        f"{arguments.what}, {arguments.slots} slots, {os.cpu_count()} cores, Python {platform.python_version()}, ",
        end="",
    )
    print(f"load {min(loads):.1f} to {max(loads):.1f}, {arguments.repeats} runs in turn; wall and CPU time in {unit}\n")
    print("| launcher | wall (median) | wall (range) | CPU (median) | speed-up |\n|---|---|---|---|---|")
    reference = statistics.median(walls.get("basic") or walls[names[0]])
    for name in names:
        times = sorted(scale * value for value in walls[name])
        cpu = scale * statistics.median(cpus[name])
        median = statistics.median(times)
        speed = scale * reference / median
        print(f"| {name} | {median:.1f} | {times[0]:.1f} to {times[-1]:.1f} | {cpu:.1f} | {speed:.2f} |")


def has_joblib() -> bool:
    return importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher") is not None


def measure(arguments: argparse.Namespace, name: str, folder: Path) -> tuple[float, float]:
    """Runs one sweep and returns its wall and CPU seconds."""
    limits = {"flgo_hydra": "hydra.launcher.slots", "joblib": "hydra.launcher.n_jobs"}
    overrides = [*LAUNCHERS[name], *([f"{limits[name]}={arguments.slots}"] if name in limits else [])]
    if arguments.what == "idle":
        app = folder / "app.py"
        is_13 = importlib.import_module("hydra").__version__.startswith("1.3")
        version = ', version_base="1.3"' if is_13 else ""
        app.write_text(APP.format(root=str(ROOT), plugins=str(PLUGINS), version=version))
        command = [sys.executable, "-W", "ignore", str(app), "-m", f"x=range({arguments.jobs})", *overrides]
    else:
        command = [sys.executable, "-m", "flgo_hydra", "-m", *overrides, *arguments.overrides]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.time()
    done = subprocess.run(
        [*command, f"hydra.sweep.dir={folder / 'sweep'}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    end = time.time()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if arguments.what == "idle":
        checked = float(re.search(r"CHECKED (\S+)", done.stdout)[1])  # type: ignore[index]
        begin = float(re.search(r"BEGIN (\S+)", done.stdout)[1])  # type: ignore[index]
        cpu -= checked
    return end - begin, cpu


if __name__ == "__main__":
    main()
