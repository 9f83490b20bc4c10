"""What the study costs a sweep of many points: everything but the jobs.

    python scripts/benchmarks/study.py --points 10000 --rounds 20

The real sweeper runs a grid with a launcher whose jobs take no time: each writes a record of `--rounds` rounds and a
result. Shown are CPU times of the parent, which other load on the machine does not change: composing and checking all
points before the first job; then for each trial the sweeper's own part (ask, reports, tell, tables), for the first and
the last thousand; what it takes to go on with the finished sweep; and the parent's peak memory. What the jobs' records
cost to write, and what the launcher costs to compose a job, is not counted.
"""

import argparse
import contextlib
import json
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hydra.core.utils import JobStatus  # noqa: E402

from flgo_hydra import __main__  # noqa: E402
from flgo_hydra.launch import launcher as real  # noqa: E402
from flgo_hydra.launch.processes.returned import Arrived  # noqa: E402
from flgo_hydra.record.paths import RunPaths  # noqa: E402
from flgo_hydra.study import points, sweeper  # noqa: E402
from flgo_hydra.study import sweep as sweeps  # noqa: E402


class Idle(real.PackingLauncher):
    """Jobs that are done when they start."""

    num_rounds = 20
    identity = ""
    """of the point that is submitted next"""
    times: list[float] = []
    """CPU seconds of the parent outside this class, between the ends of jobs"""

    def setup(self, **given: Any) -> None:
        super().setup(**given)
        self._events: deque[Any] = deque()
        self._queue_state = SimpleNamespace(is_idle=True, stop_level=0, waiting=[], expect_more=lambda _: None)
        self._left = 0.0
        self._since = time.process_time()

    def warm(self) -> None:
        pass

    @contextlib.contextmanager
    def watching(self, num_jobs: int | None = None) -> Iterator[Any]:
        self._since = time.process_time()
        yield self._queue_state

    def submit(self, overrides: Sequence[str], num: int, name: str | None = None) -> Any:
        self._leave()
        job = SimpleNamespace(num=num, state="done", is_ended=True)
        write_record(RunPaths(Path(str(self._config.hydra.sweep.dir)) / str(num)), self.identity, self.num_rounds)
        self._events += [SimpleNamespace(kind="started", job=job, values={})]
        for round_num in range(self.num_rounds + 1):
            values = {"kind": "round", "round": round_num, "num_rounds": self.num_rounds}
            values["metrics"] = {"valid_loss": loss(round_num)}
            self._events += [SimpleNamespace(kind="report", job=job, values=values)]
        self._events += [SimpleNamespace(kind="ended", job=job, values={})]
        self._queue_state.is_idle = False
        self._queue_state.waiting = [None] * 100  # one at a time
        self._enter()
        return job

    def next_event(self, timeout_s: float | None = None) -> Any:
        self._leave()
        event = self._events.popleft() if self._events else None
        self._queue_state.is_idle = not self._events
        if event is not None and event.kind == "ended":
            self._queue_state.waiting = []
            self.times.append(self._left)
            self._left = 0.0
        self._enter()
        return event

    def arrived(self, job: Any) -> Arrived:
        return Arrived(JobStatus.COMPLETED, 0.5)

    def _leave(self) -> None:
        self._left += time.process_time() - self._since

    def _enter(self) -> None:
        self._since = time.process_time()


def loss(round_num: int) -> float:
    return 2.0 * math.exp(-0.1 * round_num)


def write_record(run: RunPaths, identity: str, num_rounds: int) -> None:
    """What a job leaves, without waiting for the disk."""
    run.folder.mkdir(parents=True)
    metrics = {name: 0.5 for name in ("valid_loss", "valid_accuracy", "test_loss", "test_accuracy")}
    lines = [json.dumps({"round": r, **metrics, "valid_loss": loss(r), "seconds": 0.1}) for r in range(num_rounds + 1)]
    run.rounds.write_text("\n".join(lines) + "\n")
    best = loss(num_rounds)
    content = {
        **{"status": "completed", "best_valid_loss": best, "best_round": num_rounds, "last_round": num_rounds},
        **{"best": {**metrics, "valid_loss": best}, "last": metrics},
        **{"seconds": 1.0, "peak_memory_mib": 100.0, "device": "cpu", "seed": 0},
        **{"task": {}, "model": {}, "algorithm": {}, "option": {"num_rounds": num_rounds}, "versions": {}},
        "fingerprint": identity,
    }
    run.result.write_text(json.dumps(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--storage", help="an Optuna URL; without it the journal")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    Idle.num_rounds = given.rounds
    check, announce = points.check_points, sweeps.Sweep._announce
    took: dict[str, float] = {}

    def timed_check(*arguments: Any) -> Any:
        begin, wall = time.process_time(), time.perf_counter()
        found = check(*arguments)
        took["check"], took["check wall"] = time.process_time() - begin, time.perf_counter() - wall
        took["points"] = len(found)
        return found

    def telling(sweep: Any, job: Any) -> bool:
        Idle.identity = job.point.identity
        return announce(sweep, job)

    sweeper.check_points = timed_check
    sweeps.Sweep._announce = telling  # type: ignore[method-assign]
    sweeper.PackingLauncher = sweeps.PackingLauncher = Idle  # type: ignore[misc]
    sys.modules["flgo_hydra.launch.launcher"].PackingLauncher = Idle  # type: ignore[attr-defined]
    axes = ["algorithm=fedavg,fedprox", "lr=0.1,0.05,0.02,0.01,0.005", f"seed=range({max(1, given.points // 10)})"]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        arguments = ["-m", "model=logistic", *axes, "hydra.sweep.dir=sweep"]
        if given.storage:
            arguments += [f"hydra.sweeper.storage={given.storage}", "hydra.sweeper.study_name=benchmark"]
        for what in ("the sweep", "going on with it"):
            sys.argv[1:] = arguments
            begin, wall = time.process_time(), time.perf_counter()
            with open("log", "a") as log, contextlib.redirect_stdout(log), profiling(given.profile):
                status = __main__._run(arguments)
            cpu, wall = time.process_time() - begin, time.perf_counter() - wall
            print(f"{what}: status {status}, {cpu:.1f} s CPU, {wall:.1f} s; of it composing and checking ", end="")
            print(f"{took['points']:.0f} points {took['check']:.1f} s CPU, {took['check wall']:.1f} s", flush=True)
        first, last = Idle.times[:1000], Idle.times[-1000:]
        for name, times in (("first", first), ("last", last)):
            ms = sorted(1e3 * seconds for seconds in times)
            mean, p99 = statistics.mean(ms), ms[int(0.99 * len(ms))]
            print(
                f"a trial, {name} {len(ms)}: mean {mean:.2f} ms CPU, median {statistics.median(ms):.2f}, p99 {p99:.2f}"
            )
        size = sum(path.stat().st_size for path in Path("sweep").glob("study.*"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"study {size / 2**20:.1f} MiB; peak memory of the parent {peak:.0f} MiB; load {os.getloadavg()[0]:.1f}")


@contextlib.contextmanager
def profiling(is_wanted: bool) -> Iterator[None]:
    import cProfile
    import pstats

    profile = cProfile.Profile(time.process_time)
    if is_wanted:
        profile.enable()
    yield
    profile.disable()
    if is_wanted:
        pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
