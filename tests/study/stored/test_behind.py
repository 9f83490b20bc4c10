"""A storage that is away is told everything in order when it is back; one that stays away is given up."""

import errno
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy.exc

from flgo_hydra.record import files
from flgo_hydra.study.stored.behind import Behind
from flgo_hydra.study.stored.journal import SingleWriterJournal
from flgo_hydra.study.stored.storage import open_study
from flgo_hydra.study.stored.study import SweepStudy

SMALL = ("num_rounds=3", "model=logistic", "task.num_clients=2", "num_steps=1")
TROUBLES = [
    OSError(errno.ENOSPC, "No space left on device"),
    optuna.exceptions.StorageInternalError("gone"),
    sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("server closed the connection")),
]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Sink:
    """Takes what it is told, unless it is away."""

    def __init__(self):
        self.trouble = None
        self.heard = []
        self.num_asked = 0

    def takes(self, what):
        def write():
            self.num_asked += 1
            if self.trouble is not None:
                raise self.trouble
            self.heard.append(what)

        return write


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def behind(clock):
    return Behind("The study", 60.0, clock, clock.sleep)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: type(trouble).__name__)
def test_what_is_told_meanwhile_comes_in_order(behind, clock, trouble, caplog):
    sink = Sink()
    behind.tell(sink.takes(0))
    sink.trouble = trouble
    for number in (1, 2, 3):
        behind.tell(sink.takes(number))
    assert sink.heard == [0] and behind.num_waiting == 3 and behind.is_away and not behind.is_lost
    assert sink.num_asked == 2  # it is not asked again at once
    assert caplog.text.count("cannot be written") == 1
    sink.trouble = None
    assert not behind.may_try and not behind.write()
    clock.sleep(behind.wait_s())
    assert behind.write() and sink.heard == [0, 1, 2, 3] and not behind.is_away
    assert behind.wait_s() is None and "can be written again" in caplog.text


def test_pauses_grow_and_end_after_a_minute(behind, clock):
    sink = Sink()
    sink.trouble = TROUBLES[0]
    behind.tell(sink.takes(1))
    pauses = []
    while not behind.is_lost:
        pauses.append(behind.wait_s())
        clock.sleep(pauses[-1])
        behind.write()
    assert [round(pause, 6) for pause in pauses] == sorted(round(pause, 6) for pause in pauses)
    assert pauses[0] < 0.2 and pauses[-1] <= 5 and 60 <= clock.now < 70
    assert behind.num_waiting == 1 and "No space left" in behind.reason
    assert not behind.flush()


def test_flush_waits_for_a_storage_that_comes_back(behind, clock):
    sink = Sink()
    sink.trouble = TROUBLES[0]

    def sleep(seconds):
        clock.now += seconds
        if clock.now > 30:
            sink.trouble = None

    behind._sleep = sleep
    behind.tell(sink.takes(1))
    assert behind.flush() and sink.heard == [1] and clock.now < 40


def test_a_mistake_of_ours_is_no_trouble(behind):
    sink = Sink()
    sink.trouble = KeyError("x")
    with pytest.raises(KeyError):
        behind.tell(sink.takes(1))


def values(url_or_path, name):
    study = open_study(url_or_path, name)
    return {
        (trial.params["lr"], trial.params["seed"]): (trial.state.name, trial.value, trial.intermediate_values)
        for trial in study.trials
    }, len(study.trials)


SWEEP = ("-m", *SMALL, "lr=0.1,0.01", "seed=0,1,2")


@pytest.fixture
def undisturbed(command):
    assert command(*SWEEP, "hydra.sweep.dir=calm", "hydra.sweeper.study_name=s").status == 0
    return values("calm/study.journal", "s")


@pytest.mark.parametrize("launcher", ["flgo_hydra", "basic"])
@pytest.mark.few(2)
def test_a_disk_that_is_full_for_a_while(command, undisturbed, launcher, monkeypatch):
    calls = iter(range(10**9))
    append = files.append

    def failing(fd, content):
        """From the eighth write on, four fail."""
        if 8 <= next(calls) < 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(fd, content)

    arguments = (*SWEEP, "hydra.sweep.dir=sweep", "hydra.sweeper.study_name=s", f"hydra/launcher={launcher}")
    with monkeypatch.context() as patched:
        own = SimpleNamespace(writing=files.writing, settle=files.settle, append=failing)  # not the runs' own writers
        patched.setattr("flgo_hydra.study.stored.journal.files", own)
        done = command(*arguments)
    assert done.status == 0, done.err
    assert "cannot be written (" in done.out + done.err and "can be written again" in done.out + done.err
    assert values("sweep/study.journal", "s") == undisturbed


@pytest.mark.parametrize("launcher", ["flgo_hydra", pytest.param("basic", marks=pytest.mark.slow)])
def test_sqlite_that_somebody_locks(command, undisturbed, launcher, monkeypatch):
    holder = sqlite3.connect("s.db", check_same_thread=False, isolation_level=None)
    finish, hear = SweepStudy.finish, Behind.hear
    seen = []

    def locking(study, *arguments):
        if not seen:
            seen.append("locked")
            holder.execute("BEGIN EXCLUSIVE")
        return finish(study, *arguments)

    def heard(behind, error):
        seen.append(error)
        if len(seen) == 3:
            holder.execute("ROLLBACK")
        return hear(behind, error)

    monkeypatch.setattr(SweepStudy, "finish", locking)
    monkeypatch.setattr(Behind, "hear", heard)
    where = ("hydra.sweeper.storage=sqlite:///s.db", "hydra.sweeper.study_name=s")
    done = command(*SWEEP, *where, "hydra.sweep.dir=sweep", f"hydra/launcher={launcher}")
    assert done.status == 0, done.err
    assert len(seen) >= 3
    assert values("sqlite:///s.db", "s") == undisturbed


def locked_while(hold, monkeypatch, num=3):
    """Has somebody lock the database until its trouble has been heard so often; returns what was heard."""
    hold.execute("BEGIN EXCLUSIVE")
    heard, hear = [], Behind.hear

    def hearing(behind, error):
        heard.append(error)
        if len(heard) == num:
            hold.execute("ROLLBACK")
        return hear(behind, error)

    monkeypatch.setattr(Behind, "hear", hearing)
    return heard


@pytest.mark.slow
def test_sqlite_that_somebody_locks_while_a_command_starts(command, undisturbed, monkeypatch):
    """With a trial that a killed sweep has left open, which is to be closed first."""
    where = ("hydra.sweeper.storage=sqlite:///s.db", "hydra.sweeper.study_name=s", "hydra/launcher=basic")
    sweep = (*SWEEP, *where, "hydra.sweep.dir=sweep")
    assert command(*sweep).status == 0
    before = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")}
    holder = sqlite3.connect("s.db", isolation_level=None)
    holder.execute("UPDATE trials SET state='RUNNING', datetime_complete=NULL WHERE number=2")
    heard = locked_while(holder, monkeypatch)
    done = command(*sweep)
    holder.close()
    assert done.status == 0, done.err
    assert len(heard) >= 3 and "cannot be written" in done.out + done.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert values("sqlite:///s.db", "s") == undisturbed


@pytest.mark.slow
def test_sqlite_that_stays_locked_while_a_command_starts(command, monkeypatch):
    where = ("hydra.sweeper.storage=sqlite:///s.db", "hydra.sweeper.study_name=s", "hydra/launcher=basic")
    sweep = (*SWEEP, *where, "hydra.sweep.dir=sweep")
    assert command(*sweep).status == 0
    holder = sqlite3.connect("s.db", isolation_level=None)
    holder.execute("UPDATE trials SET state='RUNNING', datetime_complete=NULL WHERE number=2")
    monkeypatch.setattr(Behind.__init__, "__defaults__", (0.3, *Behind.__init__.__defaults__[1:]))
    heard = locked_while(holder, monkeypatch, num=10**6)
    done = command(*sweep)
    holder.close()
    assert heard and done.status == 1 and "Traceback" not in done.err, done.err
    assert "cannot be used: " in done.err and "locked" in done.err and "give the same command again" in done.err


@pytest.mark.few(1)
def test_a_storage_that_stays_away(command, undisturbed, monkeypatch):
    """The jobs stop, what has run is kept, and the same command makes up for the rest."""

    def never(journal, lines):
        raise OSError(errno.EIO, "Input/output error")

    write = SingleWriterJournal._write
    finish = SweepStudy.finish

    def breaking(study, *arguments):
        monkeypatch.setattr(SingleWriterJournal, "_write", never)
        return finish(study, *arguments)

    monkeypatch.setattr(SweepStudy, "finish", breaking)
    monkeypatch.setattr("flgo_hydra.study.stored.behind.MOST_S", 0.3)
    monkeypatch.setattr(Behind.__init__, "__defaults__", (0.3, *Behind.__init__.__defaults__[1:]))
    sweep = (*SWEEP, "hydra.sweep.dir=sweep", "hydra.sweeper.study_name=s")
    done = command(*sweep, "hydra.launcher.slots=1")
    assert done.status == 1
    assert "could not be written: " in done.err and "Input/output error" in done.err and "To go on" in done.err
    assert "Traceback" not in done.err
    monkeypatch.setattr(SingleWriterJournal, "_write", write)
    monkeypatch.setattr(SweepStudy, "finish", finish)
    before = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")}
    done = command(*sweep)
    assert done.status == 0, done.err
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    found, _ = values("sweep/study.journal", "s")
    assert {key: value for key, value in found.items() if value[0] == "COMPLETE"} == undisturbed[0]


@pytest.mark.slow
def test_six_sweeps_make_one_database(tmp_path):
    arguments = [sys.executable, "-m", "flgo_hydra", "-m", *SMALL, "lr=0.1,0.01", "hydra/launcher=basic"]
    started = [
        subprocess.Popen(
            [
                *arguments,
                f"hydra.sweep.dir=s{i}",
                "hydra.sweeper.storage=sqlite:///new.db",
                f"hydra.sweeper.study_name=s{i}",
            ],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(6)
    ]
    outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * 6, outputs
    names = optuna.get_all_study_names(f"sqlite:///{tmp_path}/new.db")
    assert sorted(names) == [f"s{i}" for i in range(6)]
