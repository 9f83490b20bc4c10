"""A user's own metrics, and the metric that a run follows."""

from pathlib import Path

import pytest

from flgo_hydra.objective import Objective
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_result, read_rounds

OWN = '''
import torch

def worst_client(model, data, task, record):
    assert not model.training and not torch.is_grad_enabled() and record[-1]["round"] == len(record) - 1
    losses = [data.mean_criterion(model(x), y) for x, y in map(data.client, range(task.num_clients))]
    return {"worst_loss": torch.stack(losses).max(), "spread": float(max(losses) - min(losses))}

class Rounds:
    """Counts, so that its best round is known."""
    def __init__(self, task):
        self.calls = task.num_clients

    def __call__(self, record):
        self.calls += 1
        return {"score": -abs(record[-1]["round"] - 2), "calls": self.calls, "seen": len(record)}

def gone(record):
    return {"early": 1.0} if len(record) < 3 else {}

def wrong(): return 3
def taken(): return {"valid_loss": 0.0}
def text(): return {"worst": "much"}
def never(): return {"never": float("nan")}
not_callable = 3
'''
SMALL = ["task.num_clients=4", "num_rounds=5", "num_steps=1"]


@pytest.fixture
def run(command, empty_folder):
    (empty_folder / "my_metrics.py").write_text(OWN)

    def run(*arguments):
        done = command(*SMALL, *arguments, "hydra.run.dir=run")
        return done, read_rounds(RunPaths(Path("run"))), read_result(RunPaths(Path("run")))

    return run


def test_what_they_return_is_recorded_at_each_evaluated_round(run):
    done, rounds, result = run("metrics=my_metrics.worst_client", "eval_interval=1")
    assert done.status == 0, done.err
    assert [line["round"] for line in rounds] == [0, 1, 2, 3, 4, 5]
    assert all(line["worst_loss"] >= line["spread"] > 0 for line in rounds)
    assert result.best["worst_loss"] == rounds[result.best_round]["worst_loss"]


def test_they_change_nothing_of_the_training(run, command):
    _, rounds, _ = run("metrics=my_metrics.worst_client")
    command(*SMALL, "hydra.run.dir=plain")
    losses = [line["valid_loss"] for line in read_rounds(RunPaths(Path("plain")))]
    assert [line["valid_loss"] for line in rounds] == losses


def test_best_early_stop_and_best_model_follow_the_monitor(run):
    done, rounds, result = run(
        "metrics=my_metrics.Rounds", "monitor=score", "monitor_mode=max", "early_stop=2", "save_best=true"
    )
    assert done.status == 0, done.err
    assert (result.best_round, result.status, result.last_round) == (2, "early_stopped", 4)
    assert result.value == 0 and result.monitor == Objective("score", True)
    assert result.best_valid_loss == rounds[4]["valid_loss"] < rounds[2]["valid_loss"]
    assert [line["calls"] for line in rounds] == [5, 6, 7, 8, 9], "one object a run"
    assert [line["seen"] for line in rounds] == [1, 2, 3, 4, 5], "the present round is the last of the record"
    assert Path("run/best_model.safetensors").exists() and "best score 0.000000 at round 2" in done.out


def test_an_accuracy_is_maximized_unless_told_otherwise(make_conf):
    assert make_conf("monitor=test_accuracy").followed == Objective("test_accuracy", True)
    assert not make_conf("monitor=test_accuracy", "monitor_mode=min").followed.is_maximized
    assert not make_conf("monitor=test_loss").followed.is_maximized


@pytest.mark.parametrize(
    "arguments, says",
    [
        (
            ["monitor=worst_los", "monitor_mode=min", "metrics=my_metrics.worst_client"],
            "is not among the metrics of round 0: valid_loss,",
        ),
        (["monitor=valid_f1", "monitor_mode=max"], "`monitor` must be one of valid_loss, valid_accuracy, test_loss,"),
        (["monitor=early", "monitor_mode=min", "metrics=my_metrics.gone"], "is not among the metrics of round 2"),
        (["monitor_mode=up"], "`monitor_mode` must be one of min, max, but got 'up'"),
        # Which way a metric of one's own is better is not guessed from its name.
        (["monitor=macro_f1"], "so it needs the way in which it is better: `monitor_mode=min` or `monitor_mode=max`."),
        (["monitor=valid_acuracy"], "Did you mean `valid_accuracy`?"),
        (["monitor=worst_loss", "metrics=my_metrics.worst_client"], "`monitor=worst_loss` is none of our metrics"),
        (["monitor=my_accuracy", "metrics=my_metrics.worst_client"], "`monitor=my_accuracy` is none of our metrics"),
        (["metrics=my_metrics.absent"], "the module 'my_metrics' has no 'absent'"),
        (["metrics=my_metrics.not_callable"], "must be a function or a class, but it is int"),
        (["metrics=my_metrics.wrong"], "must return numbers by name, {'worst_loss': 0.5}, but got 3"),
        (["metrics=my_metrics.taken"], "it names one 'valid_loss'"),
        (["metrics=my_metrics.text"], "must return numbers, but 'worst' is 'much'"),
    ],
)
def test_what_is_wrong_is_said_as_soon_as_it_can_be_known(run, arguments, says):
    done, rounds, result = run(*arguments)
    assert done.status == 1 and says in done.err and result is None
    assert len(rounds) == (2 if "round 2" in says else 0), "nothing is trained before round 0 is complete"


def test_a_metric_that_is_never_finite_has_no_best_round(run):
    done, rounds, result = run("metrics=my_metrics.never", "monitor=never", "monitor_mode=min")
    assert done.status == 0 and len(rounds) == 6
    assert "completed after round 5: `never` was finite in no round, so there is no best one" in done.out
    assert result.best == {} and result.message.startswith("`never` was finite in no round")


def test_a_sweep_is_decided_by_the_monitor(command, empty_folder):
    (empty_folder / "my_score.py").write_text(
        "def score(model, record):\n    w = next(model.parameters())\n    return {'score': float(w.abs().mean())}\n"
    )
    arguments = ["-m", *SMALL, "model=logistic", "lr=0.001,1.0", "metrics=my_score.score", "monitor=score"]
    done = command(*arguments, "monitor_mode=max", "hydra.sweep.dir=up")
    assert done.status == 0, done.err
    assert "optimal combination: lr=1.0" in done.out and "best score:" in done.out
    results = [read_result(RunPaths(Path("up") / job)) for job in "01"]
    assert results[1].value > results[0].value
    study = open_only_study(Path("up/study.journal"))
    assert study.best_trial.params == {"lr": 1.0} and study.best_value == -results[1].value
    assert study.best_trial.user_attrs["score@best(score)"] == results[1].value
    curve = [line["score"] for line in read_rounds(RunPaths(Path("up/1")))]
    assert study.best_trial.intermediate_values == {r: -value for r, value in enumerate(curve)}
    table = Path("up/results.csv").read_text().splitlines()
    assert "score@best(score)" in table[0]


def open_only_study(path):
    import optuna
    from optuna.storages.journal import JournalFileBackend

    return optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))))


def test_points_of_a_sweep_follow_one_metric(command):
    done = command("-m", *SMALL, "monitor=valid_loss,test_loss", "hydra.sweep.dir=mixed", "hydra/launcher=basic")
    assert done.status == 1 and "`monitor` and `monitor_mode` must be the same in all points" in done.err
    assert not Path("mixed").exists()


KEEPING = """
def grows(record):
    grows.best = max(getattr(grows, "best", 0.0), record[-1]["valid_accuracy"])
    return {"best_so_far": grows.best}
"""


def test_metrics_that_keep_something_are_not_another_runs(command, empty_folder):
    (empty_folder / "my_keeping.py").write_text(KEEPING)
    arguments = ["-m", "task.num_clients=4", "num_rounds=6", "num_steps=3", "lr=1,0.01", "metrics=my_keeping.grows"]
    found = {}
    for fuse in ("off", "2"):
        assert command(*arguments, f"hydra.launcher.fuse={fuse}", f"hydra.sweep.dir={fuse}").status == 0
        found[fuse] = [read_rounds(RunPaths(Path(fuse) / job))[-1]["best_so_far"] for job in "01"]
    assert found["off"] == found["2"] and found["off"][0] > found["off"][1]
