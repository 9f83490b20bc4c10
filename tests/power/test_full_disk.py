"""A disk that takes nothing more, at any write of a run or a sweep: a sentence, nothing half, later the same digits."""

import errno
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

_SHIM = Path(__file__).with_name("full_disk.py")
SMALL = ("num_rounds=3", "model=logistic", "num_steps=1", "task.num_clients=3", "device=cpu")
RUN = (*SMALL, "checkpoint_interval=1", "save_best=true", "hydra.run.dir=run")
SWEEP = ("-m", *SMALL, "lr=0.1,0.01", "hydra.sweep.dir=sweep")
# A log that was being opened when the disk refused is closed by the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT]


@pytest.fixture(scope="session")
def full_disk():
    spec = importlib.util.spec_from_file_location("full_disk", _SHIM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def numbers(run):
    rounds = [{name: value for name, value in line.items() if name != "seconds"} for line in read_rounds(run)]
    result = read_result(run)
    return rounds, result and (result.status, result.best_round, result.best, result.best_valid_loss)


def is_sentence(text):
    return "Traceback" not in text and "cannot be written" in text and "give the same command again" in text


def leftovers(folder):
    return [path for path in folder.rglob(".*.*") if path.is_file() and path.name != ".owner.lock"]


@pytest.fixture
def try_run(command, full_disk, empty_folder):
    """Runs a run whose disk refuses a write, and then again with one that does not."""

    def try_one(at, number, lasts, expected, best_model):
        shutil.rmtree("run", ignore_errors=True)
        with full_disk.refusing(empty_folder, at, number, lasts) as disk:
            done = command(*RUN)
        run = RunPaths(empty_folder / "run")
        refused = disk.done[at]
        if done.status == 0:
            # Neither the log nor the lock is what the run is about, and a folder may be there already.
            assert refused[0] == "mkdir" or refused[1].endswith((".log", ".lock")), refused
            assert numbers(run) == expected, refused
        else:
            assert is_sentence(done.err), f"{refused}: {done.err}"
        assert read_result(run) is None or numbers(run)[1] == expected[1]
        assert lasts or not leftovers(empty_folder / "run"), refused
        done = command(*RUN)
        assert done.status == 0, f"{refused}: {done.err}"
        assert numbers(run) == expected, refused
        assert run.best_model.read_bytes() == best_model
        assert not run.failure.exists() and not run.checkpoint.exists() and not leftovers(empty_folder / "run")

    return try_one


@pytest.fixture
def undisturbed(command, full_disk, empty_folder):
    with full_disk.refusing(empty_folder, None, 0) as disk:
        done = command(*RUN)
    assert done.status == 0, done.err
    run = RunPaths(empty_folder / "run")
    return disk.done, numbers(run), run.best_model.read_bytes()


def of_each_kind(writes):
    """One write of each kind to each file: the last one."""
    kinds = {}
    for at, (what, path) in enumerate(writes):
        kinds[what, "." + path.rpartition("/.")[2].partition(".")[0] if "/." in path else path] = at
    return sorted(kinds.values())


@pytest.mark.slow
def test_a_run(undisturbed, try_run):
    writes, expected, best_model = undisturbed
    for turn, at in enumerate(of_each_kind(writes)[::2]):
        try_run(at, ERRORS[turn % 3], turn % 2 == 0, expected, best_model)


@pytest.mark.soak
@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "lasting"])
def test_a_run_at_every_write(undisturbed, try_run, number, lasts):
    writes, expected, best_model = undisturbed
    troubles = []
    for at in range(len(writes)):
        try:
            try_run(at, number, lasts, expected, best_model)
        except AssertionError as trouble:
            troubles.append(f"{at} {writes[at]}: {trouble}")
    assert not troubles, "\n".join(troubles)


@pytest.mark.parametrize("name", ["results.csv", "best.yaml", "curves.png"])
@pytest.mark.few(1)
def test_a_table_that_cannot_be_written(command, full_disk, empty_folder, monkeypatch, name):
    """The jobs have ended all the same, and the tables that were there stay as they were."""
    monkeypatch.setattr("flgo_hydra.study.sweep._MOST_RECORDS_S", 0.2)
    arguments = (*SWEEP, "hydra/launcher=basic")
    assert command(*arguments).status == 0
    before = Path("sweep", name).read_bytes()
    with full_disk.refusing(empty_folder, 0, errno.ENOSPC, True, name.replace(".", r"\.")):
        done = command(*arguments, "seed=0,1")
    said = done.out + done.err
    assert done.status == 1 and "Traceback" not in said, said
    assert f"{name} cannot be written: No space left on device" in said
    assert "optimal combination" in done.out and len(list(Path("sweep").glob("*/result.json"))) == 4
    assert Path("sweep", name).read_bytes() == before and not leftovers(Path("sweep"))
    assert command(*arguments, "seed=0,1").status == 0 and Path("sweep", name).read_bytes() != before


@pytest.mark.slow
def test_a_job_whose_disk_is_full_and_the_others(command, full_disk, empty_folder):
    """The others go on, and the same command does the rest, without being told to try what has failed."""
    arguments = (*SWEEP, "hydra/launcher=basic", "lr=0.1,0.05,0.01")
    assert command(*arguments[:-1]).status == 0
    expected = {number: numbers(RunPaths(Path("sweep", number))) for number in "01"}
    shutil.rmtree("sweep")
    with full_disk.refusing(empty_folder, 2, errno.ENOSPC, True, r"sweep/0/.*(rounds|result|failure)"):
        done = command(*arguments[:-1])
    assert done.status == 1 and "rounds.jsonl cannot be written: No space left on device" in done.out + done.err
    assert read_result(RunPaths(Path("sweep/1"))) is not None and read_result(RunPaths(Path("sweep/0"))) is None
    done = command(*arguments[:-1])
    assert done.status == 0, done.err
    assert {number: numbers(RunPaths(Path("sweep", number))) for number in "01"} == expected


@pytest.mark.soak
def test_a_sweep_of_processes_at_every_write_of_a_job(full_disk, empty_folder, tmp_path_factory):
    shim = tmp_path_factory.mktemp("shim")
    shutil.copy(_SHIM, shim / "sitecustomize.py")
    path = f"{shim}:{Path(__file__).parents[2]}"

    def sweep(**more):
        return subprocess.run(
            [sys.executable, "-m", "flgo_hydra", *SWEEP, "hydra.launcher.slots=2"],
            env={**os.environ, "PYTHONPATH": path, **more},
            capture_output=True,
            text=True,
            timeout=200,
        )

    assert sweep().returncode == 0
    expected = {number: numbers(RunPaths(Path("sweep", number))) for number in "01"}
    for at in range(0, 40, 3):
        shutil.rmtree("sweep")
        of_job = {"REFUSE_BELOW": str(empty_folder), "REFUSE_ONLY": r"sweep/0/(?!.*\.log)", "REFUSE_ON": "1"}
        done = sweep(**of_job, REFUSE_AT=str(at), REFUSE_WITH=str(errno.ENOSPC))
        is_whole = read_result(RunPaths(Path("sweep/0"))) is not None
        assert done.returncode == (0 if is_whole else 1), f"{at}: {done.stderr}"
        assert is_whole or "cannot be written" in done.stdout + done.stderr or "No space" in done.stdout + done.stderr
        assert numbers(RunPaths(Path("sweep/1"))) == expected["1"], at
        done = sweep()
        assert done.returncode == 0, f"{at}: {done.stderr}"
        assert {number: numbers(RunPaths(Path("sweep", number))) for number in "01"} == expected
        assert json.loads(Path("sweep/0/result.json").read_text())["status"] == "completed"
        if is_whole:
            return
    raise AssertionError("there are more writes than these")
