"""FLGo's functions, with real runs in real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flgo_hydra as flgo
from flgo_hydra.federated.algorithm import fedavg, fedprox, scaffold
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_rounds

SMALL = {"num_rounds": 2, "num_steps": 1, "no_log_console": True}
TASK = {"name": "digits", "num_clients": 4}

PLAIN_SCRIPT = '''
"""A script as people write them: classes of its own, no guard, work at the top level."""
import json, math, os
import torch
from torch import nn
import flgo_hydra as flgo
from flgo_hydra.federated.algorithm import fedavg

print("START", os.getpid())
SCALE = 1.0                                     # a class may use what the script defines


class FedAvgM(flgo.Algorithm):
    def init_server(self, params):
        return {"momentum": {name: torch.zeros_like(w) for name, w in params.items()}}

    def update_server(self, params, server, message, participation, hyper):
        v = {n: SCALE * hyper["beta"] * m + message["update"][n] for n, m in server["momentum"].items()}
        return {name: w + v[name] for name, w in params.items()}, {"momentum": v}


class Broken(flgo.Algorithm):
    def correct(self, grads, params, client, hyper):
        raise RuntimeError("no direction")


def two_layers(input_shape, num_outputs, width):
    inputs = math.prod(input_shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, num_outputs))


class OneByOne:
    """In FLGo's style."""
    devices = []
    asked = 0

    def get_available_device(self, option):
        OneByOne.asked += 1
        return -1


option = {"num_rounds": 2, "num_steps": 1}
task = {"name": "digits", "num_clients": 4}
records = flgo.multi_init_and_run(
    [
        {"task": task, "algorithm": fedavg, "option": option},
        {"task": task, "algorithm": (FedAvgM, {"beta": 0.0}), "option": option},
        {"task": task, "algorithm": (FedAvgM, {"beta": 0.9}), "option": option, "model": (two_layers, {"width": 8})},
        (task, Broken, option),
        (task, "fedavg", {**option, "learning_rate": 1e38}),
        {"task": task, "algorithm": "fedavg", "option": {**option, "learning_rate": 0.1}},
    ],
    scheduler=OneByOne(),
)
print("RECORDS", json.dumps(records), OneByOne.asked)
'''


@pytest.fixture(scope="module")
def plain_script(tmp_path_factory, cache_folder):
    folder = tmp_path_factory.mktemp("plain")
    (folder / "experiment.py").write_text(PLAIN_SCRIPT)
    path = os.pathsep.join([str(Path(flgo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "experiment.py"], cwd=folder, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("START") == 1, "workers ran the script again"
    line = next(line for line in done.stdout.splitlines() if line.startswith("RECORDS"))
    records, end = json.JSONDecoder().raw_decode(line.removeprefix("RECORDS "))
    return records, int(line.removeprefix("RECORDS ")[end:])


@pytest.mark.slow
def test_a_plain_script_runs_classes_of_its_own(plain_script):
    records, asked = plain_script
    assert [r["status"] for r in records] == ["completed"] * 3 + ["failed", "diverged", "completed"]
    assert [r["option"]["algorithm"] for r in records[:4]] == ["fedavg", "FedAvgM", "FedAvgM", "Broken"]
    plain, still, moving = (r["val_loss"] for r in records[:3])
    assert plain == still and len(plain) == 3 and plain != moving
    assert records[0]["valid_loss"] == plain and len(records[0]["test_accuracy"]) == 3
    assert asked >= 5, "the user's own scheduler chose"


def test_a_runner_that_failed_says_so_in_its_place(plain_script):
    failed = plain_script[0][3]
    assert failed["error"] == "RuntimeError: no direction" and failed["option"]["num_rounds"] == 2
    assert failed["val_loss"] == plain_script[0][0]["val_loss"][:1], "the rounds that it reached are there"


def test_two_runners_of_one_config_share_its_record(plain_script):
    records, _ = plain_script
    assert records[5]["folder"] == records[0]["folder"] and records[5]["val_loss"] == records[0]["val_loss"]


def test_tune_finds_the_optimum_and_says_it_in_flgos_words(empty_folder, capsys):
    option = {**SMALL, "learning_rate": [0.01, 0.5], "num_steps": [1, -1], "early_stop": -1, "num_epochs": 1}
    before = dict(option)
    best = flgo.tune(TASK, fedavg, option, folder="tuned")
    assert option == before and len(best.sweep) == 4
    losses = {run.overrides: min(run.column("valid_loss")) for run in best.sweep}
    overrides = min(losses, key=losses.get)
    assert best.value == losses[overrides] and best.round == best.run.round
    assert f"lr={best['learning_rate']}" in overrides
    assert best["num_steps"] == (-1 if "num_steps=null" in overrides else 1) and best["early_stop"] == -1
    assert best.study.best_value == best.value
    out = capsys.readouterr().out
    assert "The optimal combination of hyper-parameters is:" in out and f"learning_rate |{best['learning_rate']}" in out
    assert f"occurs at the round {best.round}" in out
    # The optimal option is one that `init` takes, and it gives the same run.
    again = flgo.init(TASK, fedavg, {**best, "no_log_console": True}).run()
    assert again.value == best.value
    # The same grid goes on where it was, in whatever words: nothing is trained again.
    swept = flgo.sweep(
        "task=digits", "task.num_clients=4", "num_rounds=2", "num_epochs=1", "lr=0.01,0.5", "num_steps=1,null",
        "hydra.sweep.dir=tuned",
    )  # fmt: skip
    assert {run.folder: run.result.seconds for run in swept} == {r.folder: r.result.seconds for r in best.sweep}
    assert swept.best.value == best.value
    pandas = pytest.importorskip("pandas")
    frame = swept.frame()
    assert isinstance(frame, pandas.DataFrame) and sorted(frame["lr"]) == [0.01, 0.01, 0.5, 0.5]
    assert frame["best_valid_loss"].min() == best.value and swept.best.frame()["round"].tolist() == [0, 1, 2]


def test_run_and_init_give_what_the_command_line_gives(empty_folder, command):
    arguments = ["algorithm=scaffold", "task.num_clients=4", "num_rounds=2", "num_steps=1", "lr=0.05"]
    assert command(*arguments, "hydra.run.dir=by_command").status == 0

    def losses(rounds):
        return [{k: v for k, v in line.items() if k != "seconds"} for line in rounds]

    expected = losses(read_rounds(RunPaths(Path("by_command"))))
    by_run = flgo.run(*arguments, "hydra.run.dir=by_run")
    by_init = flgo.init(
        TASK, scaffold, {"num_rounds": 2, "num_steps": 1, "learning_rate": 0.05}, folder="by_init"
    ).run()
    assert losses(by_run.rounds) == losses(by_init.rounds) == expected
    assert by_run.best["round"] == by_run.result.best_round and by_run.status == "completed"
    assert by_run.output()["test_loss"] == [line["test_loss"] for line in expected]


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: flgo.init("digitz", fedavg), "`task` has no choice 'digitz'.*Did you mean `task=digits`"),
        (lambda: flgo.init("digits", "fedavgg"), "`algorithm` has no choice 'fedavgg'.*`algorithm=fedavg`"),
        (lambda: flgo.init("digits", fedprox, {"mu": 1}), "There is no `mu`"),
        (lambda: flgo.init("digits", (fedprox, {"nu": 1})), "There is no `algorithm.nu`"),
        (lambda: flgo.init("digits", fedavg, {"num_rounds": "many"}), "num_rounds"),
        (lambda: flgo.init("digits", fedavg, {"num_rounds": 0}), "`num_rounds >= 1` must hold, but got 0"),
        (lambda: flgo.init("digits", fedavg, {"learning_rate": [0.1]}), "must be one value"),
        (lambda: flgo.init("digits", fedavg, {"gpu": 7}), "`device=cuda:7`: torch sees"),
        (lambda: flgo.init("digits", fedavg, {"gpu": [0, 1]}), "A run takes one device"),
        (lambda: flgo.init("digits", fedavg, Logger=dict), "`Logger=dict` cannot be had.*`metrics`"),
        (lambda: flgo.init("digits", fedavg, scene="vertical"), "`scene` must be 'horizontal'"),
        (lambda: flgo.multi_init_and_run([]), r"must be a list with at least one runner, but got \[\]"),
        (lambda: flgo.multi_init_and_run({"task": "digits"}), "must be a list with at least one runner"),
        (lambda: flgo.multi_init_and_run([{"task": "digits"}]), r"runner_args\[0\]: a runner needs `algorithm`"),
        (lambda: flgo.multi_init_and_run([("digits", fedavg), ("digits", fedavg, {"lrr": 1})]), r"args\[1\]:.*`lrr`"),
        (lambda: flgo.multi_init_and_run([{"tsk": "digits"}]), "a runner has no 'tsk'; it has task"),
        (lambda: flgo.multi_init_and_run([("digits", "fedavg", {"lr": 0.1}), ("digits", "nope")]), "'nope'"),
        (lambda: flgo.multi_init_and_run([("digits", "fedavg", SMALL)], devices=[99]), "hydra.launcher.devices.*99"),
        (lambda: flgo.tune("digits", fedavg, {**SMALL, "lr": [0.1, "x"]}), "lr"),
        (lambda: flgo.tune("digits", fedavg, SMALL, scheduler=3), "`scheduler` must be an object"),
        (lambda: flgo.sweep("lr=0.1,-1"), "`lr > 0 and finite` must hold, but got -1"),
        (lambda: flgo.run("learning_rate=0.1"), "Did you mean `lr`"),
    ],
)  # fmt: skip
def test_bad_input_is_an_error_before_anything_trains(empty_folder, call, says):
    with pytest.raises(ValueError, match=f"(?s){says}"):
        call()
    assert not list(empty_folder.rglob("rounds.jsonl"))
