"""Real processes hold real locks, die, are stopped; and a file system that has none."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from flgo_hydra.record.lock import Held, holding

HOLD = """
import sys
from pathlib import Path
from flgo_hydra.record.lock import holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


class Clock:
    """Its time is what was slept."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += max(seconds, 1e-3)


def refuse(number):
    def flock(file, flags):
        raise OSError(number, os.strerror(number))

    return flock


def test_one_at_a_time_and_who_it_is(tmp_path, holder):
    with pytest.raises(Held) as error, holding(tmp_path / "lock"):
        pass
    assert error.value.holder == str(holder.pid)
    holder.communicate()
    with holding(tmp_path / "lock"), pytest.raises(Held) as error, holding(tmp_path / "lock"):
        pass
    assert error.value.holder == str(os.getpid())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_dead_let_go(tmp_path, holder, number):
    holder.send_signal(number)
    holder.wait()
    with holding(tmp_path / "lock"):
        pass


def test_a_stopped_holder_is_waited_for_so_long(tmp_path, holder):
    holder.send_signal(signal.SIGSTOP)
    clock = Clock()
    with pytest.raises(Held), holding(tmp_path / "lock", wait_s=2.0, clock=clock, sleep=clock.sleep):
        pass
    assert 2.0 <= clock.now_s < 2.1


def test_one_that_lets_go_is_waited_for(tmp_path, holder):
    clock = Clock()

    def sleep(seconds):
        clock.sleep(seconds)
        holder.communicate()

    with holding(tmp_path / "lock", wait_s=2.0, clock=clock, sleep=sleep):
        assert clock.now_s < 2.0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path, number, caplog):
    flock = refuse(number)
    with holding(tmp_path / "lock", flock=flock):
        assert "no locks" in caplog.text
        with pytest.raises(Held) as error, holding(tmp_path / "lock", flock=flock):
            pass
        assert error.value.holder == str(os.getpid())
    with holding(tmp_path / "lock", flock=flock):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]


@pytest.mark.parametrize(
    "holder, is_left",
    [
        ({"host": socket.gethostname(), "pid": 2**22 + 1, "started": "1"}, True),  # no such process
        ({"host": socket.gethostname(), "pid": os.getpid(), "started": "1"}, True),  # another one has its number now
        ({"host": "elsewhere", "pid": 2**22 + 1, "started": "1"}, False),  # nobody here can know
    ],
)
def test_what_a_dead_process_left_there(tmp_path, holder, is_left):
    (tmp_path / "lock.held").write_text(json.dumps(holder))
    if is_left:
        with holding(tmp_path / "lock", flock=refuse(errno.ENOLCK)):
            pass
        return
    with pytest.raises(Held), holding(tmp_path / "lock", flock=refuse(errno.ENOLCK)):
        pass


def test_any_other_trouble_is_told(tmp_path):
    with pytest.raises(OSError, match="Input/output"), holding(tmp_path / "lock", flock=refuse(errno.EIO)):
        pass
    with pytest.raises(FileNotFoundError), holding(tmp_path / "no" / "lock"):
        pass
