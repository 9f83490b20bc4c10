"""Sweeps in which a pruner ends runs: the whole way from the command line to the study and back."""

import csv
import json
import os
from pathlib import Path

import optuna
import pytest

SMALL = ("num_rounds=30", "model=logistic", "num_steps=1", "task.num_clients=5", "hydra.sweep.dir=sweep")
MEDIAN = "hydra.sweeper.pruner={name: median, n_startup_trials: 1, n_warmup_steps: 4}"
# The pruner speaks when it hears of round 4; a run with a small lr waits for that in round 5.
PATIENT = """
import time
from pathlib import Path
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.launch import reporter

class Patient(FedAvg):
    num_rounds = 0
    def update_server(self, params, server, message, participation, hyper):
        self.num_rounds += 1
        if self.num_rounds == 5 and hyper["lr"] < 0.01 and Path(WAIT).exists():
            deadline = time.monotonic() + 60
            while reporter.prune_reason() is None:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        return super().update_server(params, server, message, participation, hyper)
"""


def trials():
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(os.path.abspath("sweep/study.journal")))
    return optuna.load_study(study_name=None, storage=storage).trials


def rows():
    with open("sweep/results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_bad_learning_rate_is_pruned_among_its_seed(command, empty_folder):
    (empty_folder / "patient.py").write_text(f"WAIT = {str(empty_folder / 'wait')!r}\n" + PATIENT)
    (empty_folder / "wait").touch()
    grid = ("algorithm=custom", "algorithm._target_=patient.Patient", "lr=0.1,0.0001", "seed=0,1")
    one_by_one = ("hydra.launcher.slots=1", "hydra.launcher.threads=1")
    done = command("-m", *SMALL, *grid, MEDIAN, *one_by_one)
    assert done.status == 0, done.out + done.err
    table = rows()
    assert [(row["lr"], row["seed"], row["status"]) for row in table] == [
        ("0.1", "0", "completed"),
        ("0.1", "1", "completed"),
        ("0.0001", "0", "pruned"),
        ("0.0001", "1", "pruned"),
    ]
    last = [int(row["last_round"]) for row in table]
    assert last[:2] == [30, 30] and set(last[2:]) <= {4, 5}
    stored = trials()
    assert [trial.state.name for trial in stored] == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    for trial, row in zip(stored, table, strict=True):
        assert len(trial.intermediate_values) == int(row["last_round"]) + 1
        assert min(trial.intermediate_values.values()) == float(row["best_valid_loss"])
    result = json.loads(Path("sweep/2/result.json").read_text())
    assert result["status"] == "pruned" and result["message"].startswith("pruned by median(n_startup_trials=1")
    assert not Path("sweep/2/checkpoint.pt").exists()
    assert f"pruned: 2 of 4, saving {60 - sum(last[2:])} of their 60 rounds" in done.out
    assert f"job 2  lr=0.0001 seed=0  after round {last[2]}, best" in done.out
    assert "optimal combination: lr=0.1" in done.out

    # A pruned point is finished …
    (empty_folder / "wait").unlink()
    assert command("-m", *SMALL, *grid, MEDIAN).status == 0
    assert len(trials()) == 4 and rows() == table
    # … as long as the same pruner would say the same.
    assert command("-m", *SMALL, *grid, "hydra/launcher=basic").status == 0
    assert [(row["status"], row["last_round"]) for row in rows()] == [("completed", "30")] * 4
    assert [(t.state.name, t.user_attrs["attempt"]) for t in trials()[4:]] == [("COMPLETE", 2)] * 2


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("hydra.sweeper.pruner=median", "hydra/launcher=basic"), "hydra/launcher=flgo_hydra"),
        (("hydra.sweeper.pruner=mean",), "median, percentile, asha"),
        (("hydra.sweeper.pruner=patience",), "early_stop"),
        (("hydra.sweeper.pruner={name: median, n_warmup: 1}",), "n_warmup"),
    ],
)
def test_what_cannot_prune_is_an_error_before_anything_starts(command, arguments, says):
    done = command("-m", *SMALL, "lr=0.1,0.01", *arguments)
    assert done.status == 1 and says in done.err
    assert not Path("sweep").exists()
