"""One job in its folder: files, numbers, early stop, divergence, and going on after a death."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flgo_hydra import app, compose
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_failure, read_result, read_rounds

SMALL = ("num_rounds=3", "model=logistic", "num_steps=2", "task.num_clients=5")


def losses(folder: Path) -> list[tuple]:
    """What a run computed: everything in rounds.jsonl but the time."""
    rounds = read_rounds(RunPaths(folder))
    return [tuple((name, value) for name, value in line.items() if name != "seconds") for line in rounds]


def test_a_run_writes_the_files_of_the_design(make_conf, tmp_path):
    result = app.run(make_conf(*SMALL), tmp_path / "run")
    rounds = read_rounds(RunPaths(tmp_path / "run"))
    assert [line["round"] for line in rounds] == [0, 1, 2, 3]
    assert set(rounds[0]) == {"round", "valid_loss", "valid_accuracy", "test_loss", "test_accuracy", "seconds"}
    assert [line["seconds"] for line in rounds] == sorted(line["seconds"] for line in rounds)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["status"] == "completed" and written["last_round"] == 3 and written["seed"] == 0
    assert written["best_valid_loss"] == min(line["valid_loss"] for line in rounds) == result.value
    assert rounds[written["best_round"]]["valid_loss"] == written["best_valid_loss"]
    assert written["best"]["test_accuracy"] == rounds[written["best_round"]]["test_accuracy"]
    assert written["peak_memory_mib"] > 0 and written["device"] == "cpu"
    assert (written["task"]["name"], written["model"]["name"], written["algorithm"]["name"]) == (
        "digits",
        "logistic",
        "fedavg",
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["result.json", "rounds.jsonl"]


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(make_conf, tmp_path):
    for name, overrides in {"a": SMALL, "b": SMALL, "c": (*SMALL, "seed=1"), "d": (*SMALL, "task.seed=1")}.items():
        app.run(make_conf(*overrides), tmp_path / name)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a")[0] != losses(tmp_path / "c")[0]  # other initial weights
    assert losses(tmp_path / "a")[0] != losses(tmp_path / "d")[0]  # other data


@pytest.fixture(scope="module")
def without_options():
    """The last round of the run that each option changes: the first test runs it."""
    return []


@pytest.mark.parametrize(
    "overrides",
    [
        ["num_epochs=2"],
        ["num_steps=3"],
        ["batch_size=7"],
        ["batch_size=0.5"],
        ["batch_size=-1"],
        ["lr=0.05"],
        ["lr_schedule=step", "lr_decay=0.5"],
        ["optimizer=adam", "lr=0.01"],
        ["momentum=0.9"],
        ["weight_decay=0.1"],
        ["clip_grad=0.1"],
        ["proportion=0.4"],
        ["sample=md"],
        ["sample=full"],
        ["aggregate=uniform"],
        ["aggregate=weighted_com"],
        ["aggregate=weighted_scale"],
        ["dtype=float64"],
        ["seed=3"],
        ["task.train_holdout=0.3"],
        ["task.standardize=true"],
        ["task/partition=quantity"],
        ["model=mlp"],
        ["algorithm=fedprox", "algorithm.mu=5"],
        ["algorithm=scaffold"],
    ],
)
def test_every_option_has_an_effect(make_conf, tmp_path, without_options, overrides):
    base = ("num_rounds=2", "model=logistic", "task.num_clients=5", "task/partition=dirichlet", "num_epochs=1")
    base += ("proportion=0.6",)
    if not without_options:
        app.run(make_conf(*base), tmp_path / "base")
        without_options.append(losses(tmp_path / "base")[-1])
    app.run(make_conf(*base, *overrides), tmp_path / "changed")
    assert without_options != [losses(tmp_path / "changed")[-1]]


def test_evaluation_interval_and_the_last_round(make_conf, tmp_path):
    app.run(make_conf(*SMALL, "num_rounds=5", "eval_interval=2"), tmp_path / "run")
    assert [dict(line)["round"] for line in losses(tmp_path / "run")] == [0, 2, 4, 5]
    app.run(make_conf(*SMALL, "num_rounds=5"), tmp_path / "every")
    # Looking more often changes nothing.
    assert set(losses(tmp_path / "run")) < set(losses(tmp_path / "every"))


def test_early_stop_ends_the_run_with_its_best(make_conf, tmp_path):
    """A learning rate that only makes it worse: the untrained model is the best, and patience counts from it."""
    result = app.run(make_conf(*SMALL, "lr=30", "num_rounds=50", "early_stop=2"), tmp_path / "run")
    assert result.status == "early_stopped"
    assert result.last_round == result.best_round + 2
    assert result.best_valid_loss == min(dict(line)["valid_loss"] for line in losses(tmp_path / "run"))


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(make_conf, tmp_path):
    result = app.run(make_conf(*SMALL, "lr=1e38", "num_rounds=50"), tmp_path / "run")
    assert result.status == "diverged"
    assert f"round {result.last_round}" in result.message
    assert math.isnan(result.value) and result.best_round == 0
    assert math.isnan(read_rounds(RunPaths(tmp_path / "run"))[-1]["valid_loss"])


def test_a_finished_run_is_read_back_and_another_config_is_refused(make_conf, tmp_path):
    app.run(make_conf(*SMALL), tmp_path / "run")
    before = (tmp_path / "run" / "rounds.jsonl").stat().st_mtime_ns
    again = app.run(make_conf(*SMALL, "num_threads=1"), tmp_path / "run")
    assert again == read_result(RunPaths(tmp_path / "run"))
    assert (tmp_path / "run" / "rounds.jsonl").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another config"):
        app.run(make_conf(*SMALL, "lr=0.2"), tmp_path / "run")


def test_best_weights_are_kept_and_start_another_run(make_conf, tmp_path):
    result = app.run(make_conf(*SMALL, "save_best=true"), tmp_path / "run")
    weights = tmp_path / "run" / "best_model.safetensors"
    app.run(make_conf(*SMALL, f"initial_weights={weights}"), tmp_path / "next")
    assert dict(losses(tmp_path / "next")[0])["valid_loss"] == result.best_valid_loss


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["initial_weights=nowhere.safetensors"], ["initial_weights=nowhere.safetensors", "cannot be read"]),
        (["device=cuda:7"], ["device=cuda:7", "torch sees"]),
        (["model=cnn", "task=synthetic"], ["model=cnn", "(60,)"]),
        (["model=custom", "model._target_=math.sqrt"], ["model"]),
        (["algorithm=custom", "algorithm._target_=builtins.dict"], ["subclass", "dict"]),
    ],
)
def test_what_cannot_run_says_why(make_conf, tmp_path, overrides, words):
    with pytest.raises(ValueError) as error:
        app.run(make_conf(*SMALL, *overrides), tmp_path / "run")
    for word in words:
        assert word in str(error.value)
    failure = read_failure(RunPaths(tmp_path / "run"))
    assert failure is not None and failure.kind == "ValueError" and "Traceback" in failure.traceback


MODELS = '''
import math
import os
import signal

import torch
from torch import nn


class Noisy(nn.Sequential):
    """Everything whose state is easily forgotten: running statistics, dropout, a frozen parameter."""

    def __init__(self, input_shape, num_outputs):
        inputs = math.prod(input_shape)
        super().__init__(
            nn.Flatten(), nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, num_outputs)
        )
        self[1].bias.requires_grad_(False)


def dying(record):
    """Sends this process a signal at the end of a round, when DIE_AT says so."""
    if os.environ.get("DIE_AT") == str(record[-1]["round"]):
        os.kill(os.getpid(), getattr(signal, os.environ["DIE_OF"]))
    return {"alive": 1.0}
'''


def start(folder: Path, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, in `folder`/run."""
    arguments = [
        "task.num_clients=5",
        "model=custom",
        "model._target_=mine.Noisy",
        "algorithm=scaffold",
        "metrics=mine.dying",
        "num_rounds=6",
        "checkpoint_interval=2",
        *overrides,
    ]
    return subprocess.run(
        [sys.executable, "-m", "flgo_hydra", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(compose.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "mine.py").write_text(MODELS)
    assert start(folder, "hydra.run.dir=run").returncode == 0
    return losses(folder / "run")


@pytest.mark.few(1)
def test_a_killed_run_goes_on_from_its_own_checkpoint_with_the_same_numbers(tmp_path, undisturbed):
    (tmp_path / "mine.py").write_text(MODELS)
    killed = start(tmp_path, "hydra.run.dir=run", DIE_AT="4", DIE_OF="SIGKILL")
    assert killed.returncode == -signal.SIGKILL
    assert [dict(line)["round"] for line in losses(tmp_path / "run")] == [0, 1, 2, 3]  # 3 is after the checkpoint
    other = start(tmp_path, "hydra.run.dir=run", "lr=0.2")  # a checkpoint of another config
    assert other.returncode == 1
    assert "another config" in other.stderr and "checkpoint.pt" in other.stderr
    again = start(tmp_path, "hydra.run.dir=run")
    assert again.returncode == 0, again.stderr
    assert "going on after round 2" in again.stdout
    assert losses(tmp_path / "run") == undisturbed
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


class Stop(Exception):
    """Ends a run after so many rounds, as a killed process ends."""


@pytest.fixture
def half_done(make_conf, tmp_path, monkeypatch, request):
    """A run that has ended after round 4, with a checkpoint of round 3 and a better model since."""
    from flgo_hydra.job.watcher import Watcher

    finished_round = Watcher.finished_round

    def finish_or_stop(self, state):
        asked = finished_round(self, state)
        if state.round_num == 4:
            raise Stop
        return asked

    conf = make_conf(*SMALL, "num_rounds=6", "checkpoint_interval=3", "save_best=true", *getattr(request, "param", ()))
    app.run(conf, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Watcher, "finished_round", finish_or_stop)
        app.run(conf, tmp_path / "run")
    return conf


def _edited(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    values = json.loads(lines[1])
    lines[1] = json.dumps({**values, "valid_loss": 0.001}) + "\n"
    path.write_text("".join(lines))


@pytest.mark.parametrize(
    "file, change, is_anew",
    [
        ("rounds.jsonl", _edited, True),
        ("rounds.jsonl", Path.unlink, True),
        ("rounds.jsonl", lambda path: path.write_text(path.read_text().replace("}\n", "}\n\n\n", 1)), True),
        ("rounds.jsonl", lambda path: path.write_bytes(path.read_bytes()[:-40]), False),  # of round 4, done again
        ("best_model.safetensors", Path.unlink, False),
        ("best_model.safetensors", lambda path: path.write_bytes(b""), False),
        ("checkpoint.pt", lambda path: path.write_bytes(b"mine"), True),
    ],
)
def test_what_an_unfinished_run_goes_on_from_is_as_it_was_written(half_done, tmp_path, caplog, file, change, is_anew):
    change(tmp_path / "run" / file)
    with caplog.at_level("INFO"):
        app.run(half_done, tmp_path / "run")
    assert ("going on after round 3" in caplog.text) == (not is_anew)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    best = [tmp_path / name / "best_model.safetensors" for name in ("run", "whole")]
    assert best[0].read_bytes() == best[1].read_bytes()
    if file == "checkpoint.pt":
        assert (tmp_path / "run" / "checkpoint.pt.damaged").read_bytes() == b"mine"


def as_before(path: Path) -> None:
    """Writes a checkpoint as version 5 did, which had what clients keep as tensors in its content."""
    import numpy as np
    import torch

    from flgo_hydra.record.checkpoint import reading_rows

    content = torch.load(path, weights_only=True)
    ids, layout = content["clients"]["clients"], content["clients"]["layout"]
    with reading_rows(path) as rows:
        table = np.frombuffer(rows.read(), np.float32).reshape(len(ids), -1)
    kept: dict = {}
    begin = 0
    for state, name, dtype, shape in layout:
        assert dtype == "torch.float32"
        end = begin + math.prod(shape)
        kept.setdefault(state, {})[name] = torch.tensor(table[np.argsort(ids), begin:end]).view(-1, *shape)
        begin = end
    torch.save({**content, "version": 5, "clients": {"clients": sorted(ids), "rows": kept}}, path)


@pytest.mark.parametrize("half_done", [["algorithm=scaffold", "proportion=0.6"]], indirect=True)
@pytest.mark.parametrize("change", [lambda path: None, as_before], ids=["ours", "version 5"])
@pytest.mark.parametrize("in_memory", [0, 2**30])
def test_what_clients_keep_goes_on(half_done, tmp_path, caplog, monkeypatch, change, in_memory):
    from flgo_hydra.federated.clients import client_state

    monkeypatch.setattr(client_state, "IN_MEMORY", in_memory)
    change(tmp_path / "run" / "checkpoint.pt")
    with caplog.at_level("INFO"):
        app.run(half_done, tmp_path / "run")
    assert "going on after round 3" in caplog.text
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.slow)])
@pytest.mark.few(1)
def test_ctrl_c_stops_at_the_round_boundary_with_a_checkpoint(tmp_path, undisturbed, name):
    (tmp_path / "mine.py").write_text(MODELS)
    stopped = start(tmp_path, "hydra.run.dir=run", DIE_AT="3", DIE_OF=name)
    assert stopped.returncode == 130
    assert "stopped after round 3; python -m flgo_hydra.resume " in stopped.stderr
    again = start(tmp_path, "hydra.run.dir=run")
    assert again.returncode == 0 and "going on after round 3" in again.stdout
    assert losses(tmp_path / "run") == undisturbed


def test_the_weights_a_run_began_with_are_known_by_their_content(make_conf, tmp_path):
    from flgo_hydra.study.changed_code import ChangedCode

    app.run(make_conf(*SMALL, "save_best=true"), tmp_path / "first")
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(RunPaths(tmp_path / "first").best_model.read_bytes())
    result = app.run(make_conf(*SMALL, f"initial_weights={weights}"), tmp_path / "next")
    assert list(result.code["files"]) == [str(weights)]
    assert ChangedCode().of(ChangedCode().take(result)) == []
    app.run(make_conf(*SMALL, "save_best=true", "seed=1"), tmp_path / "other")
    weights.write_bytes(RunPaths(tmp_path / "other").best_model.read_bytes())
    assert ChangedCode().of(ChangedCode().take(result)) == [str(weights)]


@pytest.mark.parametrize("changed", ["", "engine.backend=loop", "engine.dual=off", "num_threads=2"])
@pytest.mark.few(2)
def test_a_run_goes_on_in_the_form_it_began_with_or_begins_anew(make_conf, tmp_path, monkeypatch, caplog, changed):
    """Float32 numbers of another form differ in the last digits: no run is a mixture of two."""
    from flgo_hydra.launch import reporter

    caplog.set_level("INFO")
    options = ["num_rounds=6", "num_epochs=8", "task.num_clients=5", "proportion=0.6", "batch_size=10"]
    calls = iter([False, False, True])
    with monkeypatch.context() as patched:
        patched.setattr(reporter.Reporter, "stop_requested", lambda self: next(calls, False))
        with pytest.raises(KeyboardInterrupt):
            app.run(make_conf(*options, "engine.backend=vmap"), tmp_path / "run")
    overrides = [*options, "engine.backend=vmap", *([changed] if changed else [])]
    result = app.run(make_conf(*overrides), tmp_path / "run")
    whole = app.run(make_conf(*overrides), tmp_path / "whole")
    assert result.engine == whole.engine
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert ("begins anew" in caplog.text) is bool(changed)
    assert ("going on after round" in caplog.text) is (not changed)


COUNTING = """
from mine import Noisy


class Counting(Noisy):
    calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x) / (1 + 0.1 * self.calls)
"""


@pytest.mark.slow
def test_what_python_keeps_is_in_no_checkpoint_and_such_a_run_begins_anew(tmp_path):
    (tmp_path / "mine.py").write_text(MODELS)
    (tmp_path / "counting.py").write_text(COUNTING)
    counting = "model._target_=counting.Counting"
    assert start(tmp_path, "hydra.run.dir=whole", counting).returncode == 0
    killed = start(tmp_path, "hydra.run.dir=run", counting, DIE_AT="4", DIE_OF="SIGKILL")
    assert killed.returncode == -signal.SIGKILL
    again = start(tmp_path, "hydra.run.dir=run", counting)
    assert again.returncode == 0, again.stderr
    assert "begins anew" in again.stdout and "it has `model.calls`, which Python keeps" in again.stdout
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


ENDING = """
import sys

from torch import nn

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.sources import digits


class Leaves(nn.Linear):
    def __init__(self, input_shape, num_outputs):
        super().__init__(64, num_outputs)
        sys.exit(0)


class Done(nn.Linear):
    def __init__(self, input_shape, num_outputs):
        super().__init__(64, num_outputs)

    def forward(self, x):
        if not self.training and bool(self.weight.abs().sum() != self.first):
            raise StopIteration
        return super().forward(x.flatten(1))

    @property
    def first(self):
        self.__dict__.setdefault("_first", self.weight.abs().sum().clone())
        return self.__dict__["_first"]


def source(**_):
    raise SystemExit


def metrics(model):
    raise GeneratorExit("no reason")
"""


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["model=custom", "model._target_=ending.Leaves"], "has raised SystemExit: 0"),
        (["model=custom", "model._target_=ending.Done"], "has raised StopIteration"),
        (["task=custom", "task.source._target_=ending.source"], "has raised SystemExit"),
        (["metrics=ending.metrics"], "has raised GeneratorExit: no reason"),
    ],
)
def test_an_end_that_is_none_is_a_failure(make_conf, empty_folder, overrides, words):
    (empty_folder / "ending.py").write_text(ENDING)
    with pytest.raises(RuntimeError, match=words):
        app.run(make_conf(*SMALL, *overrides), empty_folder / "run")
    failure = read_failure(RunPaths(empty_folder / "run"))
    assert failure is not None and failure.kind == "RuntimeError" and "ending.py" in failure.traceback
    assert not RunPaths(empty_folder / "run").result.exists()


@pytest.mark.parametrize(
    "overrides, words",
    [
        ([], None),
        (["optimizer=momentum"], None),
        (["algorithm=scaffold"], None),
        (["algorithm=scaffold", "weight_decay=0.1", "aggregate=weighted_com"], None),
        (["algorithm=scaffold", "optimizer=adam"], "SCAFFOLD with `optimizer=adam`.*diverge.*Use optimizer=sgd"),
        (["algorithm=scaffold", "momentum=0.5"], "SCAFFOLD with `optimizer=sgd momentum=0.5`"),
        (["algorithm=scaffold", "clip_grad=1"], "SCAFFOLD with `clip_grad=1.0`.*biased"),
        (["sample=md"], None),
        (["sample=md", "aggregate=uniform", "algorithm=fedprox"], None),
        (["sample=md", "aggregate=weighted_scale"], "volume twice"),
    ],
)
def test_settings_that_break_a_law_are_named(make_conf, tmp_path, caplog, overrides, words):
    result = app.run(make_conf(*SMALL, "lr=0.01", *overrides), tmp_path / "run")
    again = read_result(RunPaths(tmp_path / "run"))
    assert again is not None and again.warnings == result.warnings
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told == result.warnings
    if words is None:
        assert result.warnings == []
    else:
        (text,) = result.warnings
        assert re.search(words, text)
