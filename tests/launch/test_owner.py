"""Whose a run's folder is: one process's at a time, and of two commands in one second each has its own."""

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from flgo_hydra.record.lock import holding, is_held
from flgo_hydra.record.paths import RunPaths, free_folder, is_by_the_second

SMALL = ("num_rounds=1", "model=logistic", "num_steps=1", "task.num_clients=2")


def contents():
    files = [path for path in Path("run").rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {path: path.read_bytes() for path in files}


def test_a_folder_that_another_run_has_is_refused_before_anything_is_written(command):
    assert command(*SMALL, "hydra.run.dir=run").status == 0
    before = contents()
    with holding(RunPaths(Path("run")).owner):
        owner = RunPaths(Path("run")).owner.read_text()
        done = command(*SMALL, "hydra.run.dir=run", "lr=0.5")
    assert done.status == 1 and f"run is in use by the run of process {owner.strip()}" in done.err
    assert "hydra.run.dir" in done.err and "Traceback" not in done.err
    assert contents() == before


def test_a_run_lets_go_of_its_folder(command):
    assert command(*SMALL, "hydra.run.dir=run").status == 0
    assert not is_held(RunPaths(Path("run")).owner)
    assert command(*SMALL, "hydra.run.dir=run").status == 0
    done = command(*SMALL, "hydra.run.dir=failed", "lr=-1")
    assert done.status == 1 and not is_held(RunPaths(Path("failed")).owner)


def test_commands_of_one_second_have_folders_of_their_own(command, monkeypatch):
    class Stopped(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("hydra.core.utils.datetime", Stopped)
    for lr in (0.1, 0.2, 0.3):
        assert command(*SMALL, f"lr={lr}").status == 0
    for lrs in ("0.1,0.2", "0.3,0.4"):
        done = command("-m", *SMALL, f"lr={lrs}", "hydra/launcher=basic")
        assert done.status == 0, done.err
    runs = sorted(Path("outputs").glob("*/*/result.json"))
    assert sorted(json.loads(path.read_text())["option"]["lr"] for path in runs) == [0.1, 0.2, 0.3]
    jobs = sorted(Path("multirun").glob("*/*/*/result.json"))
    assert sorted(json.loads(path.read_text())["option"]["lr"] for path in jobs) == [0.1, 0.2, 0.3, 0.4]


def test_of_a_sweep_that_was_refused_nothing_stays(command):
    assert command("-m", *SMALL, "lr=0.1,-1", "hydra/launcher=basic").status == 1
    assert command("-m", *SMALL, "lr=0.1,", "hydra/launcher=basic").status == 1
    assert not list(Path("multirun").glob("*/*"))


def test_a_free_folder(tmp_path):
    names = [free_folder(tmp_path / "a" / "12-00-00").name for _ in range(3)]
    assert names == ["12-00-00", "12-00-00-1", "12-00-00-2"]


def test_what_is_named_by_the_second():
    assert is_by_the_second("outputs/${now:%Y-%m-%d}/${now:%H-%M-%S}")
    assert not is_by_the_second("sweep") and not is_by_the_second("${now:%Y-%m-%d}")


def test_a_run_of_another_config_is_refused_before_anything_is_written(command):
    assert command(*SMALL, "hydra.run.dir=run").status == 0
    before = contents()
    for other in ("lr=0.5", "algorithm=fedprox", "task.seed=3"):
        done = command(*SMALL, "hydra.run.dir=run", other)
        assert done.status == 1 and "holds the result of another config" in done.err, done.err
        assert contents() == before
    assert command(*SMALL, "hydra.run.dir=run", "device=cpu").status == 0  # it decides no numbers


def test_an_unfinished_run_of_another_config_is_refused_before_anything_is_written(command):
    assert command(*SMALL, "hydra.run.dir=run").status == 0
    Path("run/result.json").unlink()
    Path("run/checkpoint.pt").touch()
    before = contents()
    for other in ("lr=0.5", "algorithm=fedprox"):
        done = command(*SMALL, "hydra.run.dir=run", other)
        assert done.status == 1 and "holds an unfinished run of another config" in done.err, done.err
        assert contents() == before


def test_a_folder_is_of_a_sweep_or_of_a_run(command):
    sweep = ("-m", *SMALL, "lr=0.1,0.2", "hydra/launcher=basic")
    assert command(*sweep, "hydra.sweep.dir=run").status == 0
    before = contents()
    for folder, told in [("run", "is a sweep's folder"), ("run/0", "is one run of a sweep")]:
        done = command(*SMALL, f"hydra.run.dir={folder}", "lr=0.1")
        assert done.status == 1 and told in done.err, done.err
    assert contents() == before
    assert command(*SMALL, "hydra.run.dir=alone").status == 0
    done = command(*sweep, "hydra.sweep.dir=alone")
    assert done.status == 1 and "is a single run's" in done.err, done.err


@pytest.mark.parametrize("form", [["hydra.run.dir=run"], ["-m", "lr=0.1,0.2", "hydra.sweep.dir=run"]])
@pytest.mark.parametrize("what", ["folder", "link", "circle", "device", "pipe"])
@pytest.mark.few(3)
def test_what_is_no_lock_is_refused_and_left_alone(command, tmp_path, form, what):
    lock = Path("run/.owner.lock")
    lock.parent.mkdir()
    theirs = tmp_path / "theirs"
    theirs.write_text("kept")
    makers = {
        "folder": lock.mkdir,
        "link": lambda: lock.symlink_to(theirs),
        "circle": lambda: lock.symlink_to(lock.name),
        "device": lambda: lock.symlink_to("/dev/zero"),
        "pipe": lambda: os.mkfifo(lock),
    }
    makers[what]()
    done = command(*SMALL, *form)
    assert done.status == 1 and "Traceback" not in done.err
    assert ".owner.lock is no plain file, and cannot be locked: remove it" in done.err
    assert theirs.read_text() == "kept" and os.listdir("run") == [".owner.lock"]
    lock.rmdir() if what == "folder" else lock.unlink()
    assert command(*SMALL, *form).status == 0


@pytest.mark.parametrize(
    "form, name",
    [
        (["save_best=true", "hydra.run.dir=run"], "best_model.safetensors"),
        (["-m", "lr=0.1,0.2", "hydra.sweep.dir=run"], "multirun.yaml"),
        (["-m", "lr=0.1,0.2", "hydra.sweep.dir=run"], "results.csv"),
    ],
)
@pytest.mark.few(1)
def test_files_of_somebody_elses_are_not_written_over(command, form, name):
    Path("run").mkdir()
    theirs = Path("run", name)
    theirs.write_text("theirs: kept\n")
    done = command(*SMALL, *form)
    assert done.status == 1 and f"holds {'a ' if 'best' in name else ''}{name}" in done.err
    assert "write over it. Choose another `hydra." in done.err
    assert theirs.read_text() == "theirs: kept\n"
    theirs.unlink()
    assert command(*SMALL, *form).status == 0
    assert command(*SMALL, *form).status == 0  # which are now our own
