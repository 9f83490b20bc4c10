"""With `hydra.job.chdir=true`, relative paths mean where the command was typed."""

import os
from pathlib import Path

import numpy as np
import pytest

from flgo_hydra import where_typed
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_result

KEYS = (
    *("task=npz", "task.path=d.npz", "task.cache_dir=cache", "task.num_clients=3", "initial_weights=w.safetensors"),
    *("model=logistic", "num_rounds=1", "num_steps=1", "device=cpu", "hydra.job.chdir=true"),
)
NOTES = """
from pathlib import Path

def notes(model, data, task):
    Path("note.txt").write_text("written where the job works")
    return {}
"""


@pytest.fixture
def typed(empty_folder):
    """A folder with what a command names."""
    import torch

    from flgo_hydra.federated.weights import dump_weights

    rng = np.random.default_rng(0)
    np.savez("d.npz", x_train=rng.random((60, 4), np.float32), y_train=np.arange(60) % 2)
    weights = {"output.weight": torch.zeros(2, 4), "output.bias": torch.zeros(2)}
    Path("w.safetensors").write_bytes(dump_weights(weights))
    Path("own_notes.py").write_text(NOTES)
    return empty_folder


def test_a_single_run(command, typed):
    done = command(*KEYS, "metrics=own_notes.notes", "hydra.run.dir=run")
    assert done.status == 0, done.err
    assert read_result(RunPaths(typed / "run")).option["initial_weights"] == "w.safetensors"
    assert (typed / "run" / "note.txt").exists() and not (typed / "note.txt").exists()
    assert (typed / "cache" / "flgo_hydra" / "tasks").is_dir() and not (typed / "run" / "cache").exists()
    assert Path.cwd() == typed
    again = command(*KEYS, "metrics=own_notes.notes", "hydra.run.dir=run")
    assert again.status == 0 and "already finished" in again.out + again.err


@pytest.mark.parametrize("launcher", ["flgo_hydra", "basic"])
@pytest.mark.few(1)
def test_a_sweep_in_every_launcher(command, typed, launcher):
    arguments = ("-m", *KEYS, "lr=0.1,0.2", f"hydra/launcher={launcher}", "hydra.sweeper.storage=sqlite:///s.db")
    done = command(*arguments, "hydra.sweep.dir=sweep")
    assert done.status == 0, done.out + done.err
    assert sorted(path.parent.name for path in typed.glob("sweep/*/result.json")) == ["0", "1"]
    assert [path.relative_to(typed).parts for path in typed.rglob("*.db")] == [("s.db",)]
    again = command(*arguments, "hydra.sweep.dir=sweep")
    assert again.status == 0 and Path.cwd() == typed, again.err


def test_a_folder_that_is_gone_is_not_entered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with where_typed.known(str(tmp_path / "gone")), where_typed.entered():
        assert Path.cwd() == tmp_path
    (tmp_path / "there").mkdir()
    with where_typed.known(str(tmp_path / "there")):
        with pytest.raises(KeyError), where_typed.entered():
            assert os.getcwd() == str(tmp_path / "there")
            raise KeyError
        assert Path.cwd() == tmp_path
    with where_typed.entered():
        assert Path.cwd() == tmp_path
