"""Policy over a pretend pool and clock: what is started when, and what becomes of it."""

import errno
import math
import os
import signal

import pytest

from flgo_hydra.launch.failures import Attempt, Failure
from flgo_hydra.launch.processes.pool import Ended, Message, Started
from flgo_hydra.launch.queue import Job, Queue
from flgo_hydra.launch.reporter import WHY_APART
from flgo_hydra.launch.scheduling.auto import AutoScheduler
from flgo_hydra.launch.scheduling.ledger import LedgerScheduler
from flgo_hydra.launch.scheduling.scheduler import BasicScheduler, Device, Placement, RandomScheduler, Scheduler

HOST = Device("cpu", 10_000, 9_000, slots=2)
GPU = Device("GPU-1", 80_000, 79_000, slots=4)
KILL = -signal.SIGKILL


class PretendPool:
    """Notes what it is asked, and tells the events it was given; an empty list of events lets time pass."""

    def __init__(self, clock):
        self.clock = clock
        self.refusals = []
        self.started, self.stops, self.ends, self.told, self.waits, self.pruned = [], [], [], [], [], []
        self.groups = []

    def start_group(self, payloads, log, cwd, env, is_group):
        if self.refusals:
            raise OSError(number := self.refusals.pop(0), os.strerror(number))
        self.groups.append(is_group)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        first = len(self.started) + 1
        for payload in payloads:
            self.started.append((payload, log.name, env))
            self.told.append([Started(len(self.started), 100 + first)])
        return list(range(first, len(self.started) + 1))

    def request_prune(self, token, reason):
        self.pruned.append((token, reason))

    def request_stop(self, token):
        self.stops.append(token)

    def end(self, token, grace_s):
        self.ends.append(token)

    def wait(self, timeout_s):
        self.waits.append(timeout_s)
        if self.told:
            return self.told.pop(0)
        assert timeout_s is not None, "the queue would wait for ever"
        self.clock.now += timeout_s
        return []

    def say(self, token, **values):
        self.told.append([Message(token, values)])

    def finish(self, token, exit_status=0, peak_mib=None, **end):
        if end or exit_status == 0:
            self.say(token, **{"kind": "end", "status": "completed", **end})
        self.told.append([Ended(token, exit_status, peak_mib, b"result")])


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class World:
    def __init__(self, folder):
        self.folder = folder
        self.clock = Clock()
        self.pool = PretendPool(self.clock)
        self.devices = [HOST]
        self.kills = 0

    def queue(self, scheduler=None, **settings):
        return Queue(
            pool=self.pool,
            scheduler=scheduler or BasicScheduler(),
            read_devices=lambda running: self.devices,
            read_kernel_kills=lambda: self.kills,
            clock=self.clock,
            **settings,
        )

    def job(self, num=0, **values):
        return Job(num, f"job {num}".encode(), self.folder / str(num), **values)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def events(queue, *kinds):
    """Events until nothing is left; only those of `kinds`, if any are named."""
    found = []
    while not queue.is_idle:
        event = queue.next_event()
        if event is not None and (not kinds or event.kind in kinds):
            found.append(event)
    return found


def until(queue, kind):
    while True:
        event = queue.next_event()
        if event is not None and event.kind == kind:
            return event


def test_a_job_that_is_told_to_end_for_good_is_done(world):
    """It has a result; how long it took says nothing of others."""
    queue = world.queue()
    job, other = world.job(0, duration_signature="d"), world.job(1)
    queue.submit(job)
    queue.submit(other)
    until(queue, "started")
    queue.prune(job, "pruned by median")
    assert world.pool.pruned == [(1, "pruned by median")]
    world.pool.finish(1, has_heeded_prune=True)
    world.pool.finish(2)
    assert [event.job.state for event in events(queue, "ended")] == ["done", "done"]
    assert (job.is_pruned, other.is_pruned) == (True, False)
    assert queue.estimates.duration_s("d") is None
    queue.prune(job, "too late")
    assert len(world.pool.pruned) == 1


def test_a_slot_is_filled_again_at_once(world):
    queue = world.queue()
    for num in range(3):
        queue.submit(world.job(num))
    assert [queue.next_event().job.num for _ in range(2)] == [0, 1]
    assert len(world.pool.started) == 2
    world.pool.finish(1)
    ended, started = queue.next_event(), queue.next_event()
    assert (ended.kind, ended.job.num, ended.job.state) == ("ended", 0, "done")
    assert (started.kind, started.job.num) == ("started", 2)
    world.pool.finish(2)
    world.pool.finish(3)
    assert [event.job.num for event in events(queue, "ended")] == [1, 2]
    assert queue.is_idle and queue.next_event() is None


def test_reports_reach_the_caller_and_memory_the_scheduler(world):
    queue = world.queue()
    job = world.job(signature="s")
    queue.submit(job)
    queue.next_event()
    world.pool.say(1, kind="memory", memory_mib=300)
    world.pool.say(1, kind="round", round=0, valid_loss=0.5)
    assert queue.next_event().values["valid_loss"] == 0.5
    assert queue.running_jobs()[0].memory_mib == 300
    assert queue.running_jobs()[0].expected_mib is None  # the untrained model says nothing about the first round
    world.pool.say(1, kind="memory", memory_mib=400)
    world.pool.say(1, kind="round", round=1, valid_loss=0.4)
    queue.next_event()
    assert queue.running_jobs()[0].expected_mib == 400
    assert queue.estimates.memory_mib("s") == 400
    assert job.progress["valid_loss"] == 0.4


def test_killed_twice_then_done(world):
    queue = world.queue(max_retries=2, backoff_s=4.0)
    job = world.job()
    queue.submit(job)
    world.pool.told = []
    for token in (1, 2):
        until(queue, "started")
        world.pool.finish(token, KILL)
        retry = until(queue, "retry")
        assert retry.values["failure"].kind == "killed"
        assert retry.values["after_s"] == 4.0 * token
    before = world.clock.now
    until(queue, "started")
    assert world.clock.now == before + 8.0
    world.pool.finish(3)
    assert until(queue, "ended").job.state == "done"
    assert [attempt.failure and attempt.failure.kind for attempt in job.attempts] == ["killed", "killed", None]
    assert [log for _, log, _ in world.pool.started] == ["attempt-1.log", "attempt-2.log", "attempt-3.log"]
    assert [env["FLGO_HYDRA_ATTEMPT"] for _, _, env in world.pool.started] == ["1", "2", "3"]


def test_killed_too_often(world):
    queue = world.queue(max_retries=1, backoff_s=0.0)
    job = world.job()
    queue.submit(job)
    for token in (1, 2):
        until(queue, "started")
        world.pool.finish(token, KILL)
    assert until(queue, "ended").job.state == "failed"
    assert job.failure.kind == "killed" and len(job.attempts) == 2


def test_out_of_memory_larger_then_alone_then_failed(world):
    world.devices = [GPU]
    queue = world.queue(max_retries=0)
    job = world.job(memory_mib=1000)
    queue.submit(job)
    error = {"type": "torch.OutOfMemoryError", "message": "CUDA out of memory. Tried to allocate 1.00 GiB."}
    seen = []
    for token in (1, 2, 3):
        until(queue, "started")
        seen.append((queue.running_jobs()[0].expected_mib, queue.running_jobs()[0].alone))
        world.pool.say(token, kind="memory", memory_mib=900)
        world.pool.finish(token, 1, error=error)
    assert until(queue, "ended").job.state == "failed"
    # 900 it had and 1024 it asked for; then 1.3 times that
    assert seen == [(1000, False), (1924, False), (2501, True)]
    assert job.failure.kind == "out_of_memory" and job.failure.wanted_mib == 1924


def test_more_than_any_device_has_means_alone(world):
    queue = world.queue()
    job = world.job(memory_mib=9_000)
    queue.submit(job)
    until(queue, "started")
    world.pool.finish(1, 1, error={"type": "MemoryError", "message": ""})
    assert until(queue, "retry").values["alone"]


def test_a_kernel_kill_explains_one_death(world):
    queue = world.queue(backoff_s=0.0)
    jobs = [world.job(num, memory_mib=100) for num in range(2)]
    for job in jobs:
        queue.submit(job)
    until(queue, "started")
    until(queue, "started")
    world.kills += 1
    world.pool.finish(1, KILL, 300)
    world.pool.finish(2, KILL, 300)
    kinds = [until(queue, "retry").values["failure"].kind for _ in range(2)]
    assert kinds == ["out_of_memory", "killed"]


def test_a_job_larger_than_any_device_does_not_start(world):
    queue = world.queue()
    queue.submit(world.job(memory_mib=30_000))
    event = queue.next_event()
    assert (event.kind, event.job.state, event.job.failure.kind) == ("ended", "failed", "impossible")
    assert "30000 MiB" in event.job.failure.message and "10000 MiB" in event.job.failure.message
    assert not world.pool.started


@pytest.mark.parametrize("scheduler", [LedgerScheduler, AutoScheduler, BasicScheduler, RandomScheduler])
@pytest.mark.parametrize("device", [HOST, GPU])
def test_a_figure_that_was_only_remembered_is_no_law(world, scheduler, device):
    """One job shows alone what they need; from then on that counts."""
    world.devices = [device]
    queue = world.queue(scheduler(), guess_mib=100)
    queue.estimates.learn_memory("s", 300_000)
    for num in range(3):
        queue.submit(world.job(num, signature="s"))
    first = until(queue, "started").job
    for _ in range(3):
        queue.next_event(20.0)
    assert [running.job for running in queue.running.values()] == [first] and first.alone
    world.pool.finish(1, peak_mib=200) if device is HOST else world.pool.say(1, kind="memory", memory_mib=200)
    if device is GPU:
        world.pool.finish(1)
    assert until(queue, "ended").job.state == "done"
    assert until(queue, "started").job.num == 1 and not queue.running[2].job.alone
    assert queue.running[2].expected_mib == 200


def test_jobs_whose_given_memory_is_too_much_together_start_in_halves(world):
    queue = world.queue(fuse=4)
    jobs = fused(world, 4, memory_mib=4_000)
    for job in jobs:
        queue.submit(job)
    until(queue, "started")
    assert sizes(queue) == [2, 2, 2, 2]


def test_time_is_up_over_all_attempts(world):
    queue = world.queue(timeout_s=60.0, backoff_s=0.0)
    job = world.job()
    queue.submit(job)
    until(queue, "started")
    world.pool.told.append([Started(1, 1)])
    assert queue.next_event(timeout_s=40.0) is None
    world.pool.finish(1, KILL)
    until(queue, "retry")
    until(queue, "started")
    before = world.clock.now
    while not world.pool.ends:
        queue.next_event()
    assert world.clock.now == before + 20.0
    world.pool.finish(2, 143)
    assert until(queue, "ended").job.failure.kind == "timeout"


def test_errors_are_not_tried_again_in_the_first_round(world):
    queue = world.queue(backoff_s=0.0)
    error = {"type": "ValueError", "message": "lr"}
    queue.submit(world.job())
    until(queue, "started")
    world.pool.finish(1, 1, error=error)
    assert until(queue, "ended").job.failure.message == "ValueError: lr"


def test_cancel(world):
    queue = world.queue()
    jobs = [world.job(num) for num in range(3)]
    for job in jobs:
        queue.submit(job)
    until(queue, "started")
    until(queue, "started")
    queue.cancel(jobs[2])
    assert until(queue, "ended").job.state == "cancelled"
    queue.cancel(jobs[0], now=False)
    queue.cancel(jobs[1])
    assert (world.pool.stops, world.pool.ends) == ([1], [2])
    world.pool.finish(1, has_heeded_stop=True)
    world.pool.finish(2, 143)
    assert [event.job.state for event in events(queue, "ended")] == ["cancelled", "cancelled"]


def test_stop_once_and_twice(world):
    queue = world.queue()
    jobs = [world.job(num) for num in range(4)]
    for job in jobs[:3]:
        queue.submit(job)
    until(queue, "started")
    until(queue, "started")
    queue.stop()
    assert (world.pool.stops, world.pool.ends) == ([1, 2], [])
    queue.submit(jobs[3])
    assert [until(queue, "ended").job.num for _ in range(2)] == [2, 3]
    world.pool.finish(1, 130, status="stopped", has_heeded_stop=True)
    assert until(queue, "ended").job.state == "stopped"
    queue.stop(now=True)
    assert world.pool.ends == [2]
    world.pool.finish(2, KILL)
    assert until(queue, "ended").job.state == "stopped"  # and no retry
    assert queue.is_idle


def test_no_device_is_told_and_looked_for_again(world):
    world.devices = []
    queue = world.queue()
    queue.submit(world.job())
    assert queue.next_event().kind == "stuck"
    assert queue.next_event() is None and world.pool.waits[-1] == 1.0
    world.devices = [HOST]
    assert until(queue, "started").job.num == 0


class Full(Scheduler):
    """A memory rule that has no room, and cannot say when."""

    def choose(self, waiting, running, devices, now_s):
        return []

    def wait_s(self, waiting, running, devices, now_s):
        return 1.0


def test_a_host_without_room_gives_a_job_its_chance_alone(world):
    queue = world.queue(Full(), max_retries=1, backoff_s=0)
    queue.submit(world.job(0))
    queue.submit(world.job(1))
    assert queue.next_event().kind == "stuck" and world.pool.started == []
    assert until(queue, "started").job.num == 0
    assert world.clock.now == 105.0 and world.pool.waits == [1.0] * 5
    for _ in range(20):  # never two of them
        queue.next_event(1.0)
    assert len(world.pool.started) == 1
    world.kills += 1
    world.pool.finish(1, KILL, 9_500)  # it was alone: there is nothing else to try
    job = until(queue, "ended").job
    assert (job.num, job.state, job.failure.kind) == (0, "failed", "out_of_memory") and job.failure.wanted_mib >= 9_500
    assert until(queue, "started").job.num == 1


class Says(Full):
    """The same, which says any time."""

    def __init__(self, wait_s):
        self.said_s = wait_s

    def wait_s(self, waiting, running, devices, now_s):
        return self.said_s


@pytest.mark.parametrize(
    "scheduler, most_s",
    [
        (LedgerScheduler(), 5.0),
        (AutoScheduler(), 5.0),
        (BasicScheduler(), 0.0),  # these look at no memory
        (RandomScheduler(), 0.0),
        *[(Says(wait_s), 5.0) for wait_s in (None, -1.0, 0.0, 0.3, 1.0, 5.0, math.inf, -math.inf, math.nan)],
        (Says(7.5), 7.5),
        (Says(1e9), 60.0),
    ],
)
def test_whatever_the_scheduler_a_job_tries_where_nothing_of_ours_runs(world, scheduler, most_s):
    world.devices = [Device("cpu", 10_000, 200, slots=2)]
    queue = world.queue(scheduler, guess_mib=2_500)
    jobs = [world.job(0), world.job(1)]
    for job in jobs:
        queue.submit(job)
    assert until(queue, "started").job is jobs[0] and world.clock.now == pytest.approx(100.0 + most_s)
    assert jobs[0].alone == (most_s > 0.0) and len(world.pool.started) == (1 if most_s else 2)


def test_the_chance_of_one_job_is_not_the_next_ones(world):
    """Each waits its time for room, from when it could have started."""
    queue = world.queue(Full())
    for num in range(3):
        job = world.job(num)
        queue.submit(job)
        begin = world.clock.now
        until(queue, "started")
        assert world.clock.now == begin + 5.0
        world.pool.finish(num + 1)
        until(queue, "ended")
        world.clock.now += 100.0


def test_a_gpu_that_others_have_is_waited_for(world):
    world.devices = [GPU]
    queue = world.queue(Full())
    queue.submit(world.job())
    for _ in range(30):
        queue.next_event(1.0)
    assert world.pool.started == []


class Never(Scheduler):
    """Waits as long as it says."""

    def choose(self, waiting, running, devices, now_s):
        return [Placement(r.job, "cpu") for r in waiting] if now_s >= 107.5 else []

    def wait_s(self, waiting, running, devices, now_s):
        return 107.5 - now_s


def test_the_schedulers_own_clock(world):
    queue = world.queue(Never())
    queue.submit(world.job())
    until(queue, "started")
    assert world.clock.now == 107.5


def test_a_gpu_by_uuid_and_its_context_measured_by_the_first_alone_on_it(world):
    world.devices = [GPU]
    queue = world.queue(BasicScheduler(max_jobs_per_device=None))
    for num in range(2):
        queue.submit(world.job(num))
    until(queue, "started")
    until(queue, "started")
    first, second = (env for _, _, env in world.pool.started)
    assert first["CUDA_VISIBLE_DEVICES"] == second["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert first["FLGO_HYDRA_USED_MIB"] == "1000" and "FLGO_HYDRA_USED_MIB" not in second
    world.pool.say(1, kind="memory", memory_mib=700, context_mib=430.4)
    world.pool.finish(1)
    until(queue, "ended")
    queue.submit(world.job(2))
    until(queue, "started")
    assert world.pool.started[2][2]["FLGO_HYDRA_CONTEXT_MIB"] == "430"


def test_on_the_cpu_gpus_are_hidden(world):
    queue = world.queue()
    queue.submit(world.job())
    until(queue, "started")
    assert world.pool.started[0][2]["CUDA_VISIBLE_DEVICES"] == ""


def test_logs_of_an_earlier_sweep_are_kept(world):
    (world.folder / "0").mkdir()
    (world.folder / "0" / "attempt-4.log").write_text("old")
    queue = world.queue()
    queue.submit(world.job())
    until(queue, "started")
    assert world.pool.started[0][1] == "attempt-5.log"


def test_a_refused_job_ends(world):
    queue = world.queue()
    queue.refuse(world.job(), Failure("error", "no such key"))
    assert queue.next_event().job.state == "failed" and queue.is_idle


# jobs that run as one program


def fused(world, num_jobs, **values):
    return [world.job(num, fuse_key="f", signature="s", **values) for num in range(num_jobs)]


def sizes(queue):
    return [running.group_size for running in queue.running.values()]


def test_jobs_of_one_key_start_in_one_process_that_the_scheduler_sees_as_one_job(world):
    queue = world.queue(fuse=3)
    jobs = [*fused(world, 5), world.job(5), world.job(6, fuse_key="other")]
    for job in jobs:
        queue.submit(job)
    assert until(queue, "started").job is jobs[0]
    # Two slots: the first three and the next two.
    assert sizes(queue) == [3, 3, 3, 2, 2]
    assert [(job.job, job.signature) for job in queue.running_jobs()] == [(0, "s x 3"), (3, "s x 2")]
    assert {log for _, log, _ in world.pool.started} == {"attempt-1.log"}
    assert "output is in" in (world.folder / "1" / "attempt-1.log").read_text()
    for token in range(1, 8):
        world.pool.finish(token)
    assert [event.job.num for event in events(queue, "ended")] == [0, 1, 2, 3, 4, 5, 6]
    assert {job.state for job in jobs} == {"done"}


@pytest.mark.parametrize(
    "fuse, num_devices, expected",
    [(1, 1, [1] * 7), (2, 1, [2, 2, 2, 1]), (2, 3, [2, 2, 2, 1]), (9, 1, [7])],
)
def test_sizes_of_groups(world, fuse, num_devices, expected):
    queue = world.queue(fuse=fuse)
    queue.devices = [GPU] * num_devices
    assert [len(group) for group in queue._groups(fused(world, 7))] == expected


def test_a_group_waits_until_all_that_come_have_come(world):
    queue = world.queue(fuse=3)
    jobs = fused(world, 4)
    queue.expect_more(True)
    for job in jobs:
        queue.submit(job)
        assert queue.next_event(timeout_s=0) is None or job.num >= 2
    assert sizes(queue) == [3, 3, 3]  # a full one does not wait
    queue.expect_more(False)
    for token in range(1, 4):
        world.pool.finish(token)
    world.pool.finish(4)
    events(queue)
    assert [job.attempts[0].group_size for job in jobs] == [3, 3, 3, 1]


def test_jobs_that_are_sent_apart_go_again_one_by_one(world):
    queue = world.queue(fuse=2)
    jobs = fused(world, 3)
    for job in jobs:
        queue.submit(job)
    until(queue, "started")
    for token in (1, 2):
        world.pool.say(token, kind="end", status="apart", why="no gain")
    world.pool.told.append([Ended(token, 0, None, b"") for token in (1, 2)])
    for token in (3, 4, 5):
        world.pool.finish(token)
    events(queue)
    assert [job.state for job in jobs] == ["done"] * 3
    assert [[attempt.group_size for attempt in job.attempts] for job in jobs] == [[1], [1], [1]]
    assert world.pool.groups == [True, True, False, False]  # the third had begun as a group of its own
    assert [env.get(WHY_APART) for _, _, env in world.pool.started][-2:] == ["no gain"] * 2


def test_one_that_is_left_of_a_group_still_runs_as_one(world):
    """Else it would be rounded in another way than its like."""
    queue = world.queue(fuse=2)
    for job in [*fused(world, 3), world.job(3)]:
        queue.submit(job)
    until(queue, "started")
    assert sizes(queue) == [2, 2, 1] and world.pool.groups == [True, True]


def test_what_does_not_fit_goes_again_in_halves_and_then_grows_its_reservation(world):
    queue = world.queue(fuse=4, guess_mib=100)
    jobs = fused(world, 4)
    for job in jobs:
        queue.submit(job)
    until(queue, "started")
    error = {"type": "torch.OutOfMemoryError", "message": "CUDA out of memory", "chain": []}
    for token in range(1, 5):
        world.pool.say(token, kind="end", status="failed", error=error)
    world.pool.told.append([Ended(token, 1, 500, b"") for token in range(1, 5)])
    for _ in range(4):
        assert until(queue, "retry").values["memory_mib"] is None
    until(queue, "started")
    assert sizes(queue) == [2, 2, 2, 2]
    for token in (5, 6):
        world.pool.say(token, kind="end", status="failed", error=error)
    world.pool.told.append([Ended(token, 1, 500, b"") for token in (5, 6)])
    for token in (7, 8):
        world.pool.finish(token)
    [until(queue, "retry") for _ in range(2)]
    until(queue, "started")
    assert sizes(queue)[-1] == 1
    world.pool.say(9, kind="end", status="failed", error=error)
    world.pool.told.append([Ended(9, 1, 500, b"")])
    assert until(queue, "retry").values["memory_mib"] == 500  # what it had, which is more than 1.3 times the 100 it got
    world.pool.finish(10)
    world.pool.finish(11)
    events(queue)
    assert [job.state for job in jobs] == ["done"] * 4
    assert [attempt.group_size for attempt in jobs[3].attempts][:3] == [4, 2, 1]


def test_what_crashed_together_goes_again_alone(world):
    queue = world.queue(fuse=2, backoff_s=0)
    jobs = fused(world, 2)
    for job in jobs:
        queue.submit(job)
    until(queue, "started")
    world.pool.finish(1)  # it had its result before the process died
    world.pool.told.append([Ended(2, KILL, None, b"")])
    until(queue, "retry")
    until(queue, "started")
    assert sizes(queue) == [1]
    world.pool.finish(3)
    events(queue)
    assert [job.state for job in jobs] == ["done", "done"]
    assert [len(job.attempts) for job in jobs] == [1, 2]


@pytest.mark.parametrize("how, state", [("stop", "stopped"), ("cancel", "cancelled"), ("time", "failed")])
def test_jobs_that_shall_end_do_not_go_again_because_their_group_ended_apart(world, how, state):
    queue = world.queue(fuse=2, timeout_s=60.0)
    jobs = fused(world, 2)
    for job in jobs:
        queue.submit(job)
    until(queue, "started")
    if how == "stop":
        queue.stop()
    elif how == "cancel":
        for job in jobs:
            queue.cancel(job, now=False)
    else:
        while world.pool.told:
            queue.next_event(timeout_s=0)
        world.clock.now += 61.0
        queue.next_event(timeout_s=0)
        assert world.pool.stops == [1, 2]
    for token in (1, 2):
        world.pool.say(token, kind="end", status="apart", why="no gain")
    world.pool.told.append([Ended(token, 0, None, b"") for token in (1, 2)])
    events(queue)
    assert [job.state for job in jobs] == [state] * 2 and queue.is_idle
    assert len(world.pool.started) == 2


def test_the_time_limit_of_one_is_not_the_others(world):
    queue = world.queue(fuse=2, timeout_s=60.0, grace_s=10.0)
    jobs = fused(world, 2)
    jobs[0].attempts.append(Attempt(1, "cpu", "", seconds=30.0))
    for job in jobs:
        queue.submit(job)
    while not world.pool.started or world.pool.told:
        queue.next_event(timeout_s=0)
    begin = world.clock.now
    while not world.pool.stops:
        queue.next_event()
    assert world.clock.now == begin + 30.0 and (world.pool.stops, world.pool.ends) == ([1], [])
    while len(world.pool.stops) < 2:  # the first does not heed it; the second has its own time
        queue.next_event()
    assert world.clock.now == begin + 60.0 and world.pool.ends == []
    while not world.pool.ends:  # now both should be gone
        queue.next_event()
    assert world.clock.now == begin + 60.0 and world.pool.ends == [1]
    for token in (1, 2):
        world.pool.finish(token, 143)
    assert [event.job.failure.kind for event in events(queue, "ended")] == ["timeout"] * 2


def test_a_signal_for_one_would_end_the_others(world):
    queue = world.queue(fuse=2)
    jobs = fused(world, 2)
    for job in jobs:
        queue.submit(job)
    until(queue, "started")
    queue.cancel(jobs[0])
    assert (world.pool.stops, world.pool.ends) == ([1], [])
    world.pool.finish(1, has_heeded_stop=True)
    world.pool.finish(2)
    events(queue)
    assert [job.state for job in jobs] == ["cancelled", "done"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ENOSPC, errno.EAGAIN])
def test_a_job_that_cannot_be_started_waits_for_what_others_hold(world, number):
    queue = world.queue(max_retries=0, backoff_s=4.0)
    first, second = world.job(0), world.job(1)
    queue.submit(first)
    until(queue, "started")
    world.pool.refusals = [number] * 3
    queue.submit(second)
    world.pool.told = []
    while world.pool.refusals:  # it is tried now and then
        assert queue.next_event() is None
    assert world.clock.now >= 108.0 and not second.attempts
    world.pool.finish(1)
    assert [event.job for event in events_after(world, queue, 2)] == [first, second]
    assert second.state == "done"


def events_after(world, queue, token):
    """Ends of the jobs under way and of the next one, which gets this token."""
    found = []
    while not queue.is_idle:
        event = queue.next_event()
        if event is not None and event.kind == "started":
            world.pool.finish(token)
        elif event is not None and event.kind == "ended":
            found.append(event)
    return found


def test_a_job_that_can_never_be_started_fails_and_the_next_one_runs(world):
    queue = world.queue(max_retries=1)
    first, second = world.job(0), world.job(1)
    world.pool.refusals = [errno.EMFILE] * 2
    queue.submit(first)
    assert until(queue, "retry").values["failure"].kind == "not_started"
    ended = until(queue, "ended").job
    assert ended is first and first.state == "failed" and "could not be started" in first.failure.message
    queue.submit(second)
    until(queue, "started")
    world.pool.finish(1)
    assert until(queue, "ended").job.state == "done"


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EMFILE])
@pytest.mark.parametrize("num_refused", [1, 2, 4])
def test_who_waits_behind_a_job_that_cannot_be_started_has_its_turn(world, number, num_refused):
    """One slot: the place that was meant for the first is the next one's, though nothing has begun or ended."""
    queue = world.queue(max_retries=0)
    jobs = [world.job(num) for num in range(6)]
    world.pool.refusals = [number] * num_refused
    for job in jobs:
        queue.submit(job)
    ended, num_started = [], 0
    while len(ended) < len(jobs):
        event = queue.next_event()
        if event is not None and event.kind == "started":
            num_started += 1
            world.pool.finish(num_started)
        if event is not None and event.kind == "ended":
            ended.append(event.job)
    assert [job.state for job in jobs] == ["failed"] * num_refused + ["done"] * (6 - num_refused)


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.EACCES, errno.ENOTDIR, errno.EROFS])
def test_a_folder_that_cannot_be_used_is_its_own_jobs_trouble(world, number):
    queue = world.queue(fuse=2)
    jobs = [world.job(num, fuse_key="k") for num in range(2)]
    world.pool.refusals = [number, number]  # together, then the first one alone
    for job in jobs:
        queue.submit(job)
    ended = until(queue, "ended").job
    assert ended is jobs[0] and ended.failure.kind == "error" and os.strerror(number) in ended.failure.message
    until(queue, "started")
    world.pool.finish(1)
    assert until(queue, "ended").job is jobs[1] and jobs[1].state == "done"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETOOMANYREFS])
def test_a_group_that_does_not_fit_starts_smaller(world, number, caplog):
    """What it needs all jobs need: later groups are as small at once, and nothing has failed."""
    queue = world.queue(fuse=8, max_retries=0)
    jobs = fused(world, 12)
    world.pool.refusals = [number] * 2
    for job in jobs:
        queue.submit(job)
    until(queue, "started")
    assert sizes(queue) == [2] * 4 and not any(job.attempts for job in jobs)
    assert "8 jobs cannot be started as one program" in caplog.text and "4 at once" in caplog.text
    for token in range(1, 13):
        world.pool.finish(token)
    assert {event.job.state for event in events(queue, "ended")} == {"done"}
    assert all(job.attempts[0].group_size == 2 for job in jobs)


def test_a_group_waits_for_what_others_hold_before_it_starts_smaller(world):
    queue = world.queue(fuse=2)
    jobs = fused(world, 4)
    for job in jobs[:2]:
        queue.submit(job)
    until(queue, "started")
    world.pool.refusals = [errno.EMFILE]
    for job in jobs[2:]:
        queue.submit(job)
    while world.pool.refusals:
        queue.next_event(1.0)
    assert not list(jobs[2].folder.glob("*")) and not list(jobs[3].folder.glob("*"))
    for token in (1, 2):
        world.pool.finish(token)
    until(queue, "started")
    for token in (3, 4):
        world.pool.finish(token)
    events(queue)
    assert [job.attempts[0].group_size for job in jobs] == [2] * 4


def test_what_the_forkserver_may_not_fork_is_the_machines(world):
    queue = world.queue(max_retries=1, backoff_s=0)
    job = world.job()
    queue.submit(job)
    for token in (1, 2):
        until(queue, "started")
        world.pool.told.append([Ended(token, None, None, b"", "could not be started: [Errno 11]", is_refused=True)])
    assert until(queue, "ended").job.failure.kind == "not_started" and len(job.attempts) == 2
