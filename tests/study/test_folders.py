"""Jobs run where Hydra's config says, are read back there, and never share a folder."""

import csv
import json
from pathlib import Path

import pytest

from flgo_hydra.study.stored.storage import open_study

SMALL = ("-m", "num_rounds=2", "model=logistic", "num_steps=1", "monitor=test_accuracy", "hydra.sweep.dir=sweep")


def trials():
    study = open_study("sweep/study.journal", "_".join(Path("sweep").resolve().parts[-2:]))
    return {trial.user_attrs["job"]: trial for trial in study.trials}


def results(names):
    return [json.loads((Path("sweep") / name / "result.json").read_text()) for name in names]


@pytest.mark.parametrize("launcher", ["flgo_hydra", "basic"])
@pytest.mark.parametrize(
    "subdir, names",
    [
        ("run_${hydra.job.num}", ["run_0", "run_1"]),
        ("rates/${lr}", ["rates/0.001", "rates/1.0"]),
        ("${hydra.job.override_dirname}", None),
    ],
)
@pytest.mark.few(2)
def test_they_are_read_back_where_they_ran(command, launcher, subdir, names):
    arguments = (*SMALL, f"hydra.sweep.subdir={subdir}", f"hydra/launcher={launcher}")
    done = command(*arguments, "lr=0.001,1.0")
    assert done.status == 0, done.err
    if names is None:
        names = sorted(str(path.parent.relative_to("sweep")) for path in Path("sweep").rglob("result.json"))
    found = results(names)
    accuracies = [result["best"]["test_accuracy"] for result in found]
    best = accuracies.index(max(accuracies))
    assert accuracies[0] != accuracies[1] and f"best test_accuracy:  {max(accuracies):.6g} at round" in done.out
    # The study has the negative of what is maximised, and the curve; the tables name the folders.
    told = trials()
    assert [told[job].value for job in (0, 1)] == [-value for value in accuracies]
    assert [sorted(told[job].intermediate_values) for job in (0, 1)] == [[0, 1, 2]] * 2
    with open("sweep/results.csv") as file:
        assert [row["folder"] for row in csv.DictReader(file)] == names
    assert f"folder: {names[best]}\n" in Path("sweep/best.yaml").read_text()
    # Going on runs one more value, and nothing again.
    before = [(Path("sweep") / name / "result.json").stat().st_mtime_ns for name in names]
    done = command(*arguments, "lr=0.001,1.0,0.5")
    assert done.status == 0, done.err
    assert [(Path("sweep") / name / "result.json").stat().st_mtime_ns for name in names] == before
    assert len(trials()) == 3 and len(list(Path("sweep").rglob("result.json"))) == 3


def test_a_run_goes_on_in_the_folder_it_began_in(command):
    arguments = (*SMALL, "hydra.sweep.subdir=${hydra.job.override_dirname}", "hydra/launcher=basic", "lr=0.1,0.2")
    assert command(*arguments).status == 0
    names = sorted(path.parent.name for path in Path("sweep").rglob("result.json"))
    (Path("sweep") / names[1] / "result.json").unlink()
    # Another axis of one value changes what the config would call the folder.
    assert command(*arguments, "momentum=0.0").status == 0
    assert sorted(path.parent.name for path in Path("sweep").rglob("result.json")) == names
    assert len(list(Path("sweep").rglob("rounds.jsonl"))) == 2


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["hydra.sweep.subdir=same"], "would run in the folder same, where job 0 runs too"),
        (["hydra.sweep.subdir=${seed}"], "where job 0 runs too"),
        (["hydra.sweep.subdir=../x${hydra.job.num}"], "which is not below the sweep folder"),
        (["hydra.sweep.subdir=."], "which is not below the sweep folder"),
        (["hydra.sweep.dir=sweep_${lr}"], "`hydra.sweep.dir` must be the same for all jobs"),
    ],
)
def test_jobs_of_one_folder_and_outside_are_refused_before_anything_starts(command, arguments, says):
    done = command(*SMALL, *arguments, "lr=0.1,0.2", "hydra/launcher=basic")
    assert done.status == 1 and says in done.err
    assert not list(Path.cwd().rglob("rounds.jsonl")) and not list(Path.cwd().rglob("study.journal"))


def test_a_search_refuses_the_point_whose_folder_is_taken(command):
    search = ("hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=2", "lr=interval(0.1,0.2)")
    done = command(*SMALL, *search, "hydra.sweep.subdir=same", "hydra/launcher=basic")
    assert done.status == 1 and "where job 0 runs too" in done.out
    assert [path.parent.name for path in Path("sweep").rglob("result.json")] == ["same"]


def test_without_hydras_record(command):
    arguments = (*SMALL, "hydra.output_subdir=null", "lr=0.001,1.0", "hydra/launcher=basic")
    assert command(*arguments).status == 0
    values = [-trials()[job].value for job in (0, 1)]
    assert values == [result["best"]["test_accuracy"] for result in results("01")] and values[0] != values[1]
    assert command(*arguments).status == 0 and len(trials()) == 2
