"""The soak's comparison finds what a misfortune could have changed, and nothing else."""

import importlib
import shutil
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

CHAOS = Path(__file__).resolve().parents[3] / "scripts" / "chaos"
COLUMNS = "job,status,lr,best_valid_loss,best_round,last_round,seconds,peak_memory_mib,message,folder"


@pytest.fixture(scope="module")
def chaos():
    """The modules of the soak, which is a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHAOS))
        yield importlib.import_module("comparison"), importlib.import_module("sweeps")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of two points, two rounds each, as it stands on disk."""
    folder = tmp_path_factory.mktemp("finished")
    losses = {"0.1": (2.5, 1.25), "0.2": (2.5, 1.75)}
    rows = [f"{job},completed,{lr},{loss[1]},1,1,0.5,100,,{job}" for job, (lr, loss) in enumerate(losses.items())]
    (folder / "results.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    (folder / "best.yaml").write_text("overrides: [lr=0.1]\nbest_valid_loss: 1.25\njob: 0\nfolder: '0'\n")
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.create_study(study_name="finished", storage=storage)
    for job, (lr, loss) in enumerate(losses.items()):
        (folder / str(job) / ".hydra").mkdir(parents=True)
        lines = [f'{{"round": {i}, "valid_loss": {value}, "seconds": 0.1}}\n' for i, value in enumerate(loss)]
        (folder / str(job) / "rounds.jsonl").write_text("".join(lines))
        (folder / str(job) / "best_model.safetensors").write_bytes(lr.encode())
        study.add_trial(_trial(lr, loss))
    return folder


def _trial(lr, loss, value=None):
    return optuna.trial.create_trial(
        params={"lr": float(lr)},
        distributions={"lr": optuna.distributions.FloatDistribution(0.01, 1.0)},
        value=loss[1] if value is None else value,
        intermediate_values=dict(enumerate(loss)),
        user_attrs={"overrides": [f"lr={lr}"], "best_round": 1, "last_round": 1, "status": "completed"},
    )


def replaced(name, old, new):
    def change(folder):
        content = (folder / name).read_bytes()
        assert content.count(old) >= 1
        (folder / name).write_bytes(content.replace(old, new, 1))

    return change


def one_trial_more(folder):
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    optuna.load_study(study_name="finished", storage=storage).add_trial(_trial("0.1", (2.5, 1.25)))


def a_running_trial(folder):
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    optuna.load_study(study_name="finished", storage=storage).ask()


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda folder: None, None),
        (replaced("0/rounds.jsonl", b'"seconds": 0.1', b'"seconds": 0.7'), None),
        (replaced("results.csv", b",0.5,100,", b",9.5,900,"), None),
        (replaced("0/rounds.jsonl", b"1.25", b"1.26"), "lr=0.1: 1 lines differ, first line 2"),
        (replaced("0/rounds.jsonl", b'{"round": 0', b'{"round": 7'), "lr=0.1: 1 lines differ, first line 1"),
        (lambda folder: (folder / "1/rounds.jsonl").write_text('{"round": 0, "valid_loss": 2.5}\n'), "1 lines, undist"),
        (replaced("results.csv", b"1.75,1,", b"1.75,0,"), "results.csv, lr=0.2: best_round is '0'"),
        (replaced("results.csv", b"1,completed", b"1,failed"), "results.csv, lr=0.2: status is 'failed'"),
        (replaced("results.csv", b",0.2,", b",0.3,"), "no lr=0.2"),
        (replaced("best.yaml", b"1.25", b"1.24"), "best.yaml: best_valid_loss is 1.24"),
        (replaced("0/best_model.safetensors", b"1", b"2"), "best_model of lr=0.1"),
        (replaced("study.journal", b"1.75", b"1.74"), "trial of lr=0.2"),
        (one_trial_more, "2 trials with an outcome of lr=0.1, undisturbed 1"),
        (a_running_trial, "1 trials are RUNNING"),
        (lambda folder: (folder / "0/checkpoint.pt").touch(), "left over: 0/checkpoint.pt"),
        (lambda folder: (folder / "0/.result.json.0a1b2c3d").touch(), "left over: 0/.result.json.0a1b2c3d"),
    ],
)
def test_what_differs_is_found(chaos, finished, tmp_path, change, told):
    comparison, sweeps = chaos
    sweep = sweeps.Sweep((), "grid")
    shutil.copytree(finished, tmp_path / "sweep")
    change(tmp_path / "sweep")
    found = comparison.differences(comparison.read(tmp_path / "sweep", sweep), comparison.read(finished, sweep), sweep)
    if told is None:
        assert found == []
    else:
        assert any(told in line for line in found), found


def test_of_a_pruned_run_the_rounds_that_it_has_are_compared(chaos, finished, tmp_path):
    comparison, sweeps = chaos
    sweep = sweeps.Sweep((), "pruned")
    alone = comparison.read(finished, sweep)
    shutil.copytree(finished, tmp_path / "sweep")
    found = comparison.read(tmp_path / "sweep", sweep)
    point = (("lr", "0.2"),)
    found.rows[point]["status"] = "pruned"
    found.rounds[point] = found.rounds[point][:1]
    found.trials[1]["state"] = "PRUNED"
    assert comparison.differences(found, alone, sweep) == []
    found.rounds[point][0] = {"round": 0, "valid_loss": 2.6}
    assert comparison.differences(found, alone, sweep)
