"""Calls from several threads, and from within one another."""

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flgo_hydra import init, run, sweep
from flgo_hydra.api.alone import one_at_a_time

SMALL = ("num_rounds=2", "model=logistic", "num_steps=2", "task.num_clients=5")


def numbers(result):
    return result.result.seed, [{k: v for k, v in line.items() if k != "seconds"} for line in result.rounds]


def test_runs_from_several_threads_are_those_of_one_after_another(empty_folder):
    def one(seed):
        return numbers(run(*SMALL, f"seed={seed}"))

    alone = [one(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(one, range(3))) == alone
    assert len({str(losses) for _, losses in alone}) == 3


@pytest.mark.slow
def test_sweeps_and_runners_from_several_threads(empty_folder):
    def grid(seed):
        found = sweep(*SMALL, f"seed={seed}", "lr=0.1,0.01", "hydra/launcher=basic")
        return [numbers(found.by_point[point]) for point in (("lr=0.1",), ("lr=0.01",))]

    def single(seed):
        return numbers(init("digits", "fedavg", {"num_rounds": 2, "seed": seed, "task.num_clients": 5}).run())

    calls = [(grid, 0), (single, 0), (grid, 1), (single, 1)]
    alone = [call(seed) for call, seed in calls]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda one: one[0](one[1]), calls)) == alone


@pytest.mark.parametrize("call", ["run('num_rounds=1')", "sweep('lr=0.1,0.2')", "init('digits', 'fedavg')"])
def test_a_call_from_within_a_run_is_refused_and_the_next_one_works(empty_folder, call):
    (empty_folder / "nested.py").write_text(
        f"from flgo_hydra import init, run, sweep\ndef metrics(model):\n    {call}\n    return {{'own': 1.0}}\n"
    )
    with pytest.raises(ValueError, match="cannot be called from within a run"):
        run(*SMALL, "metrics=nested.metrics")
    assert run(*SMALL).status == "completed"


def test_calls_wait_and_what_fails_lets_the_next_one_in():
    inside, most, lock = 0, 0, threading.Lock()
    may_go = threading.Barrier(4)

    @one_at_a_time
    def call(number):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            if number % 2:
                raise RuntimeError
        finally:
            with lock:
                inside -= 1

    def begin(number):
        may_go.wait(60)
        try:
            call(number)
        except RuntimeError:
            return "failed"
        return "done"

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(begin, range(4))) == ["done", "failed"] * 2
    assert most == 1


def test_a_forked_process_does_not_wait_for_its_parents_call():
    @one_at_a_time
    def fork():
        child = os.fork()
        if child == 0:
            os._exit(one_at_a_time(lambda: 7)())
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert fork() == 7


def test_the_callers_generators_are_as_they_were(empty_folder):
    import torch

    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    expected = torch.rand(2).tolist(), np.random.rand(), random.random()
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    run(*SMALL)
    init("digits", "fedavg", {"num_rounds": 1, "task.num_clients": 5}).run()
    assert (torch.rand(2).tolist(), np.random.rand(), random.random()) == expected
