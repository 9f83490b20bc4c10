import contextlib
import json
import math
import os
from pathlib import Path

import pytest

from flgo_hydra.record.lock import holding
from flgo_hydra.report.rows import Row
from flgo_hydra.report.runs import keys_that_vary, read_runs, runs_of_rows, value_text


def _read(*folders: Path):
    return read_runs(folders)[0]


def test_a_sweep_is_read_in_the_order_of_its_jobs(sweep):
    runs = _read(sweep)
    assert [run.name for run in runs] == [str(i) for i in range(12)]
    last = runs[11]
    assert last.overrides == {"algorithm": "fedprox", "lr": "0.01", "seed": "2"}
    assert (
        last.values["lr"] == 0.01 and last.values["algorithm"] == "fedprox" and last.values["task/partition"] == "iid"
    )
    assert last.row.status == "completed" and last.row.is_valid and last.row.best_round == 2
    assert last.metric("best_valid_loss") == 2.1 and last.metric("test_loss@best(valid_loss)") == 2.6
    assert last.metric("seconds") == 1.5 and last.metric("no such") != last.metric("no such")
    assert [line["round"] for line in last.rounds] == [0, 1, 2, 3]
    assert keys_that_vary(runs) == ["algorithm", "lr", "seed"]


def test_unfinished_runs_are_as_far_as_their_rounds_go(make_run, tmp_path):
    folder = make_run("sweep/0", [2.0, 1.0, 1.5], status=None, lr=0.5)
    with open(folder / "rounds.jsonl", "a") as file:
        file.write('{"round": 3, "valid_loss": null}\n{"round": 4, "valid_lo')
    make_run("sweep/1", [], status=None)
    lock = tmp_path / "sweep" / ".owner.lock"
    for owner, status in ((holding(lock), "running"), (contextlib.nullcontext(), "interrupted")):
        with owner:
            lock.write_text(f"{os.getpid()}\n")  # its number lives, which says nothing after a reboot
            begun, new = _read(tmp_path / "sweep")
        assert begun.row.status == new.row.status == status and not begun.row.is_valid
        assert (begun.row.best_valid_loss, begun.row.best_round, begun.row.last_round) == (1.0, 1, 3)
        assert begun.row.best == {"valid_loss": 1.0, "test_loss": 1.5, "test_accuracy": 0.5}
        assert begun.values["lr"] == 0.5 and begun.num_rounds == 5
        assert new.row.best_round is None and new.rounds == []


@pytest.mark.parametrize(
    "line, value", [("+a.note='it\\'s 1=1'", "it's 1=1"), ("+a.note='1'", '"1"'), ("+a.note=1", 1), ("+a.note=", "")]
)
def test_a_quoted_text_is_what_it_says(line, value):
    (run,) = runs_of_rows([Row(0, (line,), Path("0"), "completed")])
    assert run.values == {"a.note": value}


@pytest.mark.parametrize("status", ["pruned", "diverged"])
def test_what_cannot_be_the_best(make_run, status):
    assert not _read(make_run("run", [2.0, 0.1], status=status))[0].row.is_valid


def test_a_failure_keeps_its_reason_and_rounds(make_run):
    (run,) = _read(make_run("run", [2.0, 1.0], failure="ValueError: bad\nnews"))
    assert (run.row.status, run.row.message, run.row.last_round) == ("failed", "ValueError: bad\nnews", 1)


@pytest.mark.parametrize(
    "content, why",
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[]", "is a list, not an object"),
        ('{"status": "completed"}', "has no `best_valid_loss`"),
        ("\xff\xfe", "is no JSON"),
    ],
)
def test_a_damaged_result_is_no_result(make_run, content, why):
    folder = make_run("run", [2.0, 1.0])
    (folder / "result.json").write_text(content, encoding="latin-1")
    (run,) = _read(folder)
    assert (run.row.status, run.row.message) == ("damaged", f"result.json {why}")
    assert math.isnan(run.row.best_valid_loss) and run.rounds == [] and not run.row.is_valid


@pytest.mark.parametrize("status", [None, "completed"])
@pytest.mark.parametrize("line", ['{"kind": "end"}', '{"round": "x"}', "[1]", '{"round": 1e400}'])
def test_damaged_rounds_are_no_curve(make_run, line, status):
    folder = make_run("run", [2.0, 1.0], status=status)
    with open(folder / "rounds.jsonl", "a") as file:
        file.write(f"{line}\n")
    (run,) = _read(folder)
    assert run.row.status == "damaged" and run.row.message.startswith("rounds.jsonl ")
    assert run.rounds == [] and not run.row.is_valid


def test_links_below_a_folder_are_not_followed(make_run, tmp_path):
    make_run("a/0", [1.0])
    for name, target in (("loop", "."), ("up", ".."), ("root", "/"), ("twice", "0")):
        (tmp_path / "a" / name).symlink_to(target)
    (tmp_path / "link").symlink_to("a")
    assert [run.name for run in _read(tmp_path / "a")] == ["0"]
    assert [run.name for run in _read(tmp_path / "link")] == ["0"]


def test_several_folders_and_folders_of_folders(make_run, tmp_path):
    make_run("a/x/0", [1.0], lr=0.1)
    make_run("a/x/10", [1.0], lr=0.2)
    make_run("a/x/9", [1.0], lr=0.3)
    make_run("a/y/0", [1.0], lr=0.4)
    (tmp_path / "a" / "x" / "multirun.yaml").write_text("")
    (tmp_path / "a" / "x" / "notes").mkdir()
    assert [run.name for run in _read(tmp_path / "a")] == ["x/0", "x/9", "x/10", "y/0"]
    assert [run.name for run in _read(tmp_path / "a" / "x", tmp_path / "a")] == ["x/0", "x/9", "x/10", "y/0"]
    assert [run.name for run in _read(tmp_path / "a" / "y", tmp_path / "a" / "x" / "9")] == ["y/0", "x/9"]


def test_a_point_that_two_sweeps_ran_counts_once(make_run, tmp_path):
    make_run("a/0", [1.0], lr=0.1)
    make_run("b/0", [1.0], lr=0.1)
    make_run("b/1", [1.0], lr=0.2)
    runs, remarks = read_runs([tmp_path / "a", tmp_path / "b"])
    assert [run.name for run in runs] == ["a/0", "b/1"]
    assert remarks == ["1 of 3 runs repeat another one with the same config: left out."]


@pytest.mark.parametrize(
    "first, second, keys",
    [
        ({"lr": "1e-1"}, {"lr": 0.1}, []),  # the same value, written in two ways
        ({"lr": 1}, {"lr": 1.0}, []),
        ({"algorithm": "fedavg"}, {}, []),  # given, and by default
        ({"algorithm": "fedprox"}, {}, ["algorithm"]),
        ({"algorithm": "fedprox", "algorithm.mu": 1}, {}, ["algorithm", "algorithm.mu"]),
        ({"config": {"batch_size": 8}}, {"config": {"batch_size": 16}}, ["batch_size"]),  # the default was edited
        ({"config": {"device": "cpu"}}, {"config": {"device": "cuda"}}, []),
        ({"config": {"early_stop": None}}, {"config": {"early_stop": 3}}, ["early_stop"]),
        ({"model.hidden": "[1, 2]"}, {"model.hidden": "[3]"}, ["model.hidden"]),
    ],
)
def test_which_keys_vary(make_run, tmp_path, first, second, keys):
    make_run("s/0", [1.0], status=None, **first)
    make_run("s/1", [1.0], status=None, **second)
    assert keys_that_vary(_read(tmp_path / "s")) == keys


def test_a_choice_by_default_is_read_from_hydras_record(make_run, tmp_path):
    make_run("s/0", [1.0], option="fedavg_paper")
    default = make_run("s/1", [1.0])
    (default / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {option: default}}}")
    assert [run.values["option"] for run in _read(tmp_path / "s")] == ["fedavg_paper", "default"]


def test_references_in_an_unfinished_runs_config(make_run, tmp_path):
    folder = make_run("s/0", [1.0], status=None, config={"proportion": "${lr}"}, lr=0.25)
    assert _read(folder)[0].values["proportion"] == 0.25


def test_hydras_record_may_be_missing(make_run):
    folder = make_run("run", [2.0, 1.0], lr=0.3)
    for path in (folder / ".hydra").iterdir():
        path.unlink()
    (folder / ".hydra").rmdir()
    (run,) = _read(folder)
    assert run.values["lr"] == 0.3 and run.overrides == {}
    (folder / "result.json").unlink()
    (run,) = _read(folder)
    assert run.values == {} and run.row.best_valid_loss == 1.0


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda folder: None, "There is no folder"),
        (lambda folder: folder.write_text(""), "is a file"),
        (lambda folder: folder.mkdir(), "holds no run"),
        (lambda folder: (folder / "0" / ".hydra").mkdir(parents=True), "holds no run"),  # another app's
    ],
)
def test_folders_without_runs(tmp_path, make, said):
    make(tmp_path / "lr=0.1")
    with pytest.raises(ValueError, match=said) as error:
        read_runs([tmp_path / "lr=0.1"])
    assert ("--where" in str(error.value)) == (said == "There is no folder")


def test_a_run_of_another_app_with_a_foreign_result(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"accuracy": 1}))
    assert _read(tmp_path)[0].row.message == "result.json has no `status`"


@pytest.mark.parametrize(
    "value, text", [(0.1, "0.1"), (1e-05, "1e-05"), (None, "null"), (True, "true"), ("a", "a"), (3, "3")]
)
def test_values_are_shown_as_they_are_typed(value, text):
    assert value_text(value) == text


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml", "hydra.yaml"])
@pytest.mark.parametrize("damage", [os.mkfifo, Path.mkdir, lambda path: path.write_bytes(b"&a [" * 5000)])
def test_hydras_record_is_neither_waited_for_nor_believed(make_run, name, damage):
    path = make_run("s/0", [2.0, 1.0], status=None) / ".hydra" / name
    path.unlink(missing_ok=True)
    damage(path)
    (run,) = _read(path.parents[2])
    assert run.row.best_valid_loss == 1.0
