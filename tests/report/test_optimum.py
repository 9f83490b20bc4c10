from pathlib import Path

import pytest
import yaml

from flgo_hydra.objective import Objective
from flgo_hydra.report.optimum import conditions_apart, points_apart, print_optimal_point, print_optimum
from flgo_hydra.report.point_rows import PointRow, sort_points, write_best_point
from flgo_hydra.report.rows import Row, best_row, write_best


def _row(job, loss, *overrides, metric="valid_loss"):
    best = {"valid_loss": loss, "test_accuracy": 0.5}
    return Row(job, overrides, Path(str(job)), "completed", loss, 3, 5, best, monitor=Objective.asked(metric))


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


def _replicates():
    """Two learning rates under two conditions, each with two seeds of its own and of its split."""
    rows, points = [], []
    for alpha, offset in ((0.1, 1.0), (1, 0.0)):
        for lr in (0.1, 0.5):
            values = [abs(lr - alpha / 2) + offset + 0.01 * seed for seed in (0, 1)]
            own = (f"lr={lr}", f"task.partition.alpha={alpha}")
            jobs = tuple(len(rows) + seed for seed in (0, 1))
            rows += [_row(jobs[seed], values[seed], *own, f"seed={seed}", f"task.seed={seed}") for seed in (0, 1)]
            points.append(PointRow(own, jobs, tuple(values), sum(values) / 2, 0.01))
    return rows, points


def test_each_condition_has_its_optimal_point(capsys):
    rows, points = _replicates()
    print_optimal_point(rows, sort_points(points))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "optimal combination with task.partition.alpha=0.1: lr=0.1 task.partition.alpha=0.1"
    assert "over 2 replicates (jobs 0, 1)" in out[1]
    assert out[2] == "optimal combination with task.partition.alpha=1: lr=0.5 task.partition.alpha=1"
    assert len(out) == 4


def test_replicates_of_a_split_are_no_conditions(capsys):
    rows, points = _replicates()
    rows, points = rows[:4], points[:2]
    assert [len(own) for _, own in points_apart(rows, points)] == [2]
    print_optimal_point(rows, sort_points(points))
    assert capsys.readouterr().out.startswith("optimal combination: lr=0.1 task.partition.alpha=0.1")


def test_best_yaml_has_the_best_of_each_condition(tmp_path):
    rows, points = _replicates()
    write_best(tmp_path / "best.yaml", rows, [], conditions_apart(rows, {"task.seed"}))
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert [(one["condition"]["task.partition.alpha"], one["job"]) for one in best["best_under"]] == [
        ("0.1", 0),
        ("1", 6),
    ]
    assert best["job"] == 6

    write_best_point(tmp_path / "best.yaml", points, [], points_apart(rows, sort_points(points)))
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert [one["jobs"] for one in best["best_under"]] == [[0, 1], [6, 7]]
    assert best["jobs"] == [6, 7]

    write_best(tmp_path / "best.yaml", rows[:1], [], conditions_apart(rows[:1]))
    assert "best_under" not in yaml.safe_load((tmp_path / "best.yaml").read_text())
