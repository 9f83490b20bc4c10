"""Frames of sweeps: columns with the types of their values, and metrics whatever became of the runs."""

import csv
import math

import pytest

from flgo_hydra import sweep

pandas = pytest.importorskip("pandas")
SMALL = ("num_rounds=1", "num_steps=1", "model=logistic", "hydra/launcher=basic", "hydra.sweep.dir=sweep")


def test_columns_are_typed(empty_folder):
    grid = ("lr=1,0.5", "early_stop=null,1", "seed=0,3", "save_best=true,false")
    (empty_folder / "own.py").write_text("def status(record):\n    return {'status': 0.25, 'lr': 9, 'a.b=c': 1}\n")
    frame = sweep(*SMALL, "monitor=test_accuracy", "metrics=own.status", *grid[:2], "seed=3", "dtype=float64").frame()
    assert frame["lr"].dtype == float and frame["lr"].tolist() == [1.0, 1.0, 0.5, 0.5]
    assert frame["early_stop"].dtype == "Int64" and frame["early_stop"].isna().tolist() == [True, False] * 2
    assert frame["job"].tolist() == [0, 1, 2, 3] and set(frame["status"]) == {"completed"}
    assert frame["best_round"].dtype == "Int64" and frame["best_valid_loss"].dtype == float
    for name, value in (("status", 0.25), ("lr", 9), ("a.b=c", 1)):
        assert frame[f"{name}@best(test_accuracy)"].tolist() == [value] * 4
    assert "valid_loss@best(test_accuracy)" in frame and "valid_loss" not in frame
    with open("sweep/results.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert sorted(written[0]) == sorted(frame.columns) and frame["last_round"].dtype == "Int64"
    assert [float(row["seconds"]) for row in written] == frame["seconds"].tolist()
    frame = sweep(*SMALL[:-1], "hydra.sweep.dir=other", *grid[2:]).frame()
    assert frame["seed"].dtype == int and frame["seed"].tolist() == [0, 0, 3, 3]
    assert frame["save_best"].dtype == bool and frame["save_best"].tolist() == [True, False, True, False]


def test_metric_columns_are_there_even_if_all_failed(empty_folder):
    (empty_folder / "own.py").write_text("def fails():\n    raise RuntimeError('no')\n")
    found = sweep(*SMALL, "lr=1,2", "metrics=own.fails", "monitor=x", "monitor_mode=max", "algorithm=fedavg,fedprox")
    frame = found.frame()
    assert set(frame["status"]) == {"failed"} and frame["best_round"].isna().all() and len(frame) == 4
    assert frame["lr"].dtype == float and frame["algorithm"].tolist() == ["fedavg", "fedprox"] * 2
    for column in ("best_valid_loss", "valid_loss@best(x)", "test_accuracy@best(x)"):
        assert frame[column].dtype == float and all(map(math.isnan, frame[column]))
