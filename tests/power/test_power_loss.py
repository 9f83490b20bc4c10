"""A loss of power at any moment of a run or a sweep: what was said to be done is there, and the rest is done again."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_result, read_rounds

_RECORDER = Path(__file__).with_name("recorder.py")
SMALL = ("num_rounds=3", "model=logistic", "num_steps=1", "task.num_clients=3", "device=cpu")
RUN = (*SMALL, "checkpoint_interval=1", "save_best=true", "hydra.run.dir=run/deep")
SWEEP = ("-m", *SMALL, "checkpoint_interval=2", "lr=0.1,0.01", "seed=0,1", "hydra.sweep.dir=sweeps/one")
BASIC = (*SWEEP, "hydra/launcher=basic")


@pytest.fixture(scope="session")
def recorder():
    spec = importlib.util.spec_from_file_location("disk_recorder", _RECORDER)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def record(command, recorder, empty_folder, tmp_path_factory):
    """Runs a command while its disk is watched; returns the moments."""

    def run(*arguments):
        log = tmp_path_factory.mktemp("moments")
        recorder.start(empty_folder, log)
        try:
            done = command(*arguments)
        finally:
            recorder.stop()
        assert done.status == 0, done.err
        return recorder.Disk(log)

    return run


def numbers(run):
    """What a run has come to, without what differs each time."""
    rounds = [{name: value for name, value in line.items() if name != "seconds"} for line in read_rounds(run)]
    result = read_result(run)
    return rounds, result and (result.status, result.best_round, result.best, result.best_valid_loss)


def sampled(disk, ways, most):
    """Moments and ways, evenly over all; the last moment is one of them."""
    cases = [(at, way) for at in range(len(disk)) for way in ways]
    step = max(1, len(cases) // most)
    return cases[len(cases) - 1 :: -step][::-1]


def report(folder):
    """Reads a folder as `report` does; it may say that there is nothing, in a sentence."""
    from flgo_hydra.report.command import main

    try:
        return main([str(folder), "--format", "json"])
    except SystemExit as stop:
        return stop.code


def check_run(command, disk, at, way, folder, monkeypatch, expected, best_model):
    folder.mkdir()
    disk.make(at, way, folder)
    run = RunPaths(folder / "run" / "deep")
    before = numbers(run)[1]
    assert before is None or before == expected[1], "a result that is shown is the right one"
    stamp = run.result.stat().st_mtime_ns if before is not None else None
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        if run.folder.exists():
            assert report(folder) in (0, 1)
        done = command(*RUN)
    assert done.status == 0 and "Traceback" not in done.err, done.err
    assert numbers(run) == expected
    assert run.best_model.read_bytes() == best_model
    assert stamp is None or run.result.stat().st_mtime_ns == stamp, "a finished run is not run again"
    assert not list(run.folder.glob(".best_model*")) and not list(run.folder.glob(".checkpoint*"))


def check_all_of_run(command, record, empty_folder, monkeypatch, ways, most):
    disk = record(*RUN)
    run = RunPaths(empty_folder / "run" / "deep")
    expected, best_model = numbers(run), run.best_model.read_bytes()
    for at, way in sampled(disk, ways, most):
        try:
            check_run(command, disk, at, way, empty_folder / f"{at}-{way}", monkeypatch, expected, best_model)
        except AssertionError as error:
            raise AssertionError(f"power lost after {at} ({disk.events[at]}), {way}") from error
    last = empty_folder / "last"
    last.mkdir()
    disk.make(len(disk) - 1, "synced", last)
    assert numbers(RunPaths(last / "run" / "deep")) == expected, "exit status 0: all of it is there"
    hydra = [path.read_bytes() for path in sorted((run.folder / ".hydra").iterdir())]
    assert [path.read_bytes() for path in sorted((last / "run" / "deep" / ".hydra").iterdir())] == hydra
    return disk


def test_a_run(command, record, recorder, empty_folder, monkeypatch):
    check_all_of_run(command, record, empty_folder, monkeypatch, recorder.WAYS, 7)


@pytest.mark.soak
def test_a_run_at_every_moment(command, record, recorder, empty_folder, monkeypatch):
    check_all_of_run(command, record, empty_folder, monkeypatch, recorder.WAYS, 10**6)


def test_a_checkpoint_that_was_written_is_gone_on_from(command, record, empty_folder, monkeypatch):
    """After its folder was waited for, a checkpoint holds what it says: the rounds before it are there too."""
    disk = record(*RUN)
    waited = [i for i, event in enumerate(disk.events) if event == "fsync run/deep" and _has(disk, i, "checkpoint.pt")]
    assert len(waited) >= 2
    folder = empty_folder / "after"
    folder.mkdir()
    disk.make(waited[-1], "synced", folder)
    monkeypatch.chdir(folder)
    (folder / "run" / "deep" / "result.json").unlink(missing_ok=True)
    done = command(*RUN)
    assert done.status == 0 and "going on after round" in done.out + done.err


def _has(disk, at, name):
    return any(path.endswith(f"/{name}") for path in disk.seen[at])


def check_sweep(command, disk, at, way, folder, monkeypatch, expected, again):
    folder.mkdir()
    disk.make(at, way, folder)
    sweep = folder / "sweeps" / "one"
    runs = {number: RunPaths(sweep / number) for number in expected}
    found = {number: run for number, run in runs.items() if read_result(run) is not None}
    for number, run in found.items():
        assert numbers(run)[1] == expected[number][1], "a result that is shown is the right one"
    table = disk.read(disk.seen[at].get("sweeps/one/results.csv")).decode().splitlines()[1:]
    said = {line.partition(",")[0] for line in table if "completed" in line}
    assert said <= set(found), f"results.csv has said that {said} are done, and {set(found)} are there"
    stamps = {number: run.result.stat().st_mtime_ns for number, run in found.items()}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        if sweep.exists():
            assert report(folder) in (0, 1)
        done = again()
    assert done.status == 0 and "Traceback" not in done.err, done.err
    of_points = {point(run): numbers(run) for run in map(RunPaths, sweep.iterdir()) if read_result(run) is not None}
    assert of_points == expected.points
    assert {number: runs[number].result.stat().st_mtime_ns for number in found} == stamps, "nothing is run twice"
    ended = [run for run in sweep.iterdir() if run.is_dir() and (run / "result.json").exists()]
    assert len(ended) == len(expected), "each point has been run to its end once"


class Expected(dict):
    """What each run came to, by its number; and by its point."""

    points: dict


def point(run):
    result = read_result(run)
    return result.option["lr"], result.seed


def expected_of(sweep):
    found = Expected({run.folder.name: numbers(run) for run in map(RunPaths, sorted(sweep.glob("[0-9]")))})
    found.points = {point(RunPaths(sweep / number)): value for number, value in found.items()}
    assert len(found) == 4
    return found


def check_all_of_sweep(command, disk, empty_folder, monkeypatch, ways, most):
    expected = expected_of(empty_folder / "sweeps" / "one")
    for at, way in sampled(disk, ways, most):
        folder = empty_folder / f"{at}-{way}"
        try:
            check_sweep(command, disk, at, way, folder, monkeypatch, expected, lambda: command(*BASIC))
        except AssertionError as error:
            raise AssertionError(f"power lost after {at} ({disk.events[at]}), {way}") from error
        shutil.rmtree(folder)
    last = empty_folder / "last"
    last.mkdir()
    disk.make(len(disk) - 1, "synced", last)
    for name in ("results.csv", "best.yaml", "curves.png", "multirun.yaml"):
        assert (last / "sweeps/one" / name).read_bytes() == (empty_folder / "sweeps/one" / name).read_bytes()


@pytest.mark.slow
def test_a_sweep(command, record, recorder, empty_folder, monkeypatch):
    disk = record(*BASIC)
    check_all_of_sweep(command, disk, empty_folder, monkeypatch, recorder.WAYS, 5)


@pytest.mark.soak
def test_a_sweep_at_every_moment(command, record, recorder, empty_folder, monkeypatch):
    disk = record(*BASIC)
    check_all_of_sweep(command, disk, empty_folder, monkeypatch, ("synced", "mixed"), 10**6)


@pytest.mark.soak
def test_a_sweep_of_processes(command, recorder, empty_folder, monkeypatch, tmp_path_factory):
    """Under our launcher: the moments of all processes, in the order in which they were."""
    log, shim = tmp_path_factory.mktemp("moments"), tmp_path_factory.mktemp("shim")
    shutil.copy(_RECORDER, shim / "sitecustomize.py")
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": f"{shim}:{root}", "RECORD_DISK_OF": str(empty_folder), "RECORD_DISK_IN": str(log)}
    done = subprocess.run(
        [sys.executable, "-m", "flgo_hydra", *SWEEP, "hydra.launcher.slots=2"],
        cwd=empty_folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    disk = recorder.Disk(log)
    assert any("checkpoint" in path for seen in disk.seen for path in seen)
    check_all_of_sweep(command, disk, empty_folder, monkeypatch, ("synced", "mixed"), 60)
    assert json.loads(Path("sweeps/one/0/result.json").read_text())["status"] == "completed"
