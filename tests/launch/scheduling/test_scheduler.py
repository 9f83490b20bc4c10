"""Tests of the interface, of `basic` and `random`, and of the example in the module's docstring."""

import textwrap

import pytest

from flgo_hydra.launch.scheduling import scheduler as module
from flgo_hydra.launch.scheduling.scheduler import (
    CPU,
    BasicScheduler,
    Device,
    Placement,
    RandomScheduler,
    Request,
    RunningJob,
    capped,
    has_slot,
    started,
)

A, B = Device("GPU-a", 24000, 23000), Device("GPU-b", 24000, 23000)
HOST = Device(CPU, 16000, 12000, slots=2)


def requests(count: int, **keys: object) -> list[Request]:
    return [Request(job, "s", **keys) for job in range(count)]  # type: ignore[arg-type]


def running(device: Device, job: int = 9, **keys: object) -> RunningJob:
    return RunningJob(job, device.id, "s", None, None, 0.0, **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "device, jobs, is_alone, limit, takes",
    [
        (A, [], False, None, True),
        (A, [running(A)], False, None, True),
        (A, [running(A)], False, 1, False),
        (A, [running(B)], False, 1, True),  # another device's job
        (A, [running(A)], True, None, False),  # alone: on a device without jobs only
        (A, [running(A, alone=True)], False, None, False),  # nothing joins a job that is alone
        (HOST, [running(HOST)], False, 1, True),  # CPU slots are counted by the device
        (HOST, [running(HOST), running(HOST)], False, None, False),
    ],
)
def test_has_slot(device: Device, jobs: list[RunningJob], is_alone: bool, limit: int | None, takes: bool) -> None:
    assert has_slot(device, jobs, Request(0, "s", alone=is_alone), limit) is takes


@pytest.mark.parametrize(
    "request_, devices, error",
    [
        (
            Request(7, "s", 30000),
            [A, B],
            "Job 7 needs 30000 MiB, says `hydra.launcher.job_memory_mib`, but the largest GPU has 24000 MiB. Lower",
        ),
        (
            Request(7, "s", 30000),
            [HOST],
            "Job 7 needs 30000 MiB, says `hydra.launcher.job_memory_mib`, but this host has 16000 MiB. Lower",
        ),
        (Request(7, "s", 24000), [A], None),
        (Request(7, "s", None), [A], None),
        (Request(7, "s", 30000, alone=True), [A], None),  # a guess, after it ran out of memory
        (Request(7, "s", 30000), [A, Device("GPU-c", None, None)], None),  # the other one may be large
        (Request(7, "s", 30000), [], None),  # none answers now
    ],
)
def test_impossible(request_: Request, devices: list[Device], error: str | None) -> None:
    found = BasicScheduler().impossible(request_, devices)
    assert found is None if error is None else (found or "").startswith(error)


@pytest.mark.parametrize(
    "memory, devices, memory_then, is_alone",
    [
        (30000, [A, HOST], 24000, True),
        (24000, [A, HOST], 24000, False),
        (None, [A], None, False),
        (30000, [A, Device("GPU-c", None, None)], 30000, False),
        (30000, [], 30000, False),
    ],
)
def test_capped(memory: int | None, devices: list[Device], memory_then: int | None, is_alone: bool) -> None:
    assert capped(Request(0, "s", memory), devices) == Request(0, "s", memory_then, alone=is_alone)


def test_basic_takes_devices_in_turn() -> None:
    basic = BasicScheduler(max_jobs_per_device=2)
    assert [p.device for p in basic.choose(requests(5), [], [A, B], 0.0)] == ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]
    assert basic.choose(requests(1), [], [A, B], 0.0) == [Placement(0, "GPU-a")]
    assert basic.choose(requests(1), [], [B], 0.0) == [Placement(0, "GPU-b")]  # a vanished
    assert basic.choose(requests(1), [], [A, B], 0.0) == [Placement(0, "GPU-a")]
    assert basic.choose(requests(1), [], [], 0.0) == []
    assert basic.wait_s(requests(1), [], [A], 0.0) is None


def test_basic_is_one_job_a_gpu_and_a_job_a_slot() -> None:
    assert len(BasicScheduler().choose(requests(5), [], [A, B], 0.0)) == 2
    assert len(BasicScheduler().choose(requests(5), [], [HOST], 0.0)) == 2
    assert len(BasicScheduler(max_jobs_per_device=None).choose(requests(5), [], [A], 0.0)) == 5


def test_basic_leaves_an_alone_job_alone() -> None:
    first, second = Request(0, "s", alone=True), Request(1, "s")
    assert BasicScheduler(None).choose([first, second], [], [A], 0.0) == [Placement(0, "GPU-a")]
    assert BasicScheduler(None).choose([second, first], [], [A], 0.0) == [Placement(1, "GPU-a")]


def test_random_depends_on_seed_and_job_alone() -> None:
    def draw(seed: int, jobs: list[Request]) -> dict[int, str]:
        return {p.job: p.device for p in RandomScheduler(None, seed).choose(jobs, [], [A, B], 0.0)}

    all_ = draw(0, requests(20))
    assert set(all_.values()) == {"GPU-a", "GPU-b"}
    assert draw(0, requests(20)[5:6])[5] == all_[5]
    assert draw(1, requests(20)) != all_


@pytest.mark.parametrize("kind", [BasicScheduler, RandomScheduler])
def test_law(kind: type[BasicScheduler]) -> None:
    with pytest.raises(ValueError, match="max_jobs_per_device >= 1, or null for no limit` must hold, but got 0"):
        kind(max_jobs_per_device=0)


def test_started() -> None:
    job = started(Request(3, "s", 500, alone=True), Placement(3, "GPU-a", 550), 2.0)
    assert job == RunningJob(3, "GPU-a", "s", None, 550, 2.0, expected_mib=500, alone=True)


def test_example_in_the_docstring_runs() -> None:
    text = (module.__doc__ or "").split("colleagues:\n", 1)[1]
    names: dict[str, type] = {}
    exec(textwrap.dedent(text), names)
    polite = names["PoliteScheduler"](keep_free=0.5)
    jobs = [Request(0, "s", 8000), Request(1, "s", 8000), Request(2, "s", 8000)]
    assert polite.choose(jobs, [], [A, B], 0.0) == [Placement(0, "GPU-a", 8000), Placement(1, "GPU-b", 8000)]
    assert polite.wait_s(jobs, [], [A, B], 0.0) is None
    assert "needs 30000 MiB" in polite.impossible(Request(0, "s", 30000), [A])
