"""A point has one folder: run folders that the study does not know are found by what they compute, and gone on with."""

import json
import shutil
from pathlib import Path

import pytest

from flgo_hydra.report.command import main as report

SMALL = ("num_rounds=4", "model=logistic", "task.num_clients=2", "num_steps=1", "hydra/launcher=basic")
GRID = ("-m", *SMALL, "checkpoint_interval=1", "hydra.sweep.dir=sweep", "lr=0.1,0.01", "seed=0,1")


def unfinish(run: Path, num_rounds: int = 3) -> None:
    """Leaves a run as a kill after some rounds does, but without a checkpoint."""
    lines = (run / "rounds.jsonl").read_text().splitlines(keepends=True)
    (run / "rounds.jsonl").write_text("".join(lines[:num_rounds]))
    (run / "result.json").unlink()


def results() -> dict[str, str]:
    return {str(path): json.loads(path.read_text())["fingerprint"] for path in Path("sweep").glob("**/result.json")}


@pytest.mark.parametrize("replicate", [(), ("hydra.sweeper.replicate=seed",)], ids=["points", "replicates"])
@pytest.mark.parametrize("harm", ["unfinished", "damaged", "foreign"])
@pytest.mark.few(2)
def test_a_run_is_gone_on_with_in_its_folder_though_the_study_is_gone(command, replicate, harm, capfd):
    assert command(*GRID, *replicate).status == 0
    before = results()
    table = Path("sweep/results.csv").read_text()
    times = {path: Path(path).stat().st_mtime_ns for path in before}
    if harm == "unfinished":
        unfinish(Path("sweep/1"))
    elif harm == "damaged":
        Path("sweep/1/result.json").write_text("{")
    else:
        for name in ("result.json", "rounds.jsonl"):
            shutil.copy(Path("sweep/0", name), Path("sweep/1", name))
    Path("sweep/study.journal").unlink()
    done = command(*GRID, *replicate)
    assert done.status == 0, done.err
    assert results() == before
    same = [path for path, time in times.items() if Path(path).stat().st_mtime_ns == time]
    assert len(same) == 3, same
    timeless = [
        [line.split(",")[:6] for line in text.splitlines()] for text in (table, Path("sweep/results.csv").read_text())
    ]
    assert timeless[0] == timeless[1]
    assert report(["sweep", "--over", "seed"]) == 0


def test_folders_that_are_named_by_what_they_compute(command):
    grid = (*GRID, "hydra.sweep.subdir=of/${lr}/${seed}")
    assert command(*grid).status == 0
    before = results()
    unfinish(Path("sweep/of/0.1/1"))
    Path("sweep/study.journal").unlink()
    done = command(*grid)
    assert done.status == 0, done.err
    assert results() == before and len(before) == 4


def test_a_copy_of_a_run_is_no_point_and_counts_once(command, capfd):
    assert command(*GRID).status == 0
    shutil.copytree("sweep/1", "sweep/copy")
    assert command(*GRID).status == 0
    assert len(results()) == 5
    capfd.readouterr()
    assert report(["sweep", "--over", "seed"]) == 0
    told = capfd.readouterr()
    assert "1 of 5 runs repeat another one with the same config: left out" in told.out + told.err


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.few(1)
def test_what_a_search_has_lost_is_told_and_run_again(command, sampler):
    search = ("-m", *SMALL, f"hydra.sweeper.sampler={sampler}", "hydra.sweeper.n_trials=3", "hydra.sweep.dir=sweep")
    search = (*search, "lr=interval(0.01,0.1)", "hydra.sweeper.sampler_seed=1")
    assert command(*search).status == 0
    before = results()
    shutil.rmtree("sweep/1")
    done = command(*search)
    assert done.status == 0, done.err
    assert "is gone. It is run again" in done.out + done.err
    assert results() == before
    Path("sweep/2/result.json").unlink()
    if sampler == "tpe":
        Path("sweep/2/rounds.jsonl").unlink()  # then the study alone has its value
    done = command(*search)
    assert "has no result of it any more. It is run again" in done.out + done.err
    assert results() == before
