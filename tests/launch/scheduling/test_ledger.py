"""The ledger's decisions as tables, and what must hold for any of them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flgo_hydra.launch.scheduling.ledger import LOOK_S, LedgerScheduler
from flgo_hydra.launch.scheduling.scheduler import CPU, Device, Request, RunningJob, has_slot, jobs_on

MARGIN = 1.1


def gpu(
    id_: str = "a",
    total: int | None = 10000,
    free: int | None = 10000,
    foreign: int | None = 0,
    slots: int | None = None,
) -> Device:
    return Device(id_, total, free, slots, foreign)


def job(
    num: int = 90,
    device: str = "a",
    signature: str = "other",
    memory: int | None = None,
    reserved: int | None = None,
    expected: int | None = None,
    started: float = 0.0,
    alone: bool = False,
) -> RunningJob:
    return RunningJob(num, device, signature, memory, reserved, started, expected, alone)


def choose(
    waiting: list[Request], running: list[RunningJob], devices: list[Device], now_s: float = 0.0, **keys: float
) -> dict[int, tuple[str, int | None]]:
    """Returns {job: (device, MiB booked)}."""
    placements = LedgerScheduler(**keys).choose(waiting, running, devices, now_s)  # type: ignore[arg-type]
    return {p.job: (p.device, p.reserved_mib) for p in placements}


def known(num: int, memory: int, duration: float | None = None) -> Request:
    return Request(num, "s", memory, duration)


@pytest.mark.parametrize(
    "running, device, memory, booked",
    [
        ([], gpu(), 1000, 1100),  # the margin is booked
        ([job(reserved=5000)], gpu(free=9900), 4000, 4400),
        ([job(reserved=5000, memory=100)], gpu(free=9900), 5000, None),  # booked, though not yet taken
        ([job(reserved=2000, memory=6000)], gpu(free=4000), 4000, None),  # took more than was booked
        ([job(reserved=2000, expected=6000)], gpu(), 4000, None),  # one like it took more
        ([job(expected=5000)], gpu(), 4000, 4400),  # a probe that has reported: 5500 are booked
        ([job(expected=5000)], gpu(), 4200, None),
        ([job(memory=100)], gpu(free=9900), 10, None),  # a probe may still come to take everything
        ([job(reserved=1000, alone=True)], gpu(), 10, None),
        ([job(reserved=1000, device="gone")], gpu(), 8000, 8800),  # a vanished device's job
        # strangers
        ([job(reserved=1000)], gpu(foreign=5000, free=5000), 4000, None),
        ([job(reserved=1000)], gpu(foreign=4000, free=6000), 4000, 4400),
        ([job(reserved=1000)], gpu(foreign=None, free=5000), 4000, None),  # 1000 of the free are still to be taken
        ([job(reserved=1000, memory=1000)], gpu(foreign=None, free=5000), 4000, 4400),
        # what is unknown is not 0
        ([], gpu(total=None, free=5000, foreign=None), 5000, 5000),
        ([job(reserved=100)], gpu(total=None, free=5000, foreign=None), 5000, None),
        ([], gpu(total=None, free=None, foreign=None), 5000, 5500),
        ([job(reserved=100)], gpu(total=None, free=None, foreign=None), 10, None),
        ([job(reserved=5000)], gpu(free=None, foreign=None), 4000, 4400),
        # a device of ours alone needs no margin, and what its driver keeps is not in the way
        ([], gpu(), 10000, 10000),
        ([], gpu(foreign=600, free=9400), 10000, 9400),
        ([], gpu(foreign=2000, free=8000), 10000, None),
        ([], gpu(), 10001, 10000),  # ran out of memory on such a device: gets it alone
        ([job(reserved=1)], gpu(), 10001, None),
        # slots
        ([job(reserved=1)], gpu(slots=1), 10, None),
        ([job(reserved=1)], gpu(slots=2), 10, 11),
        # the CPU, by host memory
        ([job(device=CPU, reserved=5000, memory=500)], Device(CPU, 10000, 9000, 2, 500), 4000, 4400),
        ([job(device=CPU, reserved=5000, memory=500)], Device(CPU, 10000, 8800, 2, 700), 4000, None),
    ],
)
def test_what_fits(running: list[RunningJob], device: Device, memory: int, booked: int | None) -> None:
    assert choose([known(0, memory)], running, [device]).get(0) == (None if booked is None else (device.id, booked))


def test_many_start_at_once_and_spread() -> None:
    placed = choose([known(num, 3000) for num in range(9)], [], [gpu("a"), gpu("b")])
    assert placed == {num: ("ab"[num % 2], 3300) for num in range(6)}


@pytest.mark.parametrize(
    "devices, running, device",
    [
        ([gpu("a"), gpu("b")], [job(reserved=1000)], "b"),  # less is booked
        ([gpu("a"), gpu("b", total=40000, free=40000)], [job(reserved=1000), job(91, "b", reserved=2000)], "b"),
        ([gpu("a"), gpu("b")], [], "a"),  # the first of equals
        ([gpu("a", free=1000), gpu("b")], [job(91, "b", reserved=2000)], "b"),  # the other one is too full
    ],
)
def test_least_booked_device(devices: list[Device], running: list[RunningJob], device: str) -> None:
    assert choose([known(0, 2000)], running, devices)[0][0] == device


def test_longest_first_unknown_durations_before_them() -> None:
    waiting = [known(0, 4000, 10), known(1, 4000, 30), known(2, 4000, 20), known(3, 4000, None)]
    assert list(choose(waiting, [], [gpu()])) == [3, 1]
    assert list(choose(waiting[:3], [], [gpu()])) == [1, 2]
    assert list(choose([known(0, 4000, 10), known(1, 4000, 10)], [], [gpu()])) == [0, 1]


def test_small_jobs_pass_a_large_one() -> None:
    assert list(choose([known(0, 9000, 99), known(1, 100, 1)], [job(reserved=5000)], [gpu()])) == [1]


def unknown(num: int, signature: str) -> Request:
    return Request(num, signature)


@pytest.mark.parametrize(
    "waiting, running, devices, placed",
    [
        # one probe; others of its signature wait
        ([unknown(0, "s"), unknown(1, "s")], [], [gpu()], {0: "a"}),
        ([unknown(1, "s")], [job(signature="s", memory=100)], [gpu()], {}),
        # other devices are empty: nothing is lost by probing there, too
        ([unknown(0, "s"), unknown(1, "s")], [], [gpu("a"), gpu("b")], {0: "a", 1: "b"}),
        # first of each signature before the second of any, known ones before that
        ([unknown(0, "s"), unknown(1, "s"), unknown(2, "t")], [], [gpu("a"), gpu("b")], {0: "a", 2: "b"}),
        ([unknown(0, "s"), unknown(1, "s"), known(2, 100)], [], [gpu("a"), gpu("b")], {0: "a", 2: "b"}),
        # beside known jobs where enough is left
        ([unknown(0, "s")], [job(reserved=3000)], [gpu()], {0: "a"}),
        ([unknown(0, "s")], [job(reserved=3001)], [gpu()], {}),
        ([unknown(0, "s")], [job(memory=100)], [gpu()], {}),  # not beside another probe
        # a further one only where it is alone
        ([unknown(0, "s")], [job(signature="s", device="b"), job(91, reserved=1)], [gpu("a"), gpu("b")], {}),
        # others are placed while it probes
        ([unknown(0, "s"), known(1, 100)], [job(signature="s", device="b")], [gpu("a"), gpu("b")], {1: "a"}),
        # the probe on another device has reported
        ([unknown(0, "s")], [job(signature="s", expected=1000)], [gpu()], {0: "a"}),
        # an empty device with strangers, and one that is full of them
        ([unknown(0, "s")], [], [gpu(free=900, foreign=9100)], {0: "a"}),
        ([unknown(0, "s")], [], [gpu(free=0, foreign=10000)], {}),
    ],
)
def test_probes(
    waiting: list[Request], running: list[RunningJob], devices: list[Device], placed: dict[int, str]
) -> None:
    assert {num: device for num, (device, _) in choose(waiting, running, devices).items()} == placed


def test_probe_books_nothing_and_is_booked_once_it_has_reported() -> None:
    assert choose([unknown(0, "s")], [], [gpu()]) == {0: ("a", None)}
    assert choose([known(1, 2000)], [job(signature="s", memory=500)], [gpu()]) == {}
    assert choose([known(1, 2000)], [job(signature="s", memory=500, expected=500)], [gpu()]) == {1: ("a", 2200)}


def test_a_probe_that_ends_no_round_counts_in_time() -> None:
    waiting, probe = [unknown(1, "s")], job(signature="s", memory=500, started=10.0)
    assert choose(waiting, [probe], [gpu()], 69.0, probe_s=60) == {}
    assert choose(waiting, [probe], [gpu()], 70.0, probe_s=60) == {1: ("a", 550)}
    assert LedgerScheduler(probe_s=60).wait_s(waiting, [probe], [gpu()], 30.0) == 40.0
    assert LedgerScheduler(probe_s=None).wait_s(waiting, [probe], [gpu()], 30.0) is None
    silent = job(signature="s", started=10.0)
    assert choose(waiting, [silent], [gpu()], 99.0, probe_s=60) == {}


@pytest.mark.parametrize(
    "request_, running, device, placed",
    [
        (Request(0, "s", 5000, alone=True), [], gpu(), ("a", 5500)),
        (Request(0, "s", 5000, alone=True), [job(reserved=1)], gpu(), None),
        (Request(0, "s", 50000, alone=True), [], gpu(), ("a", 10000)),  # a guess; there is no better place
        (Request(0, "s", 50000, alone=True), [], gpu(free=9500, foreign=500), ("a", 9500)),
        (Request(0, "s", 50000, alone=True), [], gpu(free=5000, foreign=5000), None),  # strangers may leave
        (Request(0, "s", None, alone=True), [], gpu(), ("a", None)),
    ],
)
def test_alone(request_: Request, running: list[RunningJob], device: Device, placed: object) -> None:
    assert choose([request_], running, [device]).get(0) == placed
    assert 1 not in choose([request_, known(1, 10)], running, [device]) or placed is None


def test_wait() -> None:
    ledger = LedgerScheduler()
    assert ledger.wait_s([], [], [gpu()], 0.0) is None
    assert ledger.wait_s([known(0, 10)], [], [], 0.0) == LOOK_S  # the device may come back
    assert ledger.wait_s([known(0, 5000)], [job(reserved=5000)], [gpu()], 0.0) is None  # only its end helps
    assert ledger.wait_s([known(0, 5000)], [], [gpu(free=3000, foreign=7000)], 0.0) == LOOK_S  # strangers may leave


@pytest.mark.parametrize(
    "keys, law",
    [
        ({"margin": 0.9}, "margin >= 1 and finite` must hold, but got 0.9"),
        ({"probe_share": 1.1}, "probe_share <= 1` must hold, but got 1.1"),
        ({"probe_s": -1}, "probe_s <= 2592000, or null for never` must hold, but got -1"),
        ({"max_jobs_per_device": 0}, "max_jobs_per_device >= 1"),
    ],
)
def test_laws(keys: dict[str, float], law: str) -> None:
    with pytest.raises(ValueError, match=law):
        LedgerScheduler(**keys)  # type: ignore[arg-type]


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Request], list[RunningJob], list[Device]]:
    devices: list[Device] = []
    running: list[RunningJob] = []
    for id_ in draw(st.lists(st.sampled_from("abc"), unique=True)):
        total = draw(st.integers(1000, 50000))
        foreign = draw(st.integers(0, total))
        left = total - foreign
        here: list[RunningJob] = []
        for _ in range(draw(st.integers(0, 4))):
            reserved = draw(st.none() | st.integers(0, left))
            left -= reserved or 0
            memory = draw(st.none() | st.integers(0, reserved or 0))
            expected = None if reserved is None else reserved
            here.append(
                job(100 + len(running) + len(here), id_, draw(st.sampled_from("st")), memory, reserved, expected)
            )
        running += here
        used = sum(one.memory_mib or 0 for one in here)
        slots = draw(st.none() | st.integers(1, 5))
        devices.append(Device(id_, total, total - foreign - used, slots, foreign))
    waiting = [
        Request(
            num,
            draw(st.sampled_from("stuv")),
            draw(st.none() | st.integers(1, 50000)),
            draw(st.none() | st.floats(0, 1e6)),
            draw(st.booleans()) and draw(st.booleans()),
        )
        for num in range(draw(st.integers(0, 8)))
    ]
    return waiting, running, devices


def booked(one: RunningJob) -> int:
    return max(one.reserved_mib or 0, one.memory_mib or 0, math.ceil(round((one.expected_mib or 0) * MARGIN, 6)))


@settings(max_examples=150, deadline=None)
@given(situations())
def test_never_over_commits_never_idles_and_decides_alike(
    situation: tuple[list[Request], list[RunningJob], list[Device]],
) -> None:
    waiting, running, devices = situation
    placements = LedgerScheduler().choose(waiting, running, devices, 0.0)
    assert placements == LedgerScheduler().choose(waiting, running, devices, 0.0)
    assert len({p.job for p in placements}) == len(placements)
    by_job = {request.job: request for request in waiting}
    now = list(running)
    for placement in placements:
        request = by_job[placement.job]
        device = next(device for device in devices if device.id == placement.device)
        assert has_slot(device, now, request)
        now.append(RunningJob(request.job, device.id, request.signature, None, placement.reserved_mib, 0.0, None))
    for device in devices:
        assert device.total_mib is not None and device.free_mib is not None and device.foreign_mib is not None
        new = [p for p in placements if p.device == device.id]
        old = jobs_on(device, running)
        left = device.total_mib - device.foreign_mib - sum(map(booked, old)) - sum(p.reserved_mib or 0 for p in new)
        assert left >= 0 or not new
        probes = [one for one in jobs_on(device, now) if one.reserved_mib is None and one.expected_mib is None]
        assert len(probes) <= 1 or not new
        if probes:
            continue
        for request in waiting:
            fits = request.memory_mib is not None and math.ceil(round(request.memory_mib * MARGIN, 6)) <= left
            is_placed = any(p.job == request.job for p in placements)
            assert is_placed or not fits or not has_slot(device, alone_kept(now, by_job), request)


def alone_kept(jobs: list[RunningJob], by_job: dict[int, Request]) -> list[RunningJob]:
    """The jobs with the `alone` of their requests."""
    return [
        RunningJob(j.job, j.device, j.signature, None, None, 0.0, alone=j.job in by_job and by_job[j.job].alone)
        for j in jobs
    ]
