"""What live curves cost: processes that report a round every few milliseconds, through the real pipe into a real study.

    python scripts/benchmarks/reports.py                        # 16 workers, every 10 ms, 30 s, journal then SQLite
    python scripts/benchmarks/reports.py --thinned --seconds 5  # at most 500 rounds of a run, as a sweep keeps

A worker's delay is what one call of `reporter.report` takes. Blocked is the share of calls in which it waited for
something, preempted that in which the kernel gave its core to somebody else: on a busy machine these make the p99.
Lost is what the study lacks, at the end, of what the workers wrote to `rounds.jsonl`. Behind is how long the parent
still wrote after the last worker had ended.
"""

import argparse
import json
import math
import os
import resource
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from flgo_hydra.launch import reporter
from flgo_hydra.launch.processes.channel import Channel
from flgo_hydra.launch.processes.pool import Pool
from flgo_hydra.launch.processes.worker import MemoryReport, make_reporter
from flgo_hydra.launch.queue import Job, Queue
from flgo_hydra.launch.scheduling.scheduler import CPU, BasicScheduler, Device
from flgo_hydra.objective import VALID_LOSS
from flgo_hydra.record import files
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_rounds
from flgo_hydra.study.stored import study as studies
from flgo_hydra.study.stored.live import LiveCurves


def work(channel: Channel) -> int:
    """A worker: it reports and notes what that took, connected as `worker.run` connects a job."""
    order = json.loads(channel.read_payload())
    memory = MemoryReport(channel)
    reporter.connect(make_reporter(channel, memory))
    run = RunPaths(Path(order["folder"]))
    delays, switches = [], []
    begin = time.perf_counter()
    for number in range(order["num_rounds"] + 1):
        time.sleep(max(0.0, begin + number * order["every_s"] - time.perf_counter()))
        loss = 1.0 + 1.0 / (1 + number)
        files.append_json_line(run.rounds, {"round": number, "valid_loss": loss})
        values = {"round": number, "num_rounds": order["num_rounds"], "metrics": {"valid_loss": loss}, "best": loss}
        before, called = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        reporter.report("round", **values)
        delays.append(time.perf_counter() - called)
        after = resource.getrusage(resource.RUSAGE_SELF)
        switches.append((after.ru_nvcsw > before.ru_nvcsw, after.ru_nivcsw > before.ru_nivcsw))
    channel.write_result(json.dumps([delays, switches]).encode())
    channel.send({"kind": "end", "status": "completed"})
    return 0


def measure(storage: str, num_workers: int, every_s: float, seconds: float, folder: Path) -> list[str]:
    num_rounds = math.ceil(seconds / every_s)
    study = studies.SweepStudy(
        folder / "study.journal" if storage == "journal" else f"sqlite:///{folder}/study.db", "s"
    )
    live = LiveCurves(study, None)
    pool = Pool("reports:work", preload=("flgo_hydra.record.result",))
    queue = Queue(pool, BasicScheduler(), lambda running: [Device(CPU, None, None, slots=num_workers)])
    trials = {}
    num_heard, delays, switches = 0, [], []
    ended: list[Job] = []
    cpu_s, begin = time.process_time(), time.perf_counter()
    for number in range(num_workers):
        order = {"folder": str(folder / str(number)), "num_rounds": num_rounds, "every_s": every_s}
        queue.submit(Job(number, json.dumps(order).encode(), folder / str(number)))
    while not queue.is_idle or live.wait_s() is not None:  # a sweep would not wait for the writing: `finish` harvests
        if queue.is_idle:
            time.sleep(live.wait_s() or 0.0)
        event = queue.next_event(live.wait_s())
        live.write()
        if event is None:
            continue
        if event.kind == "started":
            trials[event.job.num] = study.start({"lr": 0.1}, {"lr": [0.1]}, {})
        elif event.kind == "report":
            num_heard += 1
            live.hear(trials[event.job.num], event.values)
        elif event.kind == "ended":
            ended.append(event.job)
            last_end = time.perf_counter()
    behind_s = time.perf_counter() - last_end
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - begin
    pool.close()
    num_lost = 0
    for job in ended:
        told = json.loads(job.result)
        delays += told[0]
        switches += told[1]
        rounds = read_rounds(RunPaths(job.folder))
        result = SimpleNamespace(
            status="completed", best_round=num_rounds, best_valid_loss=rounds[-1]["valid_loss"], last_round=num_rounds,
            seconds=seconds, best={}, message="", num_rounds=num_rounds, is_valid=True,
            score=rounds[-1]["valid_loss"], monitor=VALID_LOSS,
        )  # fmt: skip
        study.finish(trials[job.num], result, rounds)  # type: ignore[arg-type]
        expected = studies._thinned(list(range(num_rounds + 1)), num_rounds, num_rounds)
        curve = study._study.get_trials(deepcopy=False)[trials[job.num]].intermediate_values
        num_lost += sum(curve.get(r) != rounds[r]["valid_loss"] for r in expected)
    of = num_workers * (num_rounds + 1)
    assert len(delays) == of
    return [
        storage, f"{of}", f"{num_heard}", f"{num_lost}",
        *(f"{_at(delays, q) * 1e3:.3f}" for q in (0.5, 0.99, 1)),
        *(f"{100 * sum(switch[i] for switch in switches) / of:.2f} %" for i in (0, 1)),
        f"{100 * cpu_s / wall_s:.0f} %", f"{behind_s:.1f}",
    ]  # fmt: skip


def _at(values: list[float], quantile: float) -> float:
    return sorted(values)[min(len(values) - 1, int(quantile * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", nargs="+", default=["journal", "sqlite"], choices=["journal", "sqlite"])
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--every-ms", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--thinned", action="store_true", help="keep at most 500 rounds of a run, as a sweep does")
    arguments = parser.parse_args()
    if not arguments.thinned:
        studies.MOST_REPORTS = 10**9
    print(f"{arguments.workers} workers, every {arguments.every_ms:g} ms, {arguments.seconds:g} s, "
          f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(
        "| storage | sent | heard | lost | p50, ms | p99, ms | max, ms | blocked | preempted | parent CPU | behind, s |"
    )
    print("|---" * 11 + "|")
    for storage in arguments.storage:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(storage, arguments.workers, arguments.every_ms / 1e3, arguments.seconds, Path(folder))
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
