"""Grids from the command line: what runs, what is written, what is printed."""

import csv
import fcntl
import json
import os
import shutil
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_result, read_rounds

SMALL = ("num_rounds=2", "model=logistic", "num_steps=1", "task.num_clients=5", "hydra.sweep.dir=sweep")
# In this process, which has torch: for commands that only prepare the one in question, or have nothing to run.
HERE = "hydra/launcher=basic"


def load(path="sweep/study.journal"):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(os.path.abspath(path)))
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def rows(folder="sweep"):
    with open(f"{folder}/results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_grid_writes_its_files_and_says_who_won(command):
    done = command("-m", *SMALL, "lr=0.1,0.01", "seed=0,1")
    assert done.status == 0, done.err
    results = [read_result(RunPaths(Path("sweep") / str(job))) for job in range(4)]
    best = min(range(4), key=lambda job: results[job].best_valid_loss)
    # the table
    table = rows()
    assert [(row["job"], row["lr"], row["seed"]) for row in table] == [
        ("0", "0.1", "0"),
        ("1", "0.1", "1"),
        ("2", "0.01", "0"),
        ("3", "0.01", "1"),
    ]
    assert [float(row["best_valid_loss"]) for row in table] == [result.best_valid_loss for result in results]
    # the winner
    winner = yaml.safe_load(Path("sweep/best.yaml").read_text())
    assert winner["job"] == best and winner["best_valid_loss"] == results[best].best_valid_loss
    assert winner["best_round"] == results[best].best_round
    assert winner["overrides"] == [f"lr={table[best]['lr']}", f"seed={table[best]['seed']}"]
    # the study
    study = load()
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    assert study.best_trial.user_attrs["job"] == best
    assert study.best_value == results[best].best_valid_loss
    rounds = read_rounds(RunPaths(Path("sweep") / str(best)))
    assert study.best_trial.intermediate_values == {int(line["round"]): line["valid_loss"] for line in rounds}
    # what a person reads
    assert f"optimal combination: lr={table[best]['lr']} seed={table[best]['seed']}" in done.out
    assert f"at round {results[best].best_round} (job {best})" in done.out
    assert "resume:  python -m flgo_hydra.resume sweep\n" in done.out
    assert f"--study-name {study.study_name}" in done.out
    assert Path("sweep/curves.png").read_bytes().startswith(b"\x89PNG")
    assert Path("sweep/multirun.yaml").exists()


def test_one_failing_point_does_not_stop_the_others(command, empty_folder):
    (empty_folder / "mine.py").write_text(
        "from flgo_hydra.federated.algorithm.base import Algorithm\n"
        "class Picky(Algorithm):\n"
        "    def update_server(self, params, server, message, participation, hyper):\n"
        "        if hyper['lr'] == 0.2:\n"
        "            raise RuntimeError('not 0.2')\n"
        "        return super().update_server(params, server, message, participation, hyper)\n"
    )
    own = ("algorithm=custom", "algorithm._target_=mine.Picky")
    done = command("-m", *SMALL, *own, "lr=0.1,0.2,0.3,1e38")
    assert done.status == 1
    assert [row["status"] for row in rows()] == ["completed", "failed", "completed", "diverged"]
    failure = json.loads(Path("sweep/1/failure.json").read_text())
    assert (failure["kind"], failure["message"]) == ("RuntimeError", "not 0.2")
    assert "failed: 1 of 4" in done.out and "job 1  lr=0.2  RuntimeError: not 0.2" in done.out
    log = next(line.split()[-1] for line in done.out.splitlines() if "job 1  lr=0.2" in line)
    assert "not 0.2" in Path(log).read_text()
    assert "diverged: 1 of 4" in done.out and "not finite at round" in done.out
    states = [trial.state.name for trial in load().trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]


def test_the_same_command_goes_on_and_runs_nothing_twice(command, empty_folder):
    command("-m", *SMALL, "lr=0.1,0.01", HERE)
    before = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/rounds.jsonl")}
    done = command("-m", *SMALL, "lr=0.1,0.01,0.05")
    assert done.status == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [(row["job"], row["lr"]) for row in rows()] == [("0", "0.1"), ("1", "0.01"), ("2", "0.05")]
    assert len(load().trials) == 3


def test_a_killed_sweep_keeps_what_was_finished(command, empty_folder):
    """Its trial is RUNNING and its run folder has a result: the trial is closed with it."""
    from flgo_hydra.study.stored.study import SweepStudy

    command("-m", *SMALL, "lr=0.1,0.01", HERE)
    trials = load().trials
    study = SweepStudy(Path("sweep/study.journal"), "any")
    for job, lr in [(0, 0.1), (7, 0.01)]:
        attributes = {"identity": trials[0].user_attrs["identity"] if job == 0 else "gone", "job": job, "attempt": 2}
        study.start({"lr": lr}, {"lr": [0.1, 0.01]}, attributes)
    done = command("-m", *SMALL, "lr=0.1,0.01")
    assert done.status == 0
    states = [trial.state.name for trial in load().trials]
    assert states == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]
    assert load().trials[2].value == trials[0].value


def test_a_result_that_comes_to_light_is_told_though_its_job_had_failed(command, empty_folder):
    """Its folder was away when the sweep ended."""
    arguments = ("-m", *SMALL, "lr=0.1,0.01", "hydra/launcher=basic")
    source = "from flgo_hydra.federated.algorithm.fedavg import FedAvg\nclass Own(FedAvg):\n    "
    (empty_folder / "own.py").write_text(source + "def init_server(self, params): raise OSError('away')\n")
    own = ("algorithm=custom", "algorithm._target_=own.Own")
    assert command(*arguments, *own).status == 1
    states = [trial.state.name for trial in load().trials]
    assert states == ["FAIL", "FAIL"]
    (empty_folder / "own.py").write_text(source + "pass\n")
    sys.modules.pop("own")
    found = command(*arguments, *own, "hydra.sweep.dir=elsewhere")
    assert found.status == 0, found.err
    for number in ("0", "1"):
        shutil.rmtree(Path("sweep") / number)
        shutil.copytree(Path("elsewhere") / number, Path("sweep") / number)
    assert command(*arguments, *own, HERE).status == 0
    assert [trial.state.name for trial in load().trials] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert command(*arguments, *own, HERE).status == 0 and len(load().trials) == 4


@pytest.mark.slow
def test_failed_points_run_again_when_asked_to(command, empty_folder):
    source = "from flgo_hydra.federated.algorithm.fedavg import FedAvg as Base\nclass Own(Base):\n    "
    (empty_folder / "later.py").write_text(source + "def init_server(self, params): raise OSError('no disk')\n")
    arguments = ("-m", *SMALL, "algorithm=custom", "algorithm._target_=later.Own", "lr=0.1,0.01,1e38")
    assert command(*arguments).status == 1
    (empty_folder / "later.py").write_text(source + "pass\n")
    del sys.modules["later"]
    before = {path: path.stat().st_mtime_ns for path in Path("sweep").glob("*/failure.json")}
    assert len(before) == 3
    done = command(*arguments, HERE)
    assert done.status == 1
    assert "failed: 3 of 3" in done.out and "job 1  lr=0.01  OSError: no disk" in done.out
    assert "python -m flgo_hydra.resume sweep hydra.sweeper.retry_failed=true" in done.out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(load().trials) == 3
    done = command(*arguments, "hydra.sweeper.retry_failed=true")
    assert [(row["job"], row["status"]) for row in rows()] == [
        ("0", "completed"),
        ("1", "completed"),
        ("2", "diverged"),
    ], done.out + done.err
    assert not list(Path("sweep").glob("*/failure.json"))
    tried = [("FAIL", 1)] * 3 + [("COMPLETE", 2)] * 2 + [("FAIL", 2)]
    assert sorted(((t.state.name, t.user_attrs["attempt"]) for t in load().trials), key=tried.index) == tried
    # A diverged point has a result: it is not tried again.
    assert command(*arguments, "hydra.sweeper.retry_failed=true", HERE).status == 0
    assert len(load().trials) == 6


def test_a_study_never_mixes_two_objectives(command):
    assert command("-m", *SMALL, "lr=0.1,0.01", HERE).status == 0
    before = {path: path.read_bytes() for path in Path("sweep").glob("*.*") if path.is_file()}
    done = command("-m", *SMALL, "lr=0.1,0.01", "num_rounds=3", "algorithm=fedprox", HERE)
    assert done.status == 1
    assert "`algorithm.name` was fedavg and is fedprox now" in done.err
    assert "`num_rounds` was 2 and is 3 now" in done.err and "hydra.sweeper.study_name" in done.err
    assert {path: path.read_bytes() for path in before} == before
    assert not Path("sweep/2").exists()
    # How it is run decides nothing; a new axis is asked for by name.
    assert command("-m", *SMALL, "lr=0.1,0.01", "device=cpu", "num_threads=1", HERE).status == 0
    assert len(load().trials) == 2
    done = command("-m", *SMALL, "lr=0.1,0.01", "num_rounds=2,3", "seed=0")
    assert done.status == 0, done.err
    assert [(row["lr"], row["num_rounds"]) for row in rows()] == [
        ("0.1", "2"),
        ("0.01", "2"),
        ("0.1", "3"),
        ("0.01", "3"),
    ]
    assert [trial.params for trial in load().trials[2:]] == [{"lr": lr, "num_rounds": 3} for lr in (0.1, 0.01)]


def test_one_more_value_of_an_axis_is_a_point_of_the_same_study(command):
    assert command("-m", *SMALL, "lr=0.1,0.01", "algorithm=fedavg,fedprox", HERE).status == 0
    done = command("-m", *SMALL, "lr=0.05", "algorithm=fedavg,scaffold")
    assert done.status == 0, done.err
    table = [(row["job"], row["algorithm"], row["lr"]) for row in rows()]
    assert table[4:] == [("4", "fedavg", "0.05"), ("5", "scaffold", "0.05")]
    assert [trial.params["lr"] for trial in load().trials] == [0.1, 0.1, 0.01, 0.01, 0.05, 0.05]
    assert load().user_attrs["grid"] == {
        "lr": ["0.1", "0.01", "0.05"],
        "algorithm": ["fedavg", "fedprox", "scaffold"],
    }


def test_nothing_starts_when_a_point_is_wrong(command):
    done = command("-m", *SMALL, "lr=0.1,-1")
    assert done.status == 1
    assert "lr > 0" in done.err and "lr=-1" in done.err
    assert not Path("sweep").exists()


def test_the_second_process_in_a_folder_is_told_whose_it_is(command):
    Path("sweep").mkdir()
    with open("sweep/.owner.lock", "w") as file:
        file.write("4242\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        done = command("-m", *SMALL, "lr=0.1,0.01")
    assert done.status == 1 and "process 4242" in done.err and "hydra.sweep.dir" in done.err


def test_params_of_the_config_make_a_grid_and_the_command_line_wins(command):
    done = command("-m", *SMALL, "experiment=tune", "num_steps=1,2", "+hydra.sweeper.params.seed=[0,1]", HERE)
    assert done.status == 0, done.err
    assert {(row["lr"], row["num_steps"], row["seed"]) for row in rows()} == {
        (lr, steps, seed) for lr in ("0.1", "0.01", "0.05") for steps in ("1", "2") for seed in ("0", "1")
    }


@pytest.mark.parametrize(
    "preset, keys, num_points",
    [
        ("learning_rates", {"lr"}, 5),
        ("algorithms", {"algorithm"}, 2),
        ("tune", {"lr", "num_steps"}, 6),
        ("early_stop", {"lr"}, 2),
    ],
)
@pytest.mark.parametrize("task, launcher", [("digits", "flgo_hydra"), ("synthetic", "basic")])
@pytest.mark.few(3)
def test_presets_work_on_any_task(command, preset, keys, num_points, task, launcher):
    small = ("model=logistic", "num_rounds=2", "hydra.sweep.dir=sweep", f"task={task}", f"hydra/launcher={launcher}")
    done = command("-m", f"experiment={preset}", *small)
    assert done.status == 0, done.err
    table = rows()
    assert len(table) == num_points
    assert keys <= set(table[0])
    assert "optimal combination:" in done.out


def test_batches_are_for_launchers_that_have_them(command):
    done = command("-m", *SMALL, "lr=0.1,0.01", "hydra.sweeper.batch_size=2")
    assert done.status == 1 and "hydra.launcher.slots" in done.err
    assert command("-m", *SMALL, "lr=0.1,0.01", "hydra.sweeper.batch_size=2", "hydra/launcher=basic").status == 0
    assert len(rows()) == 2


def test_a_preset_that_is_a_grid_says_so_without_m(command):
    done = command("experiment=tune")
    assert done.status == 1 and "-m" in done.err and "lr=0.1,0.01,0.05" in done.err


def test_one_point_and_group_globs(command):
    done = command("-m", *SMALL, "algorithm=glob(fedav*)", "seed=range(1)", HERE)
    assert done.status == 0, done.err
    assert [row["algorithm"] for row in rows()] == ["fedavg", "fedavgm"]


def test_any_optuna_storage_holds_several_sweeps(command, empty_folder):
    url = f"sqlite:///{empty_folder}/all.db"
    for name, seed, launcher in [("one", 0, "basic"), ("two", 1, "flgo_hydra")]:
        arguments = [*SMALL, f"hydra.sweeper.storage={url}", f"hydra.sweeper.study_name={name}"]
        arguments[arguments.index("hydra.sweep.dir=sweep")] = f"hydra.sweep.dir={name}"
        assert command("-m", *arguments, f"seed={seed}", "lr=0.1,0.01", f"hydra/launcher={launcher}").status == 0
    assert sorted(optuna.get_all_study_names(url)) == ["one", "two"]
    assert len(optuna.load_study(study_name="two", storage=url).trials) == 2
    # A study has one folder: whoever holds it is the only writer.
    done = command("-m", *arguments, "hydra.sweep.dir=other", "seed=1", "lr=0.1,0.01", HERE)
    assert done.status == 1 and f"`hydra.sweep.dir={empty_folder}/two`" in done.err


@pytest.mark.slow
def test_the_joblib_launcher_runs_it_too(command, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(root))
    done = command("-m", *SMALL, "lr=0.1,0.01", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.status == 0, done.err
    parallel = [row["best_valid_loss"] for row in rows()]
    arguments = [argument.replace("dir=sweep", "dir=basic") for argument in SMALL]
    assert command("-m", *arguments, "lr=0.1,0.01", "seed=0,1", HERE).status == 0
    assert parallel == [row["best_valid_loss"] for row in rows("basic")]
    assert len(load().trials) == 4


def test_a_preset_draws_the_metric_it_is_about(command, monkeypatch):
    from flgo_hydra.report import summary

    drawn = []
    monkeypatch.setattr(summary, "draw_curves", lambda path, curves, metric, *_: drawn.append((len(curves), metric)))
    command("-m", *SMALL, "experiment=algorithms", HERE)
    assert drawn == [(2, "test_loss")]
