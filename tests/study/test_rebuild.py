"""A study made anew from run folders is the one that the sweep made."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flgo_hydra.study.rebuild import main
from flgo_hydra.study.stored.storage import open_study

SOURCE = (
    "from flgo_hydra.federated.algorithm.base import Algorithm\n"
    "class Picky(Algorithm):\n"
    "    def update_server(self, params, server, message, participation, hyper):\n"
    "        if hyper['lr'] == 0.2:\n"
    "            raise RuntimeError('not 0.2')\n"
    "        return super().update_server(params, server, message, participation, hyper)\n"
)


@pytest.fixture
def sweep(command, empty_folder):
    """A completed, an early-stopped, a diverged and a failed run, in two commands."""
    (empty_folder / "picky.py").write_text(SOURCE)
    Path("own/algorithm").mkdir(parents=True)
    Path("own/algorithm/picky.yaml").write_text("name: picky\n_target_: picky.Picky\n")
    fixed = ("num_rounds=6", "early_stop=2", "model=logistic", "num_steps=1", "task.num_clients=5")
    arguments = ("-m", "--config-dir", "own", "algorithm=picky", *fixed, "hydra.sweep.dir=sweep")
    command(*arguments, "lr=0.1,0.2,20")
    command(*arguments, "lr=1e38", "hydra/launcher=basic")
    return empty_folder / "sweep"


def content(study):
    """Everything but times, the order of trials, and how far a range reached when a trial began."""

    def plain(value):
        return "nan" if isinstance(value, float) and math.isnan(value) else value

    return {
        "study": {name: value for name, value in study.user_attrs.items() if name != "is_being_rebuilt"},
        "best": (study.best_value, study.best_params, study.best_trial.user_attrs.get("best_round")),
        **{
            trial.user_attrs["job"]: (
                *(trial.state.name, trial.value, trial.params, trial.user_attrs),
                {step: plain(value) for step, value in trial.intermediate_values.items()},
            )
            for trial in study.trials
        },
    }


def test_it_is_the_one_that_the_sweep_made_and_the_sweep_goes_on_with_it(sweep, command, capfd):
    statuses = [json.loads(path.read_text())["status"] for path in sorted(sweep.glob("*/result.json"))]
    assert statuses == ["completed", "early_stopped", "diverged"], statuses
    journal = sweep / "study.journal"
    name = "_".join(sweep.parts[-2:])
    before = content(open_study(str(journal), name))
    assert len(before) == 2 + 4
    assert main([str(sweep)]) == 1
    assert f"There is a study {name!r} in {journal}. To overwrite it: --force." in capfd.readouterr().err
    journal.unlink()
    assert main([str(sweep)]) == 0
    assert content(open_study(str(journal), name)) == before
    journal.write_text("{damaged")
    assert main([str(sweep), "--force"]) == 0
    assert content(open_study(str(journal), name)) == before
    url = f"sqlite:///{sweep}/study.db"
    for arguments, status in [([], 0), ([], 1), (["--force"], 0)]:
        assert main([str(sweep), "--storage", url, "--study-name", "s", *arguments]) == status
    study = open_study(url, "s")
    assert content(study) == before
    study._storage._backend.engine.dispose()
    # the journal is the one that was made with --force
    done = command(
        *("-m", "--config-dir", "own", "algorithm=picky", "num_rounds=6", "early_stop=2", "model=logistic"),
        *("num_steps=1", "task.num_clients=5", "hydra.sweep.dir=sweep", "lr=0.1,0.2,20,1e38", "hydra/launcher=basic"),
    )
    assert "1 failed before and was not tried again" in done.out
    assert len(open_study(str(journal), name).trials) == 4


@pytest.mark.parametrize("what", ["folder", "link", "pipe"])
@pytest.mark.few(1)
def test_what_lies_where_the_study_should_be_is_kept(sweep, tmp_path, what):
    journal = sweep / "study.journal"
    name = "_".join(sweep.parts[-2:])
    before = content(open_study(str(journal), name))
    journal.unlink()
    makers = {"folder": journal.mkdir, "link": lambda: journal.symlink_to(tmp_path), "pipe": lambda: os.mkfifo(journal)}
    makers[what]()
    assert main([str(sweep), "--force"]) == 0
    assert content(open_study(str(journal), name)) == before
    assert os.path.lexists(sweep / "study.journal.damaged")


@pytest.mark.parametrize("what", ["folder", "link"])
@pytest.mark.few(1)
def test_what_lies_where_a_result_should_be_is_named(sweep, capfd, what):
    result = sweep / "0" / "result.json"
    result.unlink()
    result.mkdir() if what == "folder" else result.symlink_to("nowhere")
    assert main([str(sweep), "--force"]) == 0
    assert f"left out: {sweep / '0'}" in capfd.readouterr().err


def test_a_disk_that_takes_nothing_is_told(sweep, capfd, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (sweep / "study.journal").unlink()
    monkeypatch.setattr(os, "replace", full)
    assert main([str(sweep)]) == 1
    assert "study.journal cannot be written: No space left on device. Make room there" in capfd.readouterr().err


def test_what_it_cannot_do(tmp_path, capfd):
    assert main([str(tmp_path)]) == 1
    assert "no sweep folder" in capfd.readouterr().err
    root = Path(__file__).parents[2]
    script, env = root / "scripts" / "rebuild_study", {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, script, tmp_path / "none"], capture_output=True, text=True, env=env)
    assert done.returncode == 1 and "no sweep folder" in done.stderr


SMALL = ("num_rounds=2", "num_steps=1", "model=logistic", "task.num_clients=5", "monitor=test_accuracy")
BASIC = "hydra/launcher=basic"
SEARCH = ("hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=4", "lr=tag(log,interval(0.001,0.3))")
# With the worse rate a run waits in round 2 until it hears that it is pruned.
PATIENT = """
import time
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.launch import reporter

class Patient(FedAvg):
    num_rounds = 0
    def update_server(self, params, server, message, participation, hyper):
        self.num_rounds += 1
        deadline = time.monotonic() + 60
        while self.num_rounds == 2 and hyper["lr"] < 0.01 and reporter.prune_reason() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return super().update_server(params, server, message, participation, hyper)
"""
PRUNED = ("algorithm=custom", "algorithm._target_=patient.Patient", "num_rounds=4", "hydra.launcher.slots=1")
PRUNER = "hydra.sweeper.pruner={name: median, n_startup_trials: 1}"


@pytest.mark.parametrize(
    "commands",
    [
        [("lr=0.1,0.001", "algorithm=fedavg,fedprox", BASIC)],
        [("lr=0.1,0.001", "seed=0,1", "hydra.sweeper.replicate=seed", BASIC)],
        [(*SEARCH, "early_stop=int(interval(1,3))", "algorithm=fedavg,scaffold", BASIC)],
        pytest.param([(*SEARCH, "seed=0,1", "hydra.sweeper.replicate=[seed]", BASIC)], marks=pytest.mark.slow),
        pytest.param(
            [('hydra.sweeper.points=["algorithm=fedprox lr=0.1","algorithm=fedavg lr=0.2"]', "seed=0,1", BASIC)],
            marks=pytest.mark.slow,
        ),
        pytest.param([("lr=0.1,0.001", PRUNER, *PRUNED)], marks=pytest.mark.slow),
        pytest.param([("lr=0.1,0.001", "hydra.launcher.fuse=2", "monitor=valid_loss")], marks=pytest.mark.slow),
        pytest.param(
            [
                ("lr=0.1,0.001", "hydra.sweep.subdir=runs/${lr}", BASIC),
                ("lr=0.2", "hydra.sweep.subdir=runs/${lr}", BASIC),
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param([("lr=0.1,0.2", BASIC), ("lr=0.1", "algorithm=fedavg,fedprox", BASIC)], marks=pytest.mark.slow),
        pytest.param([("engine.backend=loop,vmap", BASIC)], marks=pytest.mark.slow),
        [("early_stop=null,1", "save_best=true,false", "model.hidden=[10],[20,10]", "model=mlp", BASIC)],
    ],
    ids=["grid", "replicates", "search", "search of replicates", "points", "pruned", "fused", "subdir", "grown"]
    + ["apart", "types"],
)
@pytest.mark.few(2)
def test_trial_by_trial_whatever_the_sweep(command, empty_folder, commands):
    (empty_folder / "patient.py").write_text(PATIENT)
    for arguments in commands:
        done = command("-m", *SMALL, *arguments, "hydra.sweep.dir=sweep")
        assert done.status == 0, done.err
    folder = empty_folder / "sweep"
    name = "_".join(folder.parts[-2:])
    before = open_study(str(folder / "study.journal"), name)
    expected, kinds = content(before), distributions(before)
    if commands[0][1] == PRUNER:
        assert sorted(trial.state.name for trial in before.trials) == ["COMPLETE", "PRUNED"]
    assert main([str(folder), "--force"]) == 0
    after = open_study(str(folder / "study.journal"), name)
    assert content(after) == expected
    if len(commands) == 1:
        assert distributions(after) == kinds and [t.number for t in after.trials] == [t.number for t in before.trials]
    # The sweep goes on with it, and has nothing to do.
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    assert command("-m", *SMALL, *commands[-1], "hydra.sweep.dir=sweep").status == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")} == times


def distributions(study):
    return {trial.user_attrs["job"]: trial.distributions for trial in study.trials}


@pytest.mark.parametrize("sampler", ["random", "qmc"])
@pytest.mark.few(1)
def test_a_search_chooses_again_what_is_lost_with_its_study(command, empty_folder, sampler):
    """The points are those of the first time: no other one stands twice in its place."""
    search = (f"hydra.sweeper.sampler={sampler}", "hydra.sweeper.n_trials=5", "lr=tag(log,interval(0.001,0.5))", BASIC)
    assert command("-m", *SMALL, *search, "hydra.sweep.dir=sweep").status == 0
    folder = empty_folder / "sweep"
    name = "_".join(folder.parts[-2:])

    def points():
        return sorted(
            float(next(text for text in line["overrides"] if text.startswith("lr=")).partition("=")[2])
            for line in (trial.user_attrs for trial in open_study(str(folder / "study.journal"), name).trials)
        )

    before = points()
    assert len(set(before)) == 5
    (folder / "study.journal").unlink()
    shutil.rmtree(folder / "1")
    shutil.rmtree(folder / "3" / ".hydra")
    (folder / "3" / "result.json").unlink()
    done = command("-m", *SMALL, *search, "hydra.sweep.dir=sweep")
    assert done.status == 0, done.err
    assert points() == before


def test_a_run_that_does_not_say_which_point_it_is(command, empty_folder, capfd):
    assert command("-m", *SMALL, "lr=0.1,0.2", "hydra.output_subdir=null", "hydra.sweep.dir=sweep", BASIC).status == 0
    assert main([str(empty_folder / "sweep"), "--force"]) == 1
    assert "it ran with `hydra.output_subdir=null`" in capfd.readouterr().err
