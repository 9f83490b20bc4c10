"""What a sweep's parent keeps of jobs that have ended: its memory and its open files, job after job.

    python scripts/benchmarks/parent_memory.py --points 10000

A grid of the smallest runs that there are (two clients, one round, a logistic model) goes through the real launcher:
each job is a process of its own. After each `--every` ended jobs this process, which is the parent, is looked at: what
it has resident, what of it is its own (`Private` in smaps_rollup: shared libraries do not count), the bytes that live
Python objects have, their number, and its open descriptors. All points are composed and checked before the first job,
so what grows is what ended jobs leave. `--trace` says which lines have allocated what grew (slowly), `--objects`
counts what grew by type.
"""

import argparse
import collections
import contextlib
import gc
import os
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from flgo_hydra import __main__  # noqa: E402
from flgo_hydra.launch import launcher  # noqa: E402

TINY = ["model=logistic", "task.num_clients=2", "num_rounds=1", "num_steps=1", "hydra.launcher.view=none"]


class Looks:
    """Counts jobs that have ended, and looks at this process now and then."""

    def __init__(self, every: int, counts_objects: bool) -> None:
        self._every = every
        self._counts_objects = counts_objects
        self._begin = time.monotonic()
        self._out = sys.stdout
        self.num_ended = 0
        self.rows: list[dict[str, float]] = []
        self.objects: list[collections.Counter[str]] = []
        self.traces: list[tracemalloc.Snapshot] = []

    def take(self, job: Any) -> None:
        self.num_ended += 1
        if self.num_ended % self._every == 0:
            self.look()

    def look(self) -> None:
        gc.collect()
        row = {"jobs": self.num_ended, **memory_mib(), "descriptors": len(os.listdir("/proc/self/fd")) - 1}
        self.rows.append({**row, "seconds": time.monotonic() - self._begin})
        cells = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in self.rows[-1].values()]
        print(f"| {' | '.join(cells)} |", file=self._out, flush=True)
        if self._counts_objects:
            self.objects.append(collections.Counter(kind_of(one) for one in gc.get_objects()))
        if tracemalloc.is_tracing():
            self.traces.append(tracemalloc.take_snapshot())


def kind_of(one: Any) -> str:
    return f"{type(one).__module__}.{type(one).__qualname__}"


def memory_mib() -> dict[str, float]:
    """Of this process: MiB, and how many objects Python has."""
    sizes: collections.Counter[str] = collections.Counter()
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, size, *_ = line.split()
        sizes[name.partition(":")[0].partition("_")[0]] += int(size)
    return {"resident": sizes["Rss"] / 1024, "own": sizes["Private"] / 1024, "blocks": sys.getallocatedblocks()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--objects", action="store_true")
    parser.add_argument("overrides", nargs="*", help="more of them, e.g. hydra.launcher.fuse=64")
    given = parser.parse_args()
    looks = Looks(given.every, given.objects)
    next_event = launcher.PackingLauncher.next_event

    def looking(self: Any, timeout_s: float | None = None) -> Any:
        event = next_event(self, timeout_s)
        if event is not None and event.kind == "ended":
            looks.take(event.job)
        return event

    launcher.PackingLauncher.next_event = looking  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "w") as log:
        os.chdir(folder)
        seeds = f"seed=range({given.points})"
        arguments = ["-m", *TINY, seeds, f"hydra.sweep.dir={folder}/sweep", *given.overrides]
        print("| jobs | resident MiB | own MiB | Python's blocks | descriptors | s |\n|---|---|---|---|---|---|")
        if given.trace:
            tracemalloc.start(12)
        with contextlib.redirect_stdout(log):
            status = __main__._run(arguments)
    first, last = looks.rows[0], looks.rows[-1]
    print(f"status {status}; the last is of the first: resident {last['resident'] / first['resident']:.3f}, ", end="")
    print(f"own {last['own'] / first['own']:.3f}, blocks {last['blocks'] / first['blocks']:.3f}")
    for kind, num in (looks.objects[-1] - looks.objects[0]).most_common(25) if looks.objects else ():
        print(f"{num / (last['jobs'] - first['jobs']):9.2f} a job  {kind}")
    for found in looks.traces[-1].compare_to(looks.traces[0], "lineno")[:25] if looks.traces else ():
        print(f"{found.size_diff / (last['jobs'] - first['jobs']):9.0f} bytes a job  {found.traceback}")


if __name__ == "__main__":
    main()
