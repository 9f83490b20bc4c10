"""What `optuna`'s own command line says of a sweep: the commands that the README and the summary name."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = (
    "from flgo_hydra.federated.algorithm.base import Algorithm\n"
    "class Fragile(Algorithm):\n"
    "    def update_server(self, params, server, message, participation, hyper):\n"
    "        if hyper['lr'] == 0.2:\n"
    "            raise RuntimeError('not 0.2')\n"
    "        return super().update_server(params, server, message, participation, hyper)\n"
)


@pytest.fixture
def sweep(command, empty_folder):
    """A completed, a failed, an early-stopped and a diverged run."""
    (empty_folder / "fragile.py").write_text(SOURCE)
    fixed = ("num_rounds=6", "early_stop=2", "model=logistic", "num_steps=1", "task.num_clients=5")
    own = ("algorithm=custom", "algorithm._target_=fragile.Fragile")
    command("-m", *own, *fixed, "lr=0.1,0.2,20,1e38", "hydra.sweep.dir=sweep", "hydra/launcher=basic")
    return empty_folder / "sweep"


def optuna(*arguments):
    done = subprocess.run([Path(sys.executable).parent / "optuna", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_values_rounds_and_statuses(sweep):
    study = ("--storage", str(sweep / "study.journal"), "--study-name", "_".join(sweep.parts[-2:]), "-f", "json")
    losses = {
        job: [json.loads(line)["valid_loss"] for line in (sweep / str(job) / "rounds.jsonl").read_text().splitlines()]
        for job in range(4)
    }
    best = optuna("best-trial", *study, "--flatten")
    assert (best["number"], best["value"], best["params_lr"]) == (0, min(losses[0]), 0.1)
    assert best["user_attrs_best_round"] == losses[0].index(min(losses[0]))
    trials = optuna("trials", *study, "--flatten")
    assert [(trial["state"], trial["user_attrs_status"]) for trial in trials] == [
        ("COMPLETE", "completed"),
        ("FAIL", "failed"),
        ("COMPLETE", "early_stopped"),
        ("FAIL", "diverged"),
    ]
    assert [trial["value"] for trial in trials] == [min(losses[0]), None, min(losses[2]), None]
    assert trials[2]["user_attrs_best_round"] == losses[2].index(min(losses[2]))
    assert trials[2]["user_attrs_last_round"] == len(losses[2]) - 1 == trials[2]["user_attrs_best_round"] + 2
    assert trials[1]["user_attrs_reason"] == "RuntimeError: not 0.2"
    assert "not finite at round" in trials[3]["user_attrs_reason"]
