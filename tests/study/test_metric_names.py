"""A user's metrics may have any names: nothing that a sweep says or writes mistakes one for something of its own."""

import csv
import json
from pathlib import Path

import pytest

from flgo_hydra.study.stored.storage import open_study

NAMES = (
    *("best", "kind", "monitor", "num_rounds", "best_round", "is_maximized", "memory_mib", "context_mib", "metrics"),
    *("status", "job", "overrides", "lr", "folder", "best_valid_loss", "identity", "values", "self", "end", "message"),
    *("a.b", "x=y", "a, b", "é", "50 %", "${seed}", "x@best(y)", "{'k': 1}", '"quoted"', "~x", "#"),
)
SMALL = ("num_rounds=2", "model=logistic", "num_steps=1")


@pytest.mark.parametrize("launcher", ["flgo_hydra", "basic"])
def test_any_name_works(command, empty_folder, launcher):
    (empty_folder / "named.py").write_text(
        f"NAMES = {NAMES!r}\ndef measure(record):\n    return {{name: 1e9 + i for i, name in enumerate(NAMES)}}\n"
    )
    arguments = ("-m", *SMALL, "metrics=named.measure", "monitor=memory_mib", "monitor_mode=max")
    done = command(*arguments, "lr=0.1,0.2", "hydra.sweep.dir=sweep", f"hydra/launcher={launcher}")
    assert done.status == 0, done.err
    value = 1e9 + NAMES.index("memory_mib")
    assert f"best memory_mib:     {value:.6g} at round 0" in done.out
    result = json.loads(Path("sweep/0/result.json").read_text())
    assert result["peak_memory_mib"] < 1e6 and result["monitor"] == {"metric": "memory_mib", "is_maximized": True}
    study = open_study("sweep/study.journal", "_".join(Path("sweep").resolve().parts[-2:]))
    with open("sweep/results.csv") as file:
        rows = list(csv.DictReader(file))
    for i, name in enumerate(NAMES):
        assert result["best"][name] == 1e9 + i
        assert study.trials[0].user_attrs[f"{name}@best(memory_mib)"] == 1e9 + i
        assert float(rows[0][f"{name}@best(memory_mib)"]) == 1e9 + i
    assert study.trials[0].user_attrs["job"] == 0 and study.trials[0].user_attrs["status"] == "completed"
    assert study.trials[0].values == [-value]
    assert (rows[0]["job"], rows[0]["status"], rows[0]["lr"], rows[0]["folder"]) == ("0", "completed", "0.1", "0")


@pytest.mark.parametrize(
    "name, says",
    [
        ("round", "texts other than valid_loss, valid_accuracy, test_loss, test_accuracy, personal_valid_loss, "),
        ("test_accuracy", "it names one 'test_accuracy'"),
        ("two\nlines", "printable characters in one line"),
        ("\x1b[2J", "printable characters in one line"),
        ("", "by 1 to 100 printable characters"),
        (" x", "without spaces around them"),
        ("x" * 101, "by 1 to 100 printable characters"),
    ],
)
def test_what_no_metric_can_be_called(command, empty_folder, name, says):
    (empty_folder / "named.py").write_text(f"def measure():\n    return {{{name!r}: 1.0}}\n")
    done = command(*SMALL, "metrics=named.measure", "hydra.run.dir=run")
    assert done.status == 1 and says in done.err and not Path("run/result.json").exists()
