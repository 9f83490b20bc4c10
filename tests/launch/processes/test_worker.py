"""What a worker says of itself, in this process; its processes are tested with the launcher."""

import os
import re
import sys
import threading
from types import SimpleNamespace

import pytest
from hydra.core.utils import JobReturn, JobStatus

from flgo_hydra.launch import reporter
from flgo_hydra.launch.processes import channel, worker
from flgo_hydra.launch.processes.returned import pack, unpack
from flgo_hydra.launch.scheduling.kernel_kills import read_kernel_kills


class Listener:
    def __init__(self):
        self.messages = []

    def send(self, message):
        self.messages.append(message)


def test_outside_a_worker_the_reporter_does_nothing():
    reporter.report("round", round=1)
    assert reporter.stop_requested() is False


def test_reports_go_where_they_are_connected(monkeypatch):
    heard = []
    monkeypatch.setattr(reporter, "_current", reporter.Reporter())
    reporter.connect(reporter.Reporter(heard.append, lambda: True))
    reporter.report("round", round=1, valid_loss=0.5)
    assert heard == [{"kind": "round", "round": 1, "valid_loss": 0.5}]
    assert reporter.stop_requested()


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"kind": "round", "valid_loss": NaN}', "round"),
        (b"", None),
        (b'{"kind": "torn', None),
        (b"[1]", None),
        (b'{"no": "kind"}', None),
        (b"\xff\xfe", None),
    ],
)
def test_lines_that_read_as_messages(line, message):
    parsed = channel.parse(line)
    assert (parsed and parsed["kind"]) == message


def test_numbers_of_other_libraries_are_numbers():
    numpy = pytest.importorskip("numpy")
    line = channel._encode({"kind": "round", "loss": numpy.float32(0.5), "what": threading, 3: "key"})
    assert channel.parse(line)["loss"] == 0.5


def test_what_cannot_be_sent_is_told():
    circle = {"kind": "round"}
    circle["self"] = circle
    assert channel.parse(channel._encode(circle))["kind"] == "unreadable"


def test_an_error_with_its_causes():
    try:
        try:
            raise MemoryError("inner")
        except MemoryError as error:
            raise RuntimeError("outer") from error
    except RuntimeError as error:
        told = worker.describe(error)
    assert told["type"] == "RuntimeError" and told["message"] == "outer"
    assert told["chain"] == [("RuntimeError", "outer"), ("MemoryError", "inner")]
    assert "inner" in told["traceback"] and "test_worker.py" in told["traceback"]


def test_describing_frees_what_the_frames_held():
    def allocate():
        big = Listener()  # anything that can be watched
        held.append(big.__class__)
        frames.append(sys._getframe())
        raise ValueError(len(frames))

    held, frames = [], []
    try:
        allocate()
    except ValueError as error:
        worker.describe(error)
    assert frames[0].f_locals == {} or "big" not in frames[0].f_locals


class BadText(Exception):
    def __str__(self):
        raise RuntimeError


def test_an_error_that_cannot_be_shown():
    assert "cannot be shown" in worker.describe(BadText())["message"]


class NeedsTwo(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize("value", [NeedsTwo(1, 2), NeedsTwo(threading.Lock(), 2)])
def test_an_exception_that_cannot_be_unpickled_arrives_as_text(value):
    returned = JobReturn(status=JobStatus.FAILED)
    returned.return_value = value
    told = worker.describe(value)
    arrived = unpack(pack(returned, told))
    assert arrived.status is JobStatus.FAILED and isinstance(arrived.value, RuntimeError)
    assert re.fullmatch(".*NeedsTwo: .* and 2", str(arrived.value))


def test_a_value_that_cannot_be_pickled_arrives_as_text(capsys):
    returned = JobReturn(status=JobStatus.COMPLETED)
    returned.return_value = lock = threading.Lock()
    assert unpack(pack(returned, None)).value == repr(lock)
    assert "cannot be pickled" in capsys.readouterr().err


def test_memory_is_told_when_it_has_grown(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    peaks = iter([100.0, 101.5, 103.0, 103.0])
    monkeypatch.setattr(worker, "resident_mib", lambda: next(peaks))
    listener = Listener()
    report = worker.MemoryReport(listener)
    for is_last in (False, False, False, True):
        report.tell(is_last)
    assert [message["memory_mib"] for message in listener.messages] == [100.0, 103.0, 103.0]


def pretend_torch(free_mib=60_000, reserved_mib=2_000):
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        memory_reserved=lambda: reserved_mib * 2**20,
        max_memory_reserved=lambda: (reserved_mib + 500) * 2**20,
        mem_get_info=lambda: (free_mib * 2**20, 80_000 * 2**20),
    )
    return SimpleNamespace(cuda=cuda)


@pytest.mark.parametrize(
    "env, told",
    [
        ({}, {"memory_mib": 2500 + worker.CONTEXT_MIB}),
        ({"FLGO_HYDRA_CONTEXT_MIB": "430"}, {"memory_mib": 2930}),
        # 20000 MiB are gone, 2000 to the allocator and 17600 to others before
        ({"FLGO_HYDRA_USED_MIB": "17600"}, {"memory_mib": 2900, "context_mib": 400}),
        # more than a context can be: somebody else has come since
        ({"FLGO_HYDRA_USED_MIB": "1000"}, {"memory_mib": 2500 + worker.CONTEXT_MIB}),
    ],
)
def test_memory_on_a_gpu_is_reserved_plus_context(monkeypatch, env, told):
    monkeypatch.setitem(sys.modules, "torch", pretend_torch())
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    listener = Listener()
    worker.MemoryReport(listener).tell()
    assert listener.messages == [{"kind": "memory", **told}]


@pytest.mark.parametrize(
    "files, kills",
    [
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/memory.events": "oom 3\noom_kill 2\n"}, 2),
        ({"proc/self/cgroup": "0::/elsewhere\n", "sys/fs/cgroup/memory.events": "oom_kill 1\n"}, 1),
        ({"proc/self/cgroup": "4:memory:/j\n", "sys/fs/cgroup/memory/j/memory.oom_control": "oom_kill 5\n"}, 5),
        ({"proc/self/cgroup": "0::/\n", "proc/vmstat": "nr 1\noom_kill 7\n"}, 7),
        ({}, None),
    ],
)
def test_kernel_kills(tmp_path, files, kills):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_kernel_kills(tmp_path) == kills


def test_the_thread_of_the_life_line_hears_a_stop():
    message_read, message_write = os.pipe()
    control_read, control_write = os.pipe()
    with open(os.devnull, "rb") as file:
        ours = channel.Channel(message_write, control_read, file.fileno())
        looked = threading.Event()
        ours.watch(0.01, looked.set)
        assert looked.wait(30) and not ours.is_stopping()
        os.write(control_write, channel.STOP)
        assert ours._is_stopping.wait(30)
        assert ours.is_stopping() and ours.has_been_told_to_stop
    for fd in (message_read, message_write):
        os.close(fd)
    # The control pipe stays open: its end would end this process.
