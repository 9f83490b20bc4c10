"""Swept keys that decide no numbers: every value has its own run, in real sweeps."""

import json
from pathlib import Path

import numpy as np
import pytest

from flgo_hydra.study import rebuild

SOURCE = """
import numpy as np


def arrays(data_dir):
    return dict(np.load(f"{data_dir}/a.npz"))
"""
SMALL = ("task=custom", "task.source._target_=swept_data.arrays", "task.num_clients=2", "num_rounds=1", "num_steps=1")


@pytest.fixture
def folders(empty_folder):
    (empty_folder / "swept_data.py").write_text(SOURCE)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3)), np.arange(40) % 2
    for name, noise in (("clean", 0.0), ("noisy", 1.0)):
        (empty_folder / name).mkdir()
        np.savez(empty_folder / name / "a.npz", x_train=x + noise * rng.standard_normal(x.shape), y_train=y)


def results(folder="sweep"):
    paths = sorted(Path(folder).glob("*/result.json"), key=lambda path: int(path.parent.name))
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize("more", [(), ("hydra.launcher.fuse=2",), ("hydra/launcher=basic",)])
@pytest.mark.few(2)
def test_two_folders_of_data_are_two_points(command, folders, more):
    assert command("-m", *SMALL, "task.data_dir=clean,noisy", "hydra.sweep.dir=sweep", *more).status == 0
    clean, noisy = results()
    assert [clean["task"]["data_dir"], noisy["task"]["data_dir"]] == ["clean", "noisy"]
    assert clean["fingerprint"] == noisy["fingerprint"] and clean["best_valid_loss"] != noisy["best_valid_loss"]
    assert command(*SMALL, "task.data_dir=noisy", "hydra.run.dir=alone").status == 0
    alone = json.loads(Path("alone/result.json").read_text())
    assert noisy["best_valid_loss"] == pytest.approx(alone["best_valid_loss"], abs=1e-6)


@pytest.mark.slow
def test_such_a_sweep_goes_on_and_grows(command, folders):
    sweep = ("-m", "hydra/launcher=basic", "hydra.sweep.dir=sweep", "task.num_clients=2", "num_rounds=1", "num_steps=1")
    assert command(*sweep, "save_best=true").status == 0  # a single point: no key of its identity
    before = Path("sweep/0/result.json").stat().st_mtime_ns
    assert command(*sweep, "save_best=true,false", "seed=0,1").status == 0
    assert len(results()) == 4 and Path("sweep/0/result.json").stat().st_mtime_ns == before
    assert [result["option"]["save_best"] for result in results()] == [True, True, False, False]
    times = [path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")]
    assert command(*sweep, "save_best=false", "seed=0,1").status == 0  # one value of what was an axis
    assert command(*sweep, "save_best=true,false", "seed=1").status == 0
    Path("sweep/study.journal").unlink()
    rebuild.rebuild(Path("sweep"))
    assert command(*sweep, "save_best=true,false", "seed=0,1").status == 0
    assert [path.stat().st_mtime_ns for path in Path("sweep").glob("*/result.json")] == times


@pytest.mark.parametrize(
    "arguments, number",
    [
        (('hydra.sweeper.points=["lr=0.1","lr=0.1 num_threads=1"]',), 2),
        (("num_threads=1,2", "hydra.sweeper.replicate=num_threads", "lr=0.1,0.2"), 4),
        (("engine.backend=loop,vmap", "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=6"), 2),
    ],
)
@pytest.mark.few(1)
def test_in_lists_of_points_replicates_and_searches_too(command, empty_folder, arguments, number):
    small = ("hydra/launcher=basic", "hydra.sweep.dir=sweep", "task.num_clients=2", "num_rounds=1", "num_steps=1")
    assert command("-m", *small, *arguments).status == 0
    assert len(results()) == number
