"""The virtual clock against sums done by hand, and a small version of the benchmark."""

import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from flgo_hydra.launch.scheduling.auto import AutoScheduler
from flgo_hydra.launch.scheduling.ledger import LedgerScheduler
from flgo_hydra.launch.scheduling.scheduler import BasicScheduler, Device, Placement, Request, RunningJob

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts" / "benchmarks"))
from simulator import (  # noqa: E402
    CONTEXT_MIB,
    DRIVER_MIB,
    NUM_CORES,
    TOTAL_MIB,
    WORKLOADS,
    FlgoAsCoded,
    Outcome,
    SimJob,
    Simulation,
    bound_s,
)

ONE = BasicScheduler


def job(num: int = 0, seconds: float = 100.0, utilisation: float = 0.5, peak: int = 1000, **keys: float) -> SimJob:
    return SimJob(num, keys.pop("signature", "s"), seconds, utilisation, peak, **keys)  # type: ignore[arg-type]


def test_job_alone() -> None:
    outcome = Simulation([job()], 1, ONE()).run()
    assert outcome == Outcome(makespan_s=101.0, bound_s=101.0, num_oom=0, num_failed=0, wait_s=0.0)
    assert outcome.ratio == 1.0


@pytest.mark.parametrize(
    "utilisations, makespan_s",
    [
        ([0.5, 0.5], 101.0),  # they add up to the whole GPU
        ([1.0, 1.0], 201.0),  # half the speed each
        ([0.8, 0.8], 161.0),
        ([0.01] * 2 * NUM_CORES, 201.0),  # two jobs a core
    ],
)
def test_jobs_share_a_gpu(utilisations: list[float], makespan_s: float) -> None:
    jobs = [job(num, utilisation=utilisation) for num, utilisation in enumerate(utilisations)]

    class AllAtOnce(ONE):
        def choose(
            self, waiting: Sequence[Request], running: Sequence[RunningJob], devices: Sequence[Device], now_s: float
        ) -> list[Placement]:
            return [Placement(request.job, devices[0].id) for request in waiting]

    assert Simulation(jobs, 1, AllAtOnce()).run().makespan_s == pytest.approx(makespan_s)


def test_one_job_a_gpu_waits_in_turn() -> None:
    outcome = Simulation([job(num) for num in range(4)], 2, ONE()).run()
    assert outcome.makespan_s == pytest.approx(202.0)
    assert outcome.wait_s == pytest.approx((0 + 0 + 101 + 101) / 4)
    assert outcome.num_oom == 0


def test_memory_steps() -> None:
    one = SimJob(0, "s", 100.0, 0.5, CONTEXT_MIB + 1000, num_rounds=10, late_growth=0.1)
    peak = CONTEXT_MIB + 1000
    assert one.steps() == [(0.0, CONTEXT_MIB + 300), (1.0, CONTEXT_MIB + 800), (9.0, peak), (50.0, int(peak * 1.1))]
    areas = (CONTEXT_MIB + 300) * 1 + (CONTEXT_MIB + 800) * 8 + peak * 41 + int(peak * 1.1) * 50
    assert one.memory_area() == pytest.approx(areas)


@pytest.mark.parametrize(
    "jobs, bound",
    [
        ([job(0, 100, 0.9), job(1, 100, 0.9), job(2, 100, 0.9)], 135.0),  # work on 2 GPUs
        ([job(num, 100, 0.01) for num in range(4 * NUM_CORES)], 200.0),  # cores
        ([job(0, 500, 0.1), job(1, 100, 0.1)], 501.0),  # the longest
    ],
)
def test_bound(jobs: list[SimJob], bound: float) -> None:
    assert bound_s(jobs, 2) == pytest.approx(bound)


def test_bound_by_memory() -> None:
    whole = [job(num, peak=TOTAL_MIB - DRIVER_MIB, utilisation=0.1, num_rounds=10**6) for num in range(4)]
    assert bound_s(whole, 1) == pytest.approx(400.0, rel=1e-3)


def test_out_of_memory_is_tried_with_more_then_alone_then_given_up() -> None:
    giant = [job(0, peak=TOTAL_MIB)]  # more than the driver leaves
    outcome = Simulation(giant, 1, ONE()).run()
    assert (outcome.num_oom, outcome.num_failed) == (3, 1)
    # two that fit one after the other: the later one gives way, and is tried again
    pair = [job(num, peak=50000, num_rounds=1) for num in range(2)]
    outcome = Simulation(pair, 1, BasicScheduler(max_jobs_per_device=None)).run()
    assert (outcome.num_failed, outcome.num_oom) == (0, 1)
    assert outcome.makespan_s == pytest.approx(1 + 90 + 1 + 100)  # dies at its last step, and starts over


def test_waiting_for_nothing_is_an_error() -> None:
    class Never(ONE):
        def choose(self, *args: object) -> list[Placement]:
            return []

    class Hopeful(Never):
        def wait_s(self, *args: object) -> float:
            return 1.0

    for kind, error in [(Never, "nothing can change that"), (Hopeful, "although nothing runs")]:
        with pytest.raises(RuntimeError, match=rf"Jobs \[0\] wait.* {error}"):
            Simulation([job()], 1, kind()).run()


@pytest.mark.slow
def test_auto_comes_to_an_end_after_guesses_larger_than_a_gpu() -> None:
    # Regression: the estimate stayed at a guess that no empty device had free.
    for condition in ["mean", "max"]:
        for seed in range(3):
            jobs = WORKLOADS["heavy"](random.Random(f"heavy/{seed}"), 100)
            assert Simulation(jobs, 2, AutoScheduler(condition=condition)).run().num_failed == 0


def test_flgo_as_coded() -> None:
    flgo = FlgoAsCoded()
    small, large = Device("a", 24000, 2000), Device("b", 24000, 24000)
    waiting = [Request(num, "s") for num in range(3)]
    assert flgo.choose(waiting, [], [small, large], 4.0) == []  # 5 s from its making
    assert flgo.choose(waiting, [], [small, large], 5.0) == [Placement(0, "a"), Placement(1, "b")]  # the first first
    assert flgo.choose(waiting[2:], [], [small, large], 5.5) == []  # once a second
    assert flgo.wait_s(waiting, [], [small, large], 5.5) == 0.5
    assert flgo.choose(waiting[2:], [], [small, large], 9.0) == []  # 5 s from the last one
    starting = [RunningJob(num, "b", "s", 100, None, 0.0) for num in range(2)]
    assert flgo.choose(waiting[2:], starting, [Device("b", 24000, 101)], 10.0) == [Placement(2, "b")]  # pulled down
    crowd = [RunningJob(num, "b", "s", 100, None, 0.0) for num in range(10)]
    assert flgo.choose(waiting[2:], crowd, [large], 20.0) == []
    assert flgo.choose(waiting[2:], crowd[1:], [large], 24.0) == []  # the refusal counted as a placement
    assert flgo.choose(waiting[2:], crowd[1:], [large], 25.0) == [Placement(2, "b")]
    assert FlgoAsCoded("max").choose(waiting, [RunningJob(9, "b", "s", 2000, None, 0.0)], [small], 9.0) == []


def sweeps(workload: str, num_gpus: int, kind: type, max_oom: int | None = 3) -> list[Outcome]:
    jobs = [WORKLOADS[workload](random.Random(f"{workload}/{seed}"), 50 * num_gpus) for seed in range(3)]
    return [Simulation(of_seed, num_gpus, kind(), max_oom).run() for of_seed in jobs]


@pytest.mark.parametrize("num_gpus", [1, 2])
@pytest.mark.parametrize("workload", ["small", "mixed", "short"])
def test_ledger_is_near_the_bound_and_never_out_of_memory(workload: str, num_gpus: int) -> None:
    outcomes = sweeps(workload, num_gpus, LedgerScheduler)
    assert sum(outcome.num_oom for outcome in outcomes) == 0
    assert statistics.mean(outcome.ratio for outcome in outcomes) <= 1.10
    assert all(outcome.ratio >= 1 for outcome in outcomes)


def test_ledger_is_never_out_of_memory_with_heavy_tails() -> None:
    assert sum(outcome.num_oom for outcome in sweeps("heavy", 1, LedgerScheduler)) == 0


def test_rules_that_measure_run_out_of_memory_less_often_than_flgo_and_end() -> None:
    flgo = sum(outcome.num_oom for outcome in sweeps("mixed", 1, FlgoAsCoded, None))
    auto = sweeps("mixed", 1, AutoScheduler)
    assert sum(outcome.num_oom for outcome in auto) < flgo
    assert all(outcome.num_failed == 0 for outcome in auto)


def test_workloads_are_the_same_each_time() -> None:
    for make in WORKLOADS.values():
        jobs = make(random.Random("a"), 20)
        assert jobs == make(random.Random("a"), 20)
        assert [one.job for one in jobs] == list(range(20))
        assert all(one.peak_mib * (1 + one.late_growth) < TOTAL_MIB - DRIVER_MIB for one in jobs)
