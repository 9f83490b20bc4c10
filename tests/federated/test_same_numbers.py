"""The curves of FLGo 0.4.4, reproduced through our own command line.

`flgo_reference/` holds data, partition, initial weights and curves of FLGo runs that are free of random order: every
client takes part in every round, with all of its samples in each local step.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_rounds

REFERENCE = Path(__file__).with_name("flgo_reference")
SETTING = json.loads((REFERENCE / "digits_dir0.5_n20.json").read_text())
OPTIONS = ["num_rounds=8", "num_steps=3", "lr=0.1", "batch_size=-1", "proportion=1.0", "model.hidden=[64]"]
METRICS = {f"{split}_{metric}" for split in ("valid", "test") for metric in ("loss", "accuracy")}
# FLGo's fedprox takes the even mean of the clients' models, as its paper does.
ALGORITHMS = {
    "fedavg": [],
    "fedprox": ["aggregate=uniform"],
    "scaffold": [],
    "fedavgm": ["algorithm.beta=0.01"],
    "fednova": [],
    "feddyn": ["algorithm.alpha=0.1"],
}


@pytest.fixture
def arguments(empty_folder):
    """The task as `task=npz` takes it, and the weights as `initial_weights` does."""
    split = np.load(REFERENCE / "digits_split.npz")
    client = np.load(REFERENCE / "digits_dir0.5_n20.npz")
    rows = np.concatenate([client["train"], client["val"]])
    np.savez(
        "digits.npz",
        x_train=split["Xtr"][rows],
        y_train=split["ytr"][rows],
        x_test=split["Xte"],
        y_test=split["yte"],
        client=np.concatenate([np.repeat(np.arange(20), client[f"{part}_len"]) for part in ("train", "val")]),
        valid=np.arange(len(rows)) >= len(client["train"]),
    )
    names = {"model.0": "hidden0", "model.2": "output"}
    weights = {
        f"{ours}.{kind}": torch.from_numpy(client[f"w:{theirs}.{kind}"])
        for theirs, ours in names.items()
        for kind in ("weight", "bias")
    }
    save_file(weights, "weights.safetensors")
    return ["task=npz", "task.path=digits.npz", "task/partition=given", "initial_weights=weights.safetensors", *OPTIONS]


def difference(ours, theirs):
    """The largest absolute difference over rounds and metrics."""
    return max(
        abs(line[name] - theirs[name.replace("valid", "val")][int(line["round"])]) for line in ours for name in METRICS
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_flgo_curves_are_reproduced(command, arguments, name):
    theirs = SETTING["results"][name]
    assert theirs["val_loss"][-1] < theirs["val_loss"][0] - 0.1, "curves that stand still show nothing"
    done = command(*arguments, f"algorithm={name}", *ALGORITHMS[name], "hydra.run.dir=run")
    assert done.status == 0, done.err
    ours = read_rounds(RunPaths(Path("run")))
    assert [line["round"] for line in ours] == list(range(SETTING["rounds"] + 1))
    largest = difference(ours, theirs)
    print(f"{name}: {largest:.1e}")
    assert largest < 1e-5


def test_weights_of_another_model_are_refused(command, arguments):
    done = command(*arguments, "model.hidden=[65]")
    assert done.status == 1 and "hidden0.weight (64, 64), not (65, 64)" in done.err
