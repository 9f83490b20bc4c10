"""Grids written in YAML: what runs is what was written, each value of its type."""

import json
from pathlib import Path

from flgo_hydra.study.stored.storage import open_study

PRESET = """
# @package _global_
defaults:
  - override /model: custom
  - _self_
num_rounds: 1
num_steps: 1
model:
  _target_: own_model.Net
  tag: null
hydra:
  sweeper:
    params:
      early_stop: [null, 3]
      model.tag: ["true", true, "1", 2, "a,b", "x=y", null]
"""
MODEL = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, input_shape, num_outputs, tag):
        super().__init__(nn.Flatten(), nn.Linear(64, num_outputs))
"""
TAGS = ["true", True, "1", 2, "a,b", "x=y", None]


def test_items_keep_their_types(command, empty_folder):
    (empty_folder / "own" / "experiment").mkdir(parents=True)
    (empty_folder / "own" / "experiment" / "mine.yaml").write_text(PRESET.lstrip())
    (empty_folder / "own_model.py").write_text(MODEL)
    done = command("-m", "--config-dir", "own", "experiment=mine", "hydra.sweep.dir=sweep", "hydra/launcher=basic")
    assert done.status == 0, done.err
    results = [json.loads(Path(f"sweep/{job}/result.json").read_text()) for job in range(14)]
    ran = [(result["option"]["early_stop"], result["model"]["tag"]) for result in results]
    assert [(stop, repr(tag)) for stop, tag in ran] == [(stop, repr(tag)) for stop in (None, 3) for tag in TAGS]
    study = open_study("sweep/study.journal", "_".join(Path("sweep").resolve().parts[-2:]))
    params = [(trial.params["early_stop"], repr(trial.params["model.tag"])) for trial in study.trials]
    assert params == [(stop, repr(tag)) for stop, tag in ran]


def test_what_listed_points_set_is_not_set_besides(command):
    points = 'hydra.sweeper.points=["lr=0.1","lr=0.2"]'
    for besides in ("lr=0.5,0.6", "lr=0.5"):
        done = command("-m", points, besides, "num_rounds=1", "hydra.sweep.dir=sweep")
        assert done.status == 1 and f"`hydra.sweeper.points` sets `lr` (`lr=0.1`), and so does `{besides}`" in done.err
    assert not Path("sweep").exists()
