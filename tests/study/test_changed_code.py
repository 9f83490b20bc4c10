"""Two versions of the user's code in one sweep are told, and run again if asked: each command a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = {
    "my_algorithm.py": """
from flgo_hydra.federated.algorithm.base import Algorithm
import shared.factor


class Mine(Algorithm):
    def update_server(self, params, server, message, participation, hyper):
        scale = shared.factor.FACTOR
        return {name: w + scale * message["update"][name] for name, w in params.items()}, server
""",
    "my_model.py": """
from torch import nn


def build(input_shape, num_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_outputs))
""",
    "shared/__init__.py": "",
    "shared/factor.py": "FACTOR = 1.0\n",
    "unread.py": "",
}
SMALL = ("algorithm=custom", "algorithm._target_=my_algorithm.Mine", "algorithm.name=mine", "task.num_clients=2")
SMALL = (*SMALL, "model=custom", "model._target_=my_model.build", "num_rounds=1", "num_steps=1")
SWEEP = ("-m", "hydra/launcher=basic", "hydra.sweep.dir=sweep", *SMALL)


@pytest.fixture
def run(empty_folder, cache_folder):
    for name, text in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)

    def command(*arguments, module="flgo_hydra"):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return command


def result(job, root="sweep"):
    return json.loads(Path(root, str(job), "result.json").read_text())


@pytest.mark.slow
def test_runs_of_other_code_are_named_and_run_again_if_asked(run):
    out = run(*SWEEP, "lr=0.1,0.2")
    code = result(0)["code"]
    assert sorted(code["files"]) == ["my_algorithm.py", "my_model.py", "shared/__init__.py", "shared/factor.py"]
    assert len(code["sha256"]) == 64 and result(1)["code"] == code and "other code" not in out
    Path("unread.py").write_text("# edited")
    Path("shared/factor.py").write_text("FACTOR = 0.5\n")
    before = [result(job)["best_valid_loss"] for job in (0, 1)]
    out = run(*SWEEP, "lr=0.1,0.2,0.3")
    said = [line for line in out.splitlines() if line.startswith("other code:")]
    assert "jobs 0, 1 ran before shared/factor.py changed" in said[0] and "hydra.sweeper.rerun_changed=true" in said[0]
    assert [result(job)["best_valid_loss"] for job in (0, 1)] == before
    assert result(2)["code"]["sha256"] != code["sha256"]
    out = run("sweep", "hydra.sweeper.rerun_changed=true", module="flgo_hydra.resume")
    assert "other code" not in out
    assert all(result(job)["code"] == result(2)["code"] for job in (0, 1))
    assert [result(job)["best_valid_loss"] for job in (0, 1)] != before
    Path("my_model.py").write_text(FILES["my_model.py"] + "# another text\n")
    assert "jobs 0, 1, 2 ran before my_model.py changed" in run(*SWEEP, "lr=0.3")


READS = """
import importlib, json, os
from torch import nn

with open("bias.txt") as file:
    BIAS = bool(int(file.read()))


class Net(nn.Sequential):
    def __init__(self, input_shape, num_outputs):
        with open("width.json") as file:
            width = json.load(file) * int(os.environ.get("TIMES", "1"))
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, num_outputs, BIAS))
        importlib.import_module("hid" + "den")


def scale(model, record):
    with open("scale.txt") as file, open("log.txt", "a") as log:
        log.write("called")
        scale = float(file.read())
    if len(record) > 1:
        with open("late.txt") as file:
            file.read()
    return {"scale": scale}
"""


@pytest.mark.slow
def test_what_models_and_metrics_read_is_part_of_the_code(run, monkeypatch):
    Path("reads.py").write_text(READS)
    Path("width.json").write_text("3")
    for name in ("scale.txt", "late.txt", "bias.txt", "hidden.py"):
        Path(name).write_text("1")
    sweep = [*SWEEP[:3], *SMALL[3:4], "model=custom", "model._target_=reads.Net", *SMALL[-2:], "metrics=reads.scale"]
    run(*sweep, "lr=0.1")
    assert sorted(result(0)["code"]["reads"]) == [
        "$TIMES",
        "bias.txt",
        "hidden.py",
        "late.txt",
        "scale.txt",
        "width.json",
    ]
    run(*sweep[3:], "hydra.run.dir=alone/0")  # in a process that has imported nothing before
    assert result(0, "alone")["code"] == result(0)["code"]
    assert "other code" not in run(*sweep, "lr=0.1,0.2")
    for name in ("late.txt", "scale.txt", "hidden.py", "bias.txt", "width.json"):
        Path(name).write_text("2")
    monkeypatch.setenv("TIMES", "2")
    names = "$TIMES, bias.txt, hidden.py, late.txt, scale.txt, width.json"
    assert f"jobs 0, 1 ran before {names} changed" in run(*sweep, "lr=0.1,0.2")
    out = run("sweep", "hydra.sweeper.rerun_changed=true", module="flgo_hydra.resume")
    assert "other code" not in out and result(0)["best"]["scale"] == 2.0


@pytest.mark.slow
def test_in_searches_and_replicates_too(run):
    search = ("hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=2", "lr=interval(0.1,0.2)")
    several = ("seed=0,1", "hydra.sweeper.replicate=seed")
    run(*SWEEP, *search, *several)
    code, points = result(0)["code"], [result(job)["option"]["lr"] for job in range(4)]
    Path("my_algorithm.py").write_text(FILES["my_algorithm.py"].replace("scale *", "0.5 * scale *"))
    assert "jobs 0, 1, 2, 3 ran before my_algorithm.py" in run(*SWEEP, *search, *several)
    out = run(*SWEEP, *search, *several, "hydra.sweeper.rerun_changed=true")
    assert "other code" not in out and all(result(job)["code"] != code for job in range(4))
    assert [result(job)["option"]["lr"] for job in range(4)] == points and not Path("sweep/4").exists()


@pytest.mark.slow
def test_a_run_that_went_on_with_other_code_says_so(run):
    metrics = "def broken(model, data, task, record):\n    if len(record) > 2: raise OSError\n    return {}\n"
    Path("my_metrics.py").write_text(metrics)
    single = (*SMALL, "hydra.run.dir=run", "num_rounds=3", "checkpoint_interval=1", "metrics=my_metrics.broken")
    with pytest.raises(AssertionError, match="OSError"):
        run(*single)
    Path("my_metrics.py").write_text("def broken(model, data, task, record):\n    return {}\n")
    assert "my_metrics.py changed: rounds up to 1 were trained with other code" in run(*single)
    code = json.loads(Path("run/result.json").read_text())["code"]
    (before,) = code["before"]
    assert before["last_round"] == 1 and before["files"]["my_metrics.py"] != code["files"]["my_metrics.py"]
