from pathlib import Path

import pytest

from flgo_hydra.monitor import Monitor
from flgo_hydra.report.optimum import print_optimum
from flgo_hydra.report.table import Row, best_row


def _row(job, loss, *overrides, metric="valid_loss"):
    best = {"valid_loss": loss, "test_accuracy": 0.5}
    return Row(job, overrides, Path(str(job)), "completed", loss, 3, 5, best, monitor=Monitor.of(metric))


def _print(rows, capsys):
    best = best_row(rows)
    assert best is not None
    print_optimum(rows, best)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("key", ["task.partition.alpha", "task", "model", "model.hidden", "+task.source.noise"])
def test_each_condition_has_its_optimum(capsys, key):
    rows = [_row(i, loss, f"lr={lr}", f"{key}={value}") for i, (lr, value, loss) in enumerate(
        [(0.1, "a", 1.0), (0.5, "a", 2.0), (0.1, "b", 0.5), (0.5, "b", 0.4)])]  # fmt: skip
    name = key.lstrip("+")
    assert _print(rows, capsys) == [
        f"optimal combination with {name}=a: lr=0.1 {key}=a",
        "best valid_loss:     1 at round 3 (job 0)",
        "at that round:       test_accuracy 0.5000",
        f"optimal combination with {name}=b: lr=0.5 {key}=b",
        "best valid_loss:     0.4 at round 3 (job 3)",
        "at that round:       test_accuracy 0.5000",
    ]


def test_without_conditions_there_is_one(capsys):
    rows = [_row(0, 1.0, "lr=0.1", "task=digits"), _row(1, 0.5, "lr=0.5", "task=digits")]
    assert _print(rows, capsys)[0] == "optimal combination: lr=0.5 task=digits"


def test_many_conditions_are_left_to_the_report(capsys):
    out = _print([_row(i, 1.0 + i, f"task.partition.alpha={i + 1}") for i in range(9)], capsys)
    assert out[0].startswith("optimal combination: ") and "of 9 conditions: the report has" in out[-1]


def test_a_test_metric_that_chose_is_told(capsys):
    assert "chosen by test_accuracy, on test samples" in _print([_row(0, 1.0, metric="test_accuracy")], capsys)[-1]
