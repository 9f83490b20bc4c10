"""A study, a run and a curve are of one data set: what has changed in between is refused, with both hashes."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from flgo_hydra.study import rebuild

SOURCE = """
import os
import numpy as np

SHIFT = 0


def arrays(data_dir):
    found = dict(np.load(os.path.join(data_dir, "a.npz")))
    found["x_train"] = found["x_train"] + float(os.environ.get("CHANGED_SHIFT", "0")) + SHIFT
    return found


calls = []


def failing(model, data, task):
    calls.append(1)
    if len(calls) == 3 and not os.path.exists("broken"):
        os.mkdir("broken")
        raise RuntimeError("broken off")
    return {}


def changing(model, data, task):
    with np.load("a.npz") as before:
        content = dict(before)
    np.savez("a.npz", **{**content, "x_train": content["x_train"] + 1})
    return {}
"""
SMALL = ("task=custom", "task.source._target_=changed_data.arrays", "task.num_clients=2", "task.data_dir=.")
SMALL = (*SMALL, "num_rounds=2", "num_steps=1")
SWEEP = ("-m", "hydra/launcher=basic", "hydra.sweep.dir=sweep", *SMALL)


def save(shift=0.0, name="a.npz"):
    x = np.random.default_rng(0).standard_normal((40, 3))
    np.savez(name, x_train=x + shift, y_train=np.arange(40) % 2)


@pytest.fixture
def folder(empty_folder):
    Path("changed_data.py").write_text(SOURCE)
    save()
    return empty_folder


def files(root="sweep"):
    return {str(p): p.stat().st_mtime_ns for p in Path(root).rglob("*") if p.is_file() and p.suffix != ".lock"}


def assert_refused(done, word="data_sha256"):
    assert done.status == 1 and word in done.err, done.out + done.err
    one, other = re.findall(r"(?:was|is) ([0-9a-f]{16})", done.err)
    assert one != other and "Traceback" not in done.err


def hashes(root="sweep"):
    return [json.loads(p.read_text())["data_sha256"] for p in sorted(Path(root).glob("*/result.json"))]


@pytest.mark.parametrize(
    "one, other",
    [
        (["lr=0.1"], ["lr=0.1,0.2"]),
        (["lr=0.1"], ["lr=0.1"]),
        pytest.param(["lr=0.1,0.15"], ["lr=0.2"], marks=pytest.mark.slow),
        (["lr=0.1"], ["lr=0.1,0.2", "task.data_dir=./."]),
        pytest.param(["task.num_clients=2,3"], ["task.num_clients=2,3", "lr=0.1,0.2"], marks=pytest.mark.slow),
        pytest.param(["lr=0.1"], ["lr=0.1", "seed=0,1", "hydra.sweeper.replicate=seed"], marks=pytest.mark.slow),
        (
            ["lr=interval(0.1,0.2)", "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=1"],
            ["lr=interval(0.1,0.2)", "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=2"],
        ),
        pytest.param(
            ["task.train_holdout=interval(0.1,0.5)", "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=1"],
            ["task.train_holdout=interval(0.1,0.5)", "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=2"],
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.few(2)
def test_a_sweep_does_not_go_on_with_other_data(command, folder, one, other):
    assert command(*SWEEP, *one).status == 0
    (sha,) = set(hashes()[:1])
    assert re.fullmatch("[0-9a-f]{64}", sha)
    before = files()
    save(1.0)
    assert_refused(command(*SWEEP, *other))
    assert {name for name in files() if not name.endswith("journal")} == {
        n for n in before if not n.endswith("journal")
    }
    save()  # as it was
    assert command(*SWEEP, *other).status == 0
    assert set(hashes()) >= {sha}


@pytest.mark.parametrize("change", ["file", "variable", "code"])
@pytest.mark.few(1)
def test_whatever_it_was_that_changed(command, folder, monkeypatch, change):
    import changed_data

    assert command(*SWEEP, "lr=0.1").status == 0
    if change == "file":
        found = Path("a.npz").stat()
        save(1.0)
        os.utime("a.npz", ns=(found.st_atime_ns, found.st_mtime_ns))
    elif change == "variable":
        monkeypatch.setenv("CHANGED_SHIFT", "1")
    else:
        monkeypatch.setattr(changed_data, "SHIFT", 1)  # as in a new process after an edit
    assert_refused(command(*SWEEP, "lr=0.1,0.2"))


def test_a_rebuilt_study_knows_its_data(command, folder):
    assert command(*SWEEP, "task.num_clients=2,3").status == 0
    Path("sweep/study.journal").unlink()
    rebuild.rebuild(Path("sweep"))
    assert command(*SWEEP, "task.num_clients=2,3").status == 0
    save(1.0)
    assert_refused(command(*SWEEP, "task.num_clients=2,3", "lr=0.1,0.2"))


def test_data_elsewhere_with_the_same_content_are_the_same(command, folder):
    assert command(*SWEEP, "lr=0.1").status == 0
    Path("moved").mkdir()
    os.rename("a.npz", "moved/a.npz")
    assert command(*SWEEP, "lr=0.1,0.2", "task.data_dir=moved").status == 0
    assert len(set(hashes())) == 1 and len(hashes()) == 2


def test_a_swept_folder_has_its_own_data_and_keeps_them(command, folder):
    Path("other").mkdir()
    save(1.0, "other/a.npz")
    assert command(*SWEEP, "task.data_dir=.,other").status == 0
    assert len(set(hashes())) == 2
    save(2.0, "other/a.npz")
    assert_refused(command(*SWEEP, "task.data_dir=.,other"))
    assert command(*SWEEP, "task.data_dir=.", "lr=0.1,0.2").status == 0


def test_data_that_change_while_a_sweep_runs(command, folder):
    done = command(*SWEEP, "lr=0.1,0.2", "metrics=changed_data.changing")
    assert done.status == 1 and "its data changed while the sweep ran" in done.out
    assert [p.exists() for p in (Path("sweep/0/result.json"), Path("sweep/1/result.json"))] == [True, False]


def test_a_finished_run_is_of_its_data(command, folder):
    run = (*SMALL, "hydra.run.dir=run")
    assert command(*run).status == 0 and command(*run).status == 0
    save(1.0)
    assert_refused(command(*run))
    Path("a.npz").unlink()  # to be read, a result needs no data
    assert command(*run).status == 0 or "a.npz" in command(*run).err


def test_a_checkpoint_is_of_its_data(command, folder):
    run = (*SMALL, "hydra.run.dir=run", "metrics=changed_data.failing", "checkpoint_interval=1", "num_rounds=4")
    assert command(*run).status == 1 and Path("run/checkpoint.pt").exists()
    before = Path("run/rounds.jsonl").read_text()
    save(1.0)
    assert_refused(command(*run))
    assert Path("run/rounds.jsonl").read_text() == before
    save()
    assert command(*run).status == 0 and len(Path("run/rounds.jsonl").read_text().splitlines()) == 5


@pytest.mark.slow
def test_other_splits_of_other_data_are_other_data_too(command, folder):
    """A new `task.seed` or number of clients has no content to be compared with, but one source."""
    for more in (["task.seed=0,1"], ["task.seed=2"], ["task.num_clients=3,4"]):
        assert (
            command(*[text for text in SWEEP if text.partition("=")[0] != more[0].partition("=")[0]], *more).status == 0
        )
    save(1.0)
    before = files()
    for more in ("task.seed=3", "task.num_clients=5"):
        key = more.partition("=")[0]
        assert_refused(command(*[text for text in SWEEP if text.partition("=")[0] != key], more))
    assert files() == before


def test_what_a_source_draws_follows_the_seed(command, folder):
    Path("drawn.py").write_text(
        "import numpy as np\n\n\ndef arrays():\n"
        "    return {'x_train': np.random.rand(40, 3), 'y_train': np.arange(40) % 2}\n"
    )
    sweep = ["-m", "hydra/launcher=basic", "hydra.sweep.dir=sweep", *SMALL[:1], "task.num_clients=2", *SMALL[-2:]]
    for seed in ("0,1", "2"):
        assert command(*sweep, "task.source._target_=drawn.arrays", f"task.seed={seed}").status == 0
    assert len(set(hashes())) == 3
