"""A forkserver that was started before its launcher is there."""

import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest

from flgo_hydra.__main__ import _expected_threads, _starts_grid
from flgo_hydra.launch.processes import server_process
from flgo_hydra.launch.processes.pool import Ended, Message, Pool

ENTRIES = """
import os, sys

def prepare_early():
    global marked_in
    marked_in = os.getpid()

def look(channel):
    threads = os.environ["OMP_NUM_THREADS"]
    channel.send({"kind": "seen", "marked_in": marked_in, "parent": os.getppid(), "threads": threads})

def absent(channel):
    channel.send({"kind": "seen", "parent": os.getppid(), "has_mark": "marked_in" in globals()})
"""


@pytest.fixture
def early_server(tmp_path, monkeypatch):
    (tmp_path / "early_entries.py").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    server_process.start_early([], ["early_entries:prepare_early", "early_entries:no_such_function", "no_module:f"])
    yield server_process._early
    server_process.take_early({})


def say(pool, tmp_path):
    """What the pool's one process said; it must have ended well."""
    pool.start(b"", tmp_path / "attempt-1.log")
    events = []
    while not any(isinstance(event, Ended) for event in events):
        events += pool.wait(60)
    assert events[-1].status == 0, (tmp_path / "attempt-1.log").read_text()
    pool.close()
    return next(event.values for event in events if isinstance(event, Message))


def test_a_launcher_takes_the_server_that_fits(early_server, tmp_path):
    said = say(Pool("early_entries:look", env=server_process.worker_env(1)), tmp_path)
    assert said["marked_in"] == said["parent"] == early_server.pid
    assert said["threads"] == "1"
    assert not psutil.pid_exists(early_server.pid)


def test_the_second_launcher_gets_its_own(early_server, tmp_path):
    pools = [Pool("early_entries:absent", env=server_process.worker_env(1)) for _ in range(2)]
    for pool in pools:
        pool.warm()
    assert pools[0]._server.pid == early_server.pid != pools[1]._server.pid
    for pool in pools:
        pool.close()


def test_one_with_another_environment_is_not_taken(early_server, tmp_path):
    said = say(Pool("early_entries:absent", env=server_process.worker_env(4)), tmp_path)
    assert said["parent"] != early_server.pid and not said["has_mark"]
    assert not psutil.pid_exists(early_server.pid)


def test_it_leaves_with_a_parent_that_never_spoke(tmp_path):
    code = """
        import os, sys
        from flgo_hydra.launch.processes import server_process
        server_process.start_early([], ["time:sleep_is_not_called"])
        print(server_process._early.pid, flush=True)
        sys.stdin.read()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    server = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert psutil.wait_procs([server], timeout=10)[1] == []
    parent.stdin.close()
    parent.stdout.close()


@pytest.mark.parametrize(
    "command, is_early",
    [
        ("-m lr=0.1,0.01", True),
        ("lr=0.1,0.01 --multirun hydra/launcher=flgo_hydra", True),
        ("hydra.mode=MULTIRUN lr=1,2", True),
        ("lr=0.1", False),
        ("-m lr=0.1,0.01 hydra/launcher=basic", False),
        ("-m lr=0.1,0.01 --cfg job", False),
        ("-m --info=all", False),
    ],
)
def test_which_commands_start_one(command, is_early):
    assert _starts_grid(command.split()) is is_early


@pytest.mark.parametrize(
    "overrides, num_threads",
    [
        ("lr=0.1", 1),
        ("hydra.launcher.slots=8", 1),
        ("hydra.launcher.slots=2", 4),
        ("hydra.launcher.slots=20", 1),
        ("hydra.launcher.slots=2 hydra.launcher.threads=3", 3),
        ("hydra.launcher.slots=2 hydra.launcher.slots=1", 8),
        ("hydra.launcher.slots=null hydra.launcher.threads=-1", 1),  # the second is refused later
    ],
)
def test_it_starts_with_the_threads_that_its_jobs_will_have(overrides, num_threads):
    assert _expected_threads(overrides.split(), cores=8) == num_threads
