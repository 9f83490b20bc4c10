"""What is shown: lines and a table drawn from values; on a real terminal, whole log lines above the table."""

import io
import logging
import math
import os
import pty
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from rich.console import Console

import flgo_hydra
from flgo_hydra.launch.failures import Attempt, Failure
from flgo_hydra.launch.queue import Event, Job, Queue, Running
from flgo_hydra.launch.scheduling.scheduler import BasicScheduler, Device, Placement
from flgo_hydra.launch.view import Table, Tally, _divert_logging, bar_cells, describe, open_view, time_left_s

GPU = Device("GPU-1a2b3c4d-5e6f", 80 * 1024, 40 * 1024, slots=4, foreign_mib=20 * 1024)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def make_queue():
    queue = Queue(pool=None, scheduler=BasicScheduler(), read_devices=lambda running: [GPU], clock=Clock())
    queue.devices = [GPU]
    return queue


def make_job(num=3, **values):
    return Job(num, b"", Path("folder"), name="lr=0.1 seed=0", **values)


FAILURE = Failure("killed", "was killed by SIGKILL")
ENDED = Attempt(1, "cpu", "3/attempt-1.log", seconds=12.0, failure=FAILURE)
RETRY = {"failure": FAILURE, "attempt": 1, "after_s": 2.0, "log": "3/attempt-1.log", "memory_mib": None, "alone": False}


@pytest.mark.parametrize(
    "kind, job, values, line",
    [
        ("started", make_job(), {"device": GPU.id, "attempt": 1}, "#3 lr=0.1 seed=0: started on GPU-1a2b3c4d"),
        (
            "started",
            make_job(attempts=[ENDED]),
            {"device": "cpu", "attempt": 2},
            "#3 lr=0.1 seed=0: started on cpu, attempt 2",
        ),
        (
            "retry",
            make_job(),
            RETRY,
            "#3 lr=0.1 seed=0: was killed by SIGKILL; again in 2 s (log: 3/attempt-1.log)",
        ),
        (
            "retry",
            make_job(),
            RETRY | {"after_s": 0, "memory_mib": 1300, "alone": True},
            "#3 lr=0.1 seed=0: was killed by SIGKILL; again with 1300 MiB alone on its device (log: 3/attempt-1.log)",
        ),
        (
            "retry",
            make_job(),
            RETRY | {"after_s": 0, "log": ""},  # nothing was started
            "#3 lr=0.1 seed=0: was killed by SIGKILL; again",
        ),
        (
            "ended",
            make_job(state="done", progress={"best": 0.25}, attempts=[ENDED]),
            {},
            "#3 lr=0.1 seed=0: done in 12 s, best 0.25 (2 of 9)",
        ),
        (
            "ended",
            make_job(state="failed", failure=Failure("error", "ValueError: lr\nmore"), attempts=[ENDED]),
            {},
            "#3 lr=0.1 seed=0: failed: ValueError: lr (log: 3/attempt-1.log) (2 of 9)",
        ),
        ("report", make_job(), {"round": 1}, ""),
    ],
)
def test_lines(kind, job, values, line):
    assert describe(Event(kind, job, values), Tally(num_jobs=9, num_done=2))[0] == line


@pytest.mark.parametrize(
    "mean_s, running, num_waiting, num_at_once, left",
    [
        (None, [5.0], 3, 1, None),  # nothing to go by
        (10.0, [4.0], 0, 1, 6.0),
        (10.0, [10.0, 4.0], 4, 2, 23.0),  # (0 + 6 + 40) / 2
        (10.0, [0.0, 10.0], 0, 2, 10.0),  # never less than the longest that runs
        (10.0, [30.0], 1, 1, 10.0),  # late already: the next one's mean remains
    ],
)
def test_time_left(mean_s, running, num_waiting, num_at_once, left):
    assert time_left_s(mean_s, running, num_waiting, num_at_once) == left


@pytest.mark.parametrize(
    "device, ours, cells",
    [
        (GPU, 20 * 1024, (5, 5)),
        (GPU, 80 * 1024, (20, 0)),
        (Device("x", 100, 50), 25, (5, 5)),  # nobody said who the others are
        (Device("x", None, None), 25, (0, 0)),
        (Device("x", 100, None), 25, (5, 0)),
    ],
)
def test_memory_bar(device, ours, cells):
    assert bar_cells(device, ours, 20) == cells


def test_table_shows_devices_jobs_and_counts():
    queue = make_queue()
    out = io.StringIO()
    clock = Clock()
    table = Table(queue, 9, Console(file=out, width=140, height=40), clock)
    job = make_job(attempts=[ENDED])
    queue.running[1] = Running(job, 1, Placement(3, GPU.id), 2, Path("log"), 960.0, leader=1, memory_mib=2048)
    for num, round_num in enumerate((1, 3)):
        job.progress = {"round": round_num, "num_rounds": 11, "metrics": {"valid_loss": 0.51234567}, "best": 0.25 + num}
        clock.now += 10.0
        table.show(Event("report", job, job.progress))
    table.show(Event("retry", job, RETRY))
    done = make_job(4, state="done", attempts=[ENDED])
    table.show(Event("ended", done))
    console = Console(file=io.StringIO(), width=140, height=40)
    console.print(table.render())
    table.close()
    text = console.file.getvalue()
    device = text.splitlines()[0]
    assert "GPU-1a2b3c4d" in device and "2.0 of 80.0 GiB" in device and "1 jobs" in device
    assert "lr=0.1 seed=0 (attempt 2)" in text and "3/11" in text and "0.5123" in text
    assert "40 s" in text  # ten seconds for two rounds, eight to go
    assert "7 queued  1 running  1 done  1 retried  best 0.25 (#3 lr=0.1 seed=0)" in text


@pytest.mark.parametrize("kind, name", [("none", "View"), ("lines", "Lines"), ("auto", "Lines")])
def test_which_view(kind, name):
    with open_view(kind, make_queue(), 1) as view:
        assert type(view).__name__ == name


def test_lines_are_logged_with_their_level(caplog):
    with caplog.at_level(logging.INFO), open_view("lines", make_queue(), 1) as view:
        view.show(Event("retry", make_job(), RETRY))
        view.show(Event("ended", make_job(state="failed", failure=FAILURE)))
        view.show(None)
    assert [(record.levelname, record.getMessage()[:20]) for record in caplog.records] == [
        ("WARNING", "#3 lr=0.1 seed=0: wa"),
        ("ERROR", "#3 lr=0.1 seed=0: fa"),
        ("INFO", "1 jobs: 0 done, 1 fa"),
    ]


def test_on_a_terminal_log_lines_stay_whole():
    """A real pseudo-terminal: logs and prints while the table is drawn over and over."""
    program = """
        import logging, sys
        from pathlib import Path
        from flgo_hydra.launch.queue import Event, Job, Queue
        from flgo_hydra.launch.scheduling.scheduler import BasicScheduler, Device
        from flgo_hydra.launch.view import Table, open_view
        logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="[%(message)s]")
        queue = Queue(pool=None, scheduler=BasicScheduler(), read_devices=list)
        queue.devices = [Device("cpu", 100, 50, 2)]
        with open_view("auto", queue, 3) as view:
            assert type(view) is Table
            for i in range(20):
                logging.info("log line %d", i)
                print(f"<printed line {i}>")
                view.show(None)
        logging.info("after the table")
    """
    main, other = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(flgo_hydra.__file__).parents[1]), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=other, stderr=other, env=environment
    )
    os.close(other)
    data = b""
    while True:
        try:
            read = os.read(main, 65536)
        except OSError:  # how a pseudo-terminal says that nobody writes any more
            break
        data += read
    os.close(main)
    assert process.wait() == 0, data.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode())
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    for i in range(20):
        assert f"[log line {i}]" in lines and f"<printed line {i}>" in lines
    assert "[after the table]" in lines
    assert any("queued" in line for line in lines)


@pytest.mark.parametrize("monitor, best", [(None, 0.25), ("test_loss", 0.25), ("test_accuracy", 0.75), ("own", 0.75)])
def test_the_best_is_what_the_monitor_calls_so(monitor: str | None, best: float) -> None:
    tally = Tally(3)
    jobs = [make_job(num) for num in range(3)]
    for job, value in zip(jobs, (0.5, 0.25, 0.75), strict=True):
        values: dict[str, object] = {"best": value, "metrics": {"best": -9.0, "valid_loss": value}}
        if monitor is not None:
            values["monitor"] = {"metric": monitor, "is_maximized": monitor in ("test_accuracy", "own")}
        for told in (values, {**values, "best": math.nan}):
            tally.count(Event("report", job, told))
    assert tally.best == best and tally.best_job.startswith(f"#{1 if best == 0.25 else 2} ")


def test_a_handler_whose_stream_cannot_be_set_is_left_alone():
    """dill has one, on a logger that is there as soon as it is imported."""

    class Own(logging.StreamHandler):
        stream = property(lambda self: sys.stderr)

        def __init__(self):
            logging.Handler.__init__(self)

    own, logger = Own(), logging.getLogger("a library of its own")
    logger.addHandler(own)
    try:
        diverted = _divert_logging((sys.stdout, sys.stderr), io.StringIO())
        for handler, stream in diverted:
            handler.setStream(stream)
        assert own not in [handler for handler, _ in diverted]
    finally:
        logger.removeHandler(own)
