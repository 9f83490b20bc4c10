"""Real processes: what they say, how they end, and that none is left."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from flgo_hydra.launch.processes.pool import Crowd, Ended, Message, Pool, Started
from flgo_hydra.machine_errors import CannotStart

ENTRIES = """
import os, signal, subprocess, sys, time

def hello(channel):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    channel.send({"kind": "hello", "payload": channel.read_payload().decode(), "env": os.environ.get("MARK")})
    channel.write_result(b"result")
    return 0

def leave(channel):
    sys.exit(int(channel.read_payload()))

def tear(channel):
    channel.send({"kind": "whole"})
    os.write(channel._message_fd, b'{"kind": "torn", "valu')
    channel.send({"kind": "after"})
    os.write(channel._message_fd, b'\\xff\\x00 print of a stranger\\n[1]\\n{"no": "kind"}\\n{"kind": "torn"')
    os.kill(os.getpid(), signal.SIGKILL)

def spread(channel):
    # A grandchild that holds every pipe of its dead parent and ignores SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        while True:
            time.sleep(60)
    channel.send({"kind": "grandchild", "pid": pid})
    if channel.read_payload() == b"die":
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(60)

def heed(channel):
    channel.watch(60, lambda: None)
    channel.send({"kind": "up"})
    while not channel.is_stopping():
        time.sleep(0.01)
    return 7

def trim(channel):
    channel.watch(60, lambda: None)
    channel.send({"kind": "up"})
    while channel.prune_reason() is None:
        time.sleep(0.01)
    channel.send({"kind": "heard", "why": channel.prune_reason(), "stop": channel.is_stopping()})

def stall(channel):
    # The launcher does not read until this is over: a pipe holds 64 KiB.
    for i in range(3000):
        channel.send({"kind": "line", "i": i, "text": "x" * 100})
    open(channel.read_payload(), "x").close()

def chat(channel):
    for i in range(2000):
        channel.send({"kind": "line", "i": i, "text": "x" * 100})

def ignore(channel):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel.send({"kind": "up"})
    while True:
        time.sleep(60)
"""


@pytest.fixture
def make_pool(tmp_path, monkeypatch):
    (tmp_path / "entries.py").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    pools = []

    def make(function, **arguments):
        pools.append(Pool(f"entries:{function}", **arguments))
        return pools[-1]

    yield make
    server_pids = [pool._server.pid for pool in pools if pool._server is not None]
    for pool in pools:
        pool.close()
    assert not [pid for pid in server_pids if psutil.pid_exists(pid)]


def finish(pool, num_ends=1):
    """All events until so many processes have ended."""
    events = []
    while sum(isinstance(event, Ended) for event in events) < num_ends:
        events += pool.wait(60)
    return events


def messages(events):
    return [event.values for event in events if isinstance(event, Message)]


def test_a_process_says_what_it_has_to_say(make_pool, tmp_path):
    pool = make_pool("hello")
    log = tmp_path / "run" / "attempt-1.log"
    token = pool.start(b"payload", log, env={"MARK": "set"})
    started, message, ended = finish(pool)
    assert started == Started(token, started.pid) and started.pid != os.getpid()
    assert message == Message(token, {"kind": "hello", "payload": "payload", "env": "set"})
    assert (ended.token, ended.status, ended.result) == (token, 0, b"result")
    assert ended.peak_memory_mib > 1
    assert log.read_text() == "to stdout\nto stderr\n"


@pytest.mark.parametrize("status", [0, 3])
def test_exit_status(make_pool, tmp_path, status):
    pool = make_pool("leave")
    pool.start(str(status).encode(), tmp_path / "log")
    assert finish(pool)[-1].status == status


def test_torn_and_foreign_writes_cost_only_themselves(make_pool, tmp_path):
    pool = make_pool("tear")
    pool.start(b"", tmp_path / "log")
    events = finish(pool)
    assert messages(events) == [{"kind": "whole"}, {"kind": "after"}]
    assert events[-1].status == -signal.SIGKILL


def test_more_messages_than_a_pipe_holds(make_pool, tmp_path):
    pool = make_pool("chat")
    pool.start(b"", tmp_path / "log")
    assert [values["i"] for values in messages(finish(pool))] == list(range(2000))


def test_a_job_does_not_wait_for_a_launcher_that_does_not_read(make_pool, tmp_path):
    """All it says comes in order, once the launcher reads."""
    pool = make_pool("stall")
    pool.start(str(tmp_path / "said").encode(), tmp_path / "log")
    deadline = time.monotonic() + 60
    while not (tmp_path / "said").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    events = finish(pool)
    assert [values["i"] for values in messages(events)] == list(range(3000))
    assert events[-1].status == 0


def test_killed_while_a_grandchild_holds_its_pipes(make_pool, tmp_path):
    pool = make_pool("spread")
    pool.start(b"die", tmp_path / "log")
    events = finish(pool)
    assert events[-1].status == -signal.SIGKILL
    wait_gone([messages(events)[0]["pid"]])


def test_end_takes_the_whole_group_after_the_grace(make_pool, tmp_path):
    pool = make_pool("spread")
    token = pool.start(b"stay", tmp_path / "log")
    events = []
    while not messages(events):
        events += pool.wait(60)
    pool.end(token, grace_s=0.1)
    assert finish(pool)[-1].status == -signal.SIGKILL
    wait_gone([messages(events)[0]["pid"]])


def test_request_stop(make_pool, tmp_path):
    pool = make_pool("heed")
    token = pool.start(b"", tmp_path / "log")
    pool.request_stop(token)
    assert finish(pool)[-1].status == 7


def test_request_prune_says_why(make_pool, tmp_path):
    pool = make_pool("trim")
    token = pool.start(b"", tmp_path / "log")
    pool.request_prune(token, "pruned by median\n(ü)" + "x" * 600)
    told = messages(finish(pool))[-1]
    assert told["why"].startswith("pruned by median (ü)xxx") and not told["stop"]


def test_wake_ends_a_wait(make_pool):
    pool = make_pool("heed")
    pool.wake()
    assert pool.wait() == []


def test_wait_gives_up_in_time(make_pool):
    assert make_pool("heed").wait(0) == []


def test_the_forkserver_dies(make_pool, tmp_path):
    pool = make_pool("ignore")
    tokens = [pool.start(b"", tmp_path / f"{i}.log") for i in range(2)]
    events = []
    while len(messages(events)) < 2:
        events += pool.wait(60)
    pids = [event.pid for event in events if isinstance(event, Started)]
    os.kill(pool._server.pid, signal.SIGKILL)
    ends = [event for event in finish(pool, 2) if isinstance(event, Ended)]
    assert [end.token for end in ends] == tokens and all(end.status is None for end in ends)
    assert "forkserver ended with status -9" in ends[0].error
    wait_gone(pids)
    pool.start(b"", tmp_path / "again.log")  # the next start makes a new one
    events = []
    while not messages(events):
        events += pool.wait(60)


def killed_unready(pool):
    """Whoever kills forkservers is quicker than they are."""
    start = pool._start_server

    def started():
        start()
        os.kill(pool._server.pid, signal.SIGTERM)

    pool._start_server = started
    return start


def test_a_forkserver_that_is_killed_before_it_is_ready_is_started_again(make_pool, tmp_path):
    pool = make_pool("hello")
    start = killed_unready(pool)
    for i in range(2):
        pool.start(b"", tmp_path / f"{i}.log")
        assert "status -15" in finish(pool)[-1].error
    pool._start_server = start
    pool.start(b"", tmp_path / "log")
    assert finish(pool)[-1].status == 0


def test_one_that_is_killed_each_time_is_told_in_words(make_pool, tmp_path):
    pool = make_pool("hello")
    killed_unready(pool)
    with pytest.raises(CannotStart, match="^No job can be started: the forkserver ended with status -15 each time"):
        for i in range(10):
            pool.start(b"", tmp_path / f"{i}.log")
            finish(pool)


def test_a_module_that_kills_the_forkserver_is_left_to_the_jobs(make_pool, tmp_path):
    (tmp_path / "deadly.py").write_text("import os; os._exit(9)")
    pool = make_pool("hello", preload=("deadly",))
    pool.start(b"", tmp_path / "log")
    assert finish(pool)[-1].status is None
    pool.start(b"", tmp_path / "log")
    assert finish(pool)[-1].status == 0


def test_no_open_files_are_left(make_pool, tmp_path):
    pool = make_pool("hello")
    pool.start(b"", tmp_path / "log")
    finish(pool)
    before = psutil.Process().num_fds()
    for _ in range(5):
        pool.start(b"x", tmp_path / "log")
        finish(pool)
    assert psutil.Process().num_fds() == before
    assert psutil.Process(pool._server.pid).num_fds() < 12


@pytest.mark.parametrize("entry", ["heed", "ignore"])
def test_children_do_not_outlive_a_killed_parent(tmp_path, entry):
    (tmp_path / "entries.py").write_text(ENTRIES)
    program = f"""
        import sys
        sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parents[3])!r}]
        from pathlib import Path
        from flgo_hydra.launch.processes.pool import Message, Pool, Started
        pool = Pool("entries:{entry}")
        for i in range(2):
            pool.start(b"", Path({str(tmp_path)!r}, f"{{i}}.log"))
        events = []
        while min(sum(isinstance(e, kind) for e in events) for kind in (Started, Message)) < 2:
            events += pool.wait()
        print(*[e.pid for e in events if isinstance(e, Started)], pool._server.pid, flush=True)
        pool.wait()
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    with parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        parent.kill()
    wait_gone(pids)


def wait_gone(pids, timeout_s=5):
    """Fails unless the processes end in time. Waits on them, without looking again and again."""
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_messages_gather_when_they_come_fast():
    crowd = Crowd()
    assert not crowd.is_crowded(10.0)
    crowd.count(500)
    assert not crowd.is_crowded(10.05)  # not known yet
    assert crowd.is_crowded(11.0)  # 500 in a second
    crowd.count(50)
    assert crowd.is_crowded(11.05)
    assert not crowd.is_crowded(12.0)


@pytest.mark.parametrize("fails_at", range(1, 7))
def test_what_cannot_be_started_leaves_nothing_open(make_pool, tmp_path, monkeypatch, fails_at):
    pool = make_pool("hello")
    pool.warm()
    before, calls = len(os.listdir("/proc/self/fd")), iter(range(1, 100))
    real = os.pipe, os.memfd_create

    def scarce(function):
        def call(*arguments):
            if next(calls) == fails_at:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "pipe", scarce(real[0]))
        patch.setattr(os, "memfd_create", scarce(real[1]))
        with pytest.raises(OSError, match="Too many open files"):
            pool.start_group([b"a", b"b"], tmp_path / "log")
    assert len(os.listdir("/proc/self/fd")) == before
    pool.start(b"x", tmp_path / "log")
    assert finish(pool)[-1].result == b"result"


def test_a_log_that_cannot_be_made_leaves_nothing_open(make_pool, tmp_path):
    pool = make_pool("hello")
    pool.warm()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="File name too long"):
        pool.start(b"x", tmp_path / ("x" * 300) / "log")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("payload", [b"", b"flgo_hydra result\n", b"x" * 100_000])
def test_what_a_job_was_given_is_not_its_result(make_pool, tmp_path, payload):
    pool = make_pool("ignore")
    token = pool.start(payload, tmp_path / "log")
    while not any(isinstance(event, Message) for event in pool.wait()):
        pass
    pool.end(token, 0.0)
    assert finish(pool)[-1].result == b""


def test_as_many_files_as_the_system_allows(tmp_path):
    code = """
import resource
from flgo_hydra.launch.processes.server_process import raise_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
raise_file_limit()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
print(soft == min(hard, 2**16))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


DAEMON = """
import os, time

def daemon(channel):
    # What a library may do: fork twice, in a session of its own.
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(write, str(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    os.wait()
    channel.send({"kind": "daemon", "pid": int(os.read(read, 100))})
    if channel.read_payload() == b"stay":
        channel.watch(60, lambda: None)
        time.sleep(600)
    return 0
"""

PARENT = """
import sys, time
from pathlib import Path
from flgo_hydra.launch.processes.pool import Message, Pool
pool = Pool("daemons:daemon")
pool.start(b"stay", Path("log"))
while True:
    for event in pool.wait(60):
        if isinstance(event, Message) and event.values["kind"] == "daemon":
            print(pool._server.pid, event.values["pid"], flush=True)
"""


@pytest.fixture
def daemons(tmp_path, monkeypatch):
    (tmp_path / "daemons.py").write_text(DAEMON)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def gone(pids, most_s=10.0):
    there = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            there.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(there, timeout=most_s)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_daemon_that_a_job_leaves_behind_does_not_outlive_the_jobs(daemons, tmp_path):
    pool = Pool("daemons:daemon")
    try:
        pool.start(b"", tmp_path / "log")
        said = []
        while not any(isinstance(event, Ended) for event in said):
            said += pool.wait(60)
        pid = next(event.values["pid"] for event in said if isinstance(event, Message))
        assert gone([pid])
    finally:
        pool.close()


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "running"])
def test_a_forkserver_leaves_with_its_launcher_also_when_somebody_has_stopped_it(daemons, stopped):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent.stdout:
        server, daemon = map(int, parent.stdout.readline().split())
    jobs = [child.pid for child in psutil.Process(server).children(recursive=True)]
    assert len(jobs) >= 2  # the job, and what it has left behind
    if stopped:
        os.kill(server, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    assert gone([server, daemon, *jobs])
