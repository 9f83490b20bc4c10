"""The single writer's journal: Optuna's own format, readable while it is written and after a kill."""

import errno
import multiprocessing
import os
import signal

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from flgo_hydra.study.stored.journal import SingleWriterJournal
from flgo_hydra.study.stored.storage import name_in, open_storage


def ours(path):
    return optuna.create_study(storage=JournalStorage(SingleWriterJournal(path)), study_name="s", load_if_exists=True)


def theirs(path):
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(path))))


def test_optunas_own_backend_reads_it_at_any_moment(tmp_path):
    study = ours(tmp_path / "study.journal")
    trial = study.ask({"lr": optuna.distributions.FloatDistribution(0.0, 1.0)})
    for step in range(5):
        trial.report(1.0 / (step + 1), step)
    assert theirs(tmp_path / "study.journal").trials[0].intermediate_values[4] == pytest.approx(0.2)
    study.tell(trial, 0.2)
    assert theirs(tmp_path / "study.journal").best_value == 0.2


def test_what_a_dashboard_adds_is_kept_and_seen(tmp_path):
    study = ours(tmp_path / "study.journal")
    first = study.ask()
    theirs(tmp_path / "study.journal").set_user_attr("note", "looked at")
    study.tell(first, 1.0)
    assert study.user_attrs == theirs(tmp_path / "study.journal").user_attrs == {"note": "looked at"}
    assert len(theirs(tmp_path / "study.journal").trials) == 1


def _report_and_die(path):
    study = ours(path)
    trial = study.ask()
    for step in range(100):
        trial.report(float(step), step)
    os.kill(os.getpid(), signal.SIGKILL)  # nothing was committed


def test_a_killed_writer_loses_nothing_that_was_appended(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_report_and_die, args=(tmp_path / "study.journal",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(theirs(tmp_path / "study.journal").trials[0].intermediate_values) == 100


def test_entries_are_read_from_any_number_on(tmp_path):
    path = tmp_path / "study.journal"
    ours(path).set_user_attr("a", 1)
    journal = SingleWriterJournal(path)
    entries = list(JournalFileBackend(str(path)).read_logs(0))
    for number in (0, 1, len(entries), 0, 1):
        assert list(journal.read_logs(number)) == entries[number:]
    with open(path, "ab") as file:
        file.write(b'{"op_code":2,"half')
        file.flush()
        assert list(journal.read_logs(len(entries))) == []
        file.write(b'":1}\n')
        file.flush()
        assert list(journal.read_logs(len(entries))) == [{"op_code": 2, "half": 1}]
    journal.close()


class FullDisk:
    """Takes so many bytes and then refuses, as a full disk does."""

    def __init__(self, room):
        self.room = room

    def write(self, fd, data):
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = os.pwrite(fd, data[: self.room], os.fstat(fd).st_size)
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 1, 40, 60])
def test_a_full_disk_leaves_no_half_entry(tmp_path, monkeypatch, room):
    path = tmp_path / "study.journal"
    study = ours(path)
    trial = study.ask()
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("flgo_hydra.study.stored.journal.os.write", FullDisk(room).write)
        with pytest.raises(OSError, match="No space"):
            trial.report(0.5, 1)
    assert path.read_bytes() == before
    study.tell(trial, 0.25)  # there is room again
    assert theirs(path).best_value == 0.25 and ours(path).best_value == 0.25


def test_a_write_in_parts_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "study.journal"
    study = ours(path)
    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr("flgo_hydra.study.stored.journal.os.write", lambda fd, data: real(fd, data[:7]))
        study.set_user_attr("a", "b" * 50)
    assert theirs(path).user_attrs == {"a": "b" * 50}


@pytest.mark.parametrize("torn", [b"{", b'{"op_code":4', b"\x00" * 100, b"x" * 200_000])
def test_a_torn_end_is_mended(tmp_path, torn):
    path = tmp_path / "study.journal"
    study = ours(path)
    study.set_user_attr("a", 1)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    again = ours(path)
    again.set_user_attr("b", 2)
    assert theirs(path).user_attrs == {"a": 1, "b": 2}
    assert path.read_bytes().startswith(whole + b'{"op_code":')


def test_a_torn_middle_is_named(tmp_path):
    path = tmp_path / "study.journal"
    ours(path).set_user_attr("a", 1)
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b'{"op_co\n' + b"".join(rest))
    with pytest.raises(ValueError, match=f"{path} is damaged: its line 2 .*rebuild_study {tmp_path}"):
        ours(path)


@pytest.mark.parametrize(
    "make, says",
    [
        (os.mkfifo, "no file"),
        (os.mkdir, "no file"),
        (lambda path: path.symlink_to(path.name), "no file"),
        (lambda path: (path.touch(), os.truncate(path, 2**40)), "last line has more than"),
        (lambda path: path.write_text('{"op_code": 4, "worker_id": "w"}\n'), "do not fit together"),
    ],
)
def test_what_is_no_journal_is_named_with_a_way_out(tmp_path, make, says):
    path = tmp_path / "study.journal"
    make(path)
    assert name_in(path) is None
    with pytest.raises(ValueError, match=f"study.journal is damaged: .*{says}.*rebuild_study"):
        open_storage(path)


@pytest.mark.parametrize(
    "line, says",
    [
        ("[" * 100_000, "nested too deeply"),
        ("7", "line 2 is no entry"),
        ("{}", "line 2 is no entry"),
        ("\0" * 50, "line 2"),
    ],
)
def test_what_is_before_a_damaged_line_counts_and_nothing_is_lost(tmp_path, caplog, line, says):
    """The rest of the study is in the run folders."""
    path = tmp_path / "study.journal"
    ours(path).set_user_attr("a", 1)
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line.encode() + b"\n" + b"".join(rest))
    damaged = path.read_bytes()
    storage, journal = open_storage(path)
    assert [study.user_attrs for study in storage.get_all_studies()] == [{}] and path.read_bytes() == first
    journal.close()
    assert path.with_name("study.journal.damaged").read_bytes() == damaged
    assert says in caplog.text and "It is kept as study.journal.damaged" in caplog.text


def test_an_entry_is_never_longer_than_can_be_read(tmp_path):
    path = tmp_path / "study.journal"
    study = ours(path)
    study.set_user_attr("a", ["x" * 2**24, {"b": "\udc80" * 2**22}])
    assert "characters) …" in theirs(path).user_attrs["a"][0] and path.stat().st_size < 2**20
    assert ours(path).user_attrs == study.user_attrs
