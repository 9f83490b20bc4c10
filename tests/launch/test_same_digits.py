"""The same command, the same digits: however many run at once, in whatever order, undisturbed or not, fused or alone.

In float32, with default settings, and long enough for the faster forms to come on.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TASK = ["num_rounds=5", "task/partition=dirichlet", "checkpoint_interval=1", "metrics=mine.dying"]
SWEEP = ["hydra.launcher.view=none", "hydra.launcher.backoff_s=0.01"]
MINE = """
import os
from pathlib import Path

def dying(record):
    '''Ends its process when a run comes to round 3, as often as there are files to say so.'''
    for file in sorted(Path().glob("die-*")) if record[-1]["round"] == 3 else ():
        file.unlink()
        os.kill(os.getpid(), 9)
    return {"alive": 1.0}
"""


def command(folder, *arguments, threads="1"):
    # Torch would take OMP_NUM_THREADS for its own.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "OMP_NUM_THREADS": threads}
    done = subprocess.run(
        [sys.executable, "-m", "flgo_hydra", *arguments, *TASK],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for path in folder.glob("*/result.json") if "-m" not in arguments else folder.glob("sweep/*/result.json"):
        result = json.loads(path.read_text())
        lines = [json.loads(line) for line in (path.parent / "rounds.jsonl").read_text().splitlines()]
        point = (result["option"]["lr"], result["seed"])
        found[point] = result["engine"], [{k: v for k, v in line.items() if k != "seconds"} for line in lines]
    return found


@pytest.fixture
def folders(tmp_path):
    """Folders of their own with the user's code in them, made as they are asked for."""

    def make(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(MINE)
        return tmp_path / name

    return make


@pytest.mark.slow
def test_slots_order_kills_and_threads_change_no_digit(folders):
    first = command(
        folders("first"), "-m", "lr=0.1,0.03", "seed=0,1", *SWEEP, "hydra.sweep.dir=sweep", "hydra.launcher.slots=1"
    )
    disturbed = folders("disturbed")
    for number in range(2):
        (disturbed / f"die-{number}").touch()
    second = command(
        *(disturbed, "-m", "seed=1,0", "lr=0.03,0.1", *SWEEP),
        *("hydra.sweep.dir=sweep", "hydra.launcher.slots=4", "hydra.launcher.max_retries=9"),
        threads="3",
    )
    alone = command(folders("alone"), "lr=0.03", "seed=1", "hydra.run.dir=run", threads="2")
    assert not list(disturbed.glob("die-*"))
    assert len(first) == 4 and second == first
    assert alone == {(0.03, 1): first[0.03, 1]}
    engines = [engine for engine, _ in first.values()]
    assert engines == [engines[0]] * 4  # of all points and seeds
    assert (engines[0]["chosen_by"], engines[0]["num_threads"]) == ("cost model", 1)


@pytest.mark.slow
def test_who_is_fused_with_whom_changes_no_digit(folders):
    """Groups of three and one, or of two and two."""
    sweep = ["-m", "lr=0.1,0.03", "seed=0,1", *SWEEP, "hydra.sweep.dir=sweep"]
    three = command(folders("three"), *sweep, "hydra.launcher.fuse=3")
    two = command(folders("two"), *sweep, "hydra.launcher.fuse=2")
    assert len(three) == 4
    assert {point: lines for point, (_, lines) in three.items()} == {p: lines for p, (_, lines) in two.items()}
    assert {engine["backend"] for engine, _ in (*three.values(), *two.values())} == {"fused"}
    assert {engine["fuse"] for engine, _ in three.values()} == {3}
    assert {engine["num_threads"] for engine, _ in three.values()} == {1}
