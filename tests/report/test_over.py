"""What means are over where nobody says it."""

import itertools
import json

import pytest

from flgo_hydra.report.command import main
from flgo_hydra.report.over import replicate_keys


@pytest.fixture
def make_sweep(make_run, tmp_path, monkeypatch):
    """`make_sweep("s", "[task.seed]", seed=2)`: two rates, and so many values of each key."""
    monkeypatch.chdir(tmp_path)

    def make(folder, replicate, below="", lrs=(0.1, 0.5), **counts):
        keys = [name.replace("__", ".") for name in counts]
        for i, (lr, *values) in enumerate(itertools.product(lrs, *map(range, counts.values()))):
            own = dict(zip(keys, values, strict=True))
            make_run(f"{folder}/{below}{i}", [9.0, lr + sum(values) / 8], lr=lr, **own)
        (tmp_path / folder / "multirun.yaml").write_text(f"hydra: {{sweeper: {{replicate: {replicate}}}}}")

    return make


@pytest.fixture
def over(capfd):
    """What the means are over by default, and over how many runs each is."""

    def read(*arguments):
        assert main([*arguments, "--format", "json"]) == 0
        found = json.loads(capfd.readouterr().out)
        return found["over"], {group["runs"] for group in found.get("groups", [])}

    return read


@pytest.mark.parametrize(
    "replicate, counts, keys, num_runs",
    [
        ("task.seed", {"task__seed": 2}, ["task.seed"], 2),
        ("[task.seed]", {"task__seed": 2, "seed": 3}, ["seed", "task.seed"], 6),
        ("[seed, task.seed]", {"task__seed": 2, "seed": 3}, ["seed", "task.seed"], 6),
        ("[seed, task.seed]", {"seed": 3}, ["seed"], 3),
        ("task.seed", {"seed": 3}, ["seed"], 3),
        ("null", {"task__seed": 2, "seed": 3}, ["seed"], 3),
        ("null", {"task__seed": 2}, ["seed"], None),
        ("batch_size", {"batch_size": 4}, ["batch_size"], 4),
        ("+batch_size", {"batch_size": 4}, ["batch_size"], 4),
    ],
)
def test_the_sweeps_replicates_are_known(make_sweep, over, replicate, counts, keys, num_runs):
    make_sweep("s", replicate, **counts)
    assert over("s") == (keys, set() if num_runs is None else {num_runs})


def test_the_report_says_over_what(make_sweep, capfd):
    make_sweep("s", "task.seed", task__seed=2)
    assert main(["s"]) == 0
    out = capfd.readouterr().out
    assert "\nover task.seed\n" in out and "Student's for the mean, over task.seed" in out


def test_what_a_reader_says_counts_more(make_sweep, over):
    make_sweep("s", "[task.seed]", task__seed=2, seed=3)
    assert over("s", "--over", "seed") == (["seed"], {3})
    assert over("s", "--over", "task.seed") == (["task.seed"], {2})
    assert over("s", "--where", "task.seed=0") == (["seed"], {3})
    for option in ("--compare", "--conditions", "--settings"):
        assert over("s", option, "task.seed") == (["seed"], {3})
    assert over("s", "--conditions", "task") == (["seed"], {3})


def test_nested_as_the_keys_that_are_typed(make_sweep, capfd):
    make_sweep("s", "task.seed", task__seed=2, seed=3)
    printed = []
    for typed in ([], ["--over", "seed,task.seed"]):
        assert main(["s", *typed]) == 0
        printed.append(capfd.readouterr().out)
    assert printed[0] == printed[1] and "runs that share a value of the outer one are no independent ones" in printed[0]


def test_several_sweeps_have_the_replicates_of_all(make_sweep, over):
    make_sweep("a", "task.seed", task__seed=2)
    make_sweep("b", "batch_size", batch_size=3, lrs=(0.2,))
    make_sweep("c", "null", seed=4, lrs=(0.3,))
    make_sweep("d", "num_rounds", lrs=(0.4,))
    keys, _ = over("a", "b", "c", "d")
    assert sorted(keys) == ["batch_size", "seed", "task.seed"]


def test_runs_may_lie_deeper_or_be_named_themselves(make_sweep, over):
    make_sweep("s", "task.seed", below="x/y/", task__seed=2)
    assert over("s") == (["task.seed"], {2})
    assert over("s/x/y/0", "s/x/y/1") == (["task.seed"], {2})


@pytest.mark.parametrize(
    "content",
    ["", "[", "[]", "hydra: null", "hydra: {sweeper: {}}", "hydra: {sweeper: null}"]
    + [f"hydra: {{sweeper: {{replicate: {value}}}}}" for value in ("3", "[1]", "{a: 1}", "[[a]]", "''", "true")],
)
def test_a_damaged_or_foreign_record_names_none(tmp_path, content):
    (tmp_path / "multirun.yaml").write_text(content)
    assert replicate_keys(tmp_path / "multirun.yaml") == []
    assert replicate_keys(tmp_path / "nowhere.yaml") == []


def test_a_real_sweeps_record(command, empty_folder, over):
    done = command(
        *("-m", "task.seed=0,1", "lr=0.1,0.3", "num_rounds=1", "model=logistic", "task.num_clients=3"),
        *("hydra.sweeper.replicate=[task.seed]", "hydra.sweep.dir=s"),
    )
    assert done.status == 0, done.err
    assert over("s") == (["task.seed"], {2})
