import csv
import dataclasses
import math
from pathlib import Path

import pytest
import yaml

from flgo_hydra.objective import Objective
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import Failure, RunResult
from flgo_hydra.report.rows import Row, best_row, write_best, write_results


def _row(job: int, loss: float, status: str = "completed") -> Row:
    return Row(job, (f"lr={job}",), Path("sweep") / str(job), status, loss, 3, 5, {"valid_loss": loss})


@pytest.mark.parametrize(
    "rows, job",
    [
        ([], None),
        ([_row(0, 0.5), _row(1, 0.25)], 1),
        ([_row(0, 0.25), _row(1, 0.25)], 0),  # the first of equals
        ([_row(0, 0.5, "early_stopped"), _row(1, 0.25, "diverged")], 0),
        ([_row(0, math.nan, "failed"), _row(1, math.nan)], None),
        ([_row(0, math.inf)], None),
        ([_row(0, 0.5), _row(1, 0.25, "pruned"), _row(2, 0.25, "running")], 0),  # they might have come lower, or not
        ([_row(0, math.nan), _row(1, 2.0)], 1),
    ],
)
def test_best_row(rows: list[Row], job: int | None) -> None:
    best = best_row(rows)
    assert (best.job if best else None) == job


def test_a_deleted_key_has_a_column_too(tmp_path: Path) -> None:
    write_results(tmp_path / "results.csv", [Row(0, ("~extra", "lr=1"), tmp_path / "0", "failed")])
    (row,) = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    assert (row["~extra"], row["lr"]) == ("", "1")


def test_results_csv(tmp_path: Path) -> None:
    metrics = {"valid_loss": 0.1, "test_accuracy": 0.75}
    rows = [
        Row(0, ("lr=0.1", "algorithm=fedavg"), tmp_path / "0", "completed", 0.1, 3, 5, metrics, 1.5, 200.0),
        Row(2, ("lr=0.1", 'model.hidden="[1, 2]"'), tmp_path / "2", "failed", message='Error: a "b",\nc'),
        Row(3, ("hydra.x=a=b",), tmp_path / "3", "diverged", math.inf, 0, 1, {"valid_loss": math.nan}),
    ]
    write_results(tmp_path / "results.csv", rows)
    with open(tmp_path / "results.csv", newline="") as file:
        header, *lines = csv.reader(file)
    swept = ["lr", "algorithm", "model.hidden", "hydra.x"]
    bests = ["best_valid_loss", "best_round", "last_round", "test_accuracy@best(valid_loss)"]
    assert header == ["job", "status", *swept, *bests, "seconds", "peak_memory_mib", "message", "folder"]
    assert lines == [
        ["0", "completed", "0.1", "fedavg", "", "", "0.1", "3", "5", "0.75", "1.5", "200.0", "", "0"],
        ["2", "failed", "0.1", "", '"[1, 2]"', "", "", "", "", "", "", "", 'Error: a "b",\\nc', "2"],
        ["3", "diverged", "", "", "", "a=b", "inf", "0", "1", "", "", "", "", "3"],
    ]


def test_results_csv_of_nothing(tmp_path: Path) -> None:
    write_results(tmp_path / "results.csv", [])
    assert (tmp_path / "results.csv").read_text().startswith("job,status,best_valid_loss,")


def test_best_yaml(tmp_path: Path) -> None:
    write_best(tmp_path / "best.yaml", [_row(0, 0.5), _row(1, 0.25)], fixed=["num_rounds=5", "x=${y}"])
    assert yaml.safe_load((tmp_path / "best.yaml").read_text()) == {
        "overrides": ["lr=1"],
        "fixed": ["num_rounds=5", "x=${y}"],
        "monitor": {"metric": "valid_loss", "is_maximized": False},
        "best_valid_loss": 0.25,
        "best_round": 3,
        "at_best_round": {"valid_loss": 0.25},
        "job": 1,
        "folder": "1",
    }


def test_no_best_yaml_without_a_valid_result(tmp_path: Path) -> None:
    write_best(tmp_path / "best.yaml", [_row(0, math.nan, "failed")], fixed=[])
    assert not (tmp_path / "best.yaml").exists()


def test_rows_of_what_a_job_came_to(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "7")
    values = {field.name: None for field in dataclasses.fields(RunResult)}
    values |= {"status": "early_stopped", "best_valid_loss": 0.5, "best_round": 1, "last_round": 4, "message": "m"}
    values |= {"monitor": Objective(), "warnings": []}
    result = RunResult(**{**values, "best": {"valid_loss": 0.5}, "seconds": 2.0, "option": {"num_rounds": 9}})  # type: ignore[arg-type]
    row = Row.of_result(7, ("lr=1",), run, result)
    assert row == Row(7, ("lr=1",), run.folder, "early_stopped", 0.5, 1, 4, {"valid_loss": 0.5}, 2.0, None, "m", 9)
    assert row.is_valid and not dataclasses.replace(row, status="pruned").is_valid
    failed = Row.of_failure(7, (), run, Failure("ValueError", "bad"))
    assert (failed.status, failed.message, failed.is_valid) == ("failed", "ValueError: bad", False)
    assert Row.of_value(7, (), run, 0.5).is_valid
    assert not Row.of_value(7, (), run, math.nan).is_valid
