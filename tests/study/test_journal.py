"""The single writer's journal: Optuna's own format, readable while it is written and after a kill."""

import multiprocessing
import os
import signal

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from flgo_hydra.study.journal import SingleWriterJournal


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
