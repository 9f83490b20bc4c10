"""FLGo's rule as a table: an injected clock, injected devices, every branch."""

import pytest

from flgo_hydra.launch.scheduling.auto import LOOK_S, SHORTEST_S, AutoScheduler
from flgo_hydra.launch.scheduling.scheduler import CPU, Device, Placement, Request, RunningJob

W = [Request(0, "s"), Request(1, "s"), Request(2, "s")]


def gpu(free: int | None, id_: str = "a", total: int | None = 24000, **keys: int) -> Device:
    return Device(id_, total, free, **keys)


def job(memory: int | None = None, device: str = "a", expected: int | None = None, num: int = 9) -> RunningJob:
    return RunningJob(num, device, "s", memory, None, 0.0, expected_mib=expected)


def at_once(**keys: object) -> AutoScheduler:
    """The rule without its clocks: decides by memory alone."""
    return AutoScheduler(put_interval=0, available_interval=0, **keys)  # type: ignore[arg-type]


FREE_BY_SECOND: list[tuple[list[int | None], int | None]] = [
    ([9000] * 9, 5),
    ([9000, 9000, 900, *[9000] * 9], 8),  # a shortage starts the clock again
    ([1000, 1000, 1001, *[1001] * 9], 7),  # more than the estimate, not as much
    ([900] * 9, None),
    ([9000, 9000, None, 9000, 9000, 9000], 5),  # unknown, nothing of ours on it: no shortage
]


@pytest.mark.parametrize("free_by_second, first_start_s", FREE_BY_SECOND)
def test_available_interval(free_by_second: list[int | None], first_start_s: int | None) -> None:
    auto = AutoScheduler(put_interval=5, available_interval=5)
    starts = [now for now, free in enumerate(free_by_second) if auto.choose(W[:1], [], [gpu(free)], float(now))]
    assert next(iter(starts), None) == first_start_s


def test_put_interval() -> None:
    auto = AutoScheduler(put_interval=5, available_interval=2)
    assert [now for now in range(13) if auto.choose(W, [], [gpu(20000)], float(now))] == [2, 7, 12]


def test_a_device_that_vanishes_and_returns_starts_its_clock_again() -> None:
    auto = AutoScheduler(put_interval=5, available_interval=5)
    assert auto.choose(W, [], [gpu(9000)], 0.0) == []
    assert auto.choose(W, [job(500)], [], 4.0) == []
    assert auto.wait_s(W, [], [], 4.0) == LOOK_S
    assert [now for now in range(5, 12) if auto.choose(W, [], [gpu(9000)], float(now))] == [10]


@pytest.mark.parametrize(
    "condition, dynamic, jobs, free, starts",
    [
        ("mean", True, [], 1001, True),  # initial_memory_mib until a job runs
        ("mean", True, [], 1000, False),
        ("mean", True, [job(3000), job(5000)], 4001, True),
        ("mean", True, [job(3000), job(5000)], 4000, False),
        ("max", True, [job(3000), job(5000)], 5001, True),
        ("max", True, [job(3000), job(5000)], 5000, False),
        ("max", False, [job(3000), job(5000)], 1001, True),  # not dynamic
        ("mean", True, [job(None)], 1000, False),  # unknown is not 0
        ("mean", True, [job(None)], 1001, True),
        ("mean", True, [job(200)], 1000, False),  # in its first round: not less than the initial figure
        ("mean", True, [job(200, expected=400)], 401, True),  # its peak is known to be small
        ("mean", True, [job(200, expected=6000)], 6000, False),  # starting, known to grow
        ("mean", True, [job(5000, device="gone")], 5000, False),  # still one of ours
        ("mean", True, [], None, True),  # unknown device, empty
        ("mean", True, [job(100)], None, False),  # unknown device, taken
    ],
)
def test_memory(condition: str, dynamic: bool, jobs: list[RunningJob], free: int | None, starts: bool) -> None:
    auto = at_once(condition=condition, dynamic=dynamic)
    assert bool(auto.choose(W[:1], jobs, [gpu(free)], 0.0)) is starts


def test_estimate_does_not_outlive_the_jobs_it_came_from() -> None:
    auto = at_once()
    assert auto.choose(W, [job(8000)], [gpu(8000)], 0.0) == []
    assert auto.choose(W, [], [gpu(8000)], 1.0) == [Placement(0, "a")]  # else it might wait for ever


def test_an_alone_jobs_guess_closes_no_other_device() -> None:
    alone = RunningJob(9, "a", "s", 500, None, 0.0, expected_mib=99000, alone=True)
    assert at_once().choose(W, [alone], [gpu(9000), gpu(9000, "b")], 0.0) == [Placement(0, "b")]


def test_growing_strangers_close_a_device() -> None:
    auto = AutoScheduler(put_interval=5, available_interval=2)
    free = [9000, 6000, 900, 900]  # of which nothing is ours
    assert [auto.choose(W, [], [gpu(f, foreign_mib=24000 - f)], float(s)) for s, f in enumerate(free)] == [[]] * 4


@pytest.mark.parametrize(
    "request_, device, starts",
    [
        (Request(0, "s", 9000), gpu(9000), True),
        (Request(0, "s", 9001), gpu(9000), False),
        (Request(0, "s", 24000), gpu(23400), True),  # all of an empty device; its driver keeps 600
        (Request(0, "s", 24001), gpu(23400), True),  # ran out of memory on such a device: gets it alone
        (Request(0, "s", 24000), gpu(20000), False),  # strangers
        (Request(0, "s", 99000, alone=True), gpu(23400), True),
        (Request(0, "s", 99000, alone=True), gpu(9000), False),  # strangers
        (Request(0, "s", 9000), gpu(None, total=9000), True),
        (Request(0, "s", 9000), gpu(None, total=8000), True),
        (Request(0, "s", 9000), gpu(None, total=None), True),
    ],
)
def test_a_request_with_a_figure_must_fit(request_: Request, device: Device, starts: bool) -> None:
    assert bool(at_once().choose([request_], [], [device], 0.0)) is starts


def test_devices_by_free_memory_and_one_job_each() -> None:
    devices = [gpu(None, "unknown"), gpu(5000, "a"), gpu(9000, "b"), gpu(500, "full")]
    placed = at_once().choose([*W, Request(3, "s")], [], devices, 0.0)
    assert placed == [Placement(0, "b"), Placement(1, "a"), Placement(2, "unknown")]


@pytest.mark.parametrize(
    "device, jobs, limit, starts",
    [
        (gpu(20000), 10, 10, False),
        (gpu(20000), 9, 10, True),
        (gpu(20000), 40, None, True),
        (gpu(20000, slots=4), 4, 10, False),
        (Device(CPU, 24000, 20000, slots=64), 40, 10, True),
    ],
)
def test_slots(device: Device, jobs: int, limit: int | None, starts: bool) -> None:
    here = [job(100, device=device.id, expected=100, num=10 + num) for num in range(jobs)]
    assert bool(at_once(max_jobs_per_device=limit).choose(W, here, [device], 0.0)) is starts


def test_alone() -> None:
    request = Request(0, "s", alone=True)
    assert at_once().choose([request], [job(500)], [gpu(20000)], 0.0) == []
    assert at_once().choose([request], [job(500)], [gpu(20000), gpu(9000, "b")], 0.0) == [Placement(0, "b")]


def test_wait() -> None:
    auto = AutoScheduler(available_interval=0.5, put_interval=0.25, max_jobs_per_device=10)
    device = [gpu(9000)]
    assert auto.choose(W, [], device, 0.0) == []
    assert auto.wait_s(W, [], device, 0.0) == 0.5
    assert auto.wait_s([], [], device, 0.0) is None
    assert auto.choose(W, [], device, 0.5) == [Placement(0, "a")]
    assert auto.wait_s(W[1:], [job()], device, 0.5) == 0.25
    assert auto.wait_s(W[1:], [job(num=n) for n in range(10)], device, 0.5) is None  # only an end changes that
    assert auto.choose(W, [], [gpu(900)], 0.6) == []
    assert auto.wait_s(W, [], [gpu(900)], 0.6) == LOOK_S  # strangers may leave
    eager = at_once()
    assert eager.choose(W, [], device, 0.0) == [Placement(0, "a")]
    assert eager.wait_s(W[1:], [job()], device, 0.0) == SHORTEST_S


@pytest.mark.parametrize(
    "keys, law",
    [
        ({"put_interval": -1}, "0 <= hydra.launcher.scheduler.put_interval <= 2592000, .* must hold, but got -1"),
        ({"put_interval": float("inf")}, "put_interval <= 2592000, or null .* must hold, but got inf"),
        ({"available_interval": -1}, "available_interval <= 2592000, .* must hold, but got -1"),
        ({"available_interval": float("nan")}, "available_interval <= 2592000, .* must hold, but got nan"),
        ({"initial_memory_mib": -1}, "initial_memory_mib >= 0` must hold, but got -1"),
        ({"condition": "median"}, "condition` must be one of mean, max, but got 'median'"),
        ({"max_jobs_per_device": 0}, "max_jobs_per_device >= 1"),
    ],
)
def test_laws(keys: dict[str, int], law: str) -> None:
    with pytest.raises(ValueError, match=law):
        AutoScheduler(**keys)  # type: ignore[arg-type]


KNOWN = [Request(num, "s", 2000) for num in range(9)]


def test_known_jobs_wait_for_nothing() -> None:
    """All that fit start at once, where their peaks are known: the third one's free memory is what two leave."""
    auto = AutoScheduler()
    assert auto.choose(KNOWN, [], [gpu(7000)], 0.0) == [Placement(num, "a") for num in range(3)]
    here = [job(None, expected=2000, num=num) for num in range(3)]  # they have taken nothing yet
    assert auto.choose(KNOWN[3:], here, [gpu(7000)], 0.1) == []
    grown = [job(2000, expected=2000, num=num) for num in range(3)]
    assert auto.choose(KNOWN[3:], grown, [gpu(4100)], 0.2) == [Placement(3, "a"), Placement(4, "a")]


@pytest.mark.parametrize(
    "keys, starts", [({}, [0, 5, 10]), ({"put_interval": 3}, [0, 5, 8]), ({"condition": "max"}, [0, 5, 10])]
)
def test_jobs_without_a_round_are_waited_for(keys: dict[str, float], starts: list[int]) -> None:
    auto = AutoScheduler(**keys)  # type: ignore[arg-type]
    found, here = [], []
    for now in range(12):
        for placement in auto.choose([Request(now, f"s{now}")], here, [gpu(23000 - 500 * len(here))], float(now)):
            found.append(now)
            here.append(RunningJob(placement.job, "a", f"s{now}", 500, None, float(now)))
    assert found[: len(starts)] == starts


def test_the_end_of_a_first_round_ends_the_wait() -> None:
    auto = AutoScheduler()
    assert auto.choose([Request(0, "s")], [], [gpu(23000)], 0.0) == [Placement(0, "a")]
    assert auto.choose([Request(1, "t")], [job(1500, num=0)], [gpu(21500)], 0.5) == []
    assert auto.wait_s([Request(1, "t")], [job(1500, num=0)], [gpu(21500)], 0.5) == LOOK_S
    known = [job(1500, expected=1500, num=0)]
    assert auto.choose([Request(1, "t")], known, [gpu(21500)], 0.6) == [Placement(1, "a")]


@pytest.mark.parametrize(
    "free, here, signature, starts",
    [
        (16800, [job(1000, expected=1000)], "t", True),  # most of the device is free
        (16700, [job(1000, expected=1000)], "t", False),
        (16700, [], "t", True),
        (20000, [job(1000, expected=4300)], "t", False),  # it will not be, when the other has grown
        (23000, [job(500), job(900, expected=900)], "s", False),  # one like it is being looked at
    ],
)
def test_a_job_of_which_nothing_is_known(free: int, here: list[RunningJob], signature: str, starts: bool) -> None:
    auto = AutoScheduler()
    assert bool(auto.choose([Request(0, signature)], here, [gpu(free)], 0.0)) is starts


def test_a_number_asks_for_the_strict_rule() -> None:
    auto = AutoScheduler(put_interval=5, available_interval=5)
    assert [now for now in range(12) if auto.choose(KNOWN, [], [gpu(23000)], float(now))] == [5, 10]
    here = [job(None, expected=9000)]  # free memory is taken as it is
    assert AutoScheduler(0, 0).choose(KNOWN[:1], here, [gpu(9500)], 0.0) == [Placement(0, "a")]
