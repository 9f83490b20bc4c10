"""Parts in whole runs: data of hostile clients, who takes part, a sweep over a part's number."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.parts.base import Hostile, Selection
from flgo_hydra.federated.parts.build import Named, build_parts
from flgo_hydra.federated.parts.composed import hostile_clients
from flgo_hydra.federated.parts.in_a_run import losses_of, poisoned, require_fitting, selecting
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.training import server_state

HERE = "flgo_hydra.federated.parts"
FLIP = {"_target_": f"{HERE}.label_flip.LabelFlip", "share": 0.5}


def test_hostile_clients_alone_have_other_labels(ragged):
    parts, numbers = build_parts({"flip": FLIP})
    before = ragged.y_train.clone()
    data = poisoned(ragged, parts, numbers, seed=0)
    who = hostile_clients(parts, {"flip": 0.5}, 4, 0)["flip"]
    assert len(who) == 2 and torch.equal(ragged.y_train, before)
    for k in range(4):
        y, was = data.client(k)[1], ragged.client(k)[1]
        assert torch.equal(y, 2 - was if k in who else was)
    assert torch.equal(data.x_train, ragged.x_train)


class Odd(Hostile):
    def data(self, x, y, num_classes):
        return x[:-1], y


class Beyond(Hostile):
    def data(self, x, y, num_classes):
        return x, y + num_classes


@pytest.mark.parametrize("kind, message", [(Odd, "inputs of the shape"), (Beyond, "classes from 0 to 2")])
def test_data_that_are_none(ragged, kind, message):
    with pytest.raises(Refused, match=f"`data` of `parts.x` must return {message}"):
        poisoned(ragged, [Named("x", kind())], {"parts.x.share": 1.0}, 0)


def test_losses_are_of_all_training_samples(ragged, make_mlp):
    model = make_mlp()
    found = losses_of(model, ragged, np.array([2, 0]))
    with torch.no_grad():
        expected = [ragged.mean_criterion(model(x), y).item() for x, y in (ragged.client(2), ragged.client(0))]
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert model.training


class Given(Selection):
    def __init__(self, ids):
        self.ids = ids

    def draw(self, rng, num_samples, size, losses, hyper):
        return self.ids


@pytest.mark.parametrize("ids", [[], [1, 1], [4], [-1], [[0]], [0.5], 2])
def test_a_selection_that_is_none(ragged, make_mlp, ids):
    model = make_mlp()
    select = selecting(Named("s", Given(ids)), lambda server: model, ragged, {})
    with pytest.raises(Refused, match="`draw` of `parts.s` must return ids of distinct clients, from 0 to 3"):
        select(np.random.default_rng(0), np.diff(ragged.offsets), 0.5, server_state(model, FedAvg()))


@pytest.mark.parametrize(
    "target, options, message",
    [
        ("power_of_choice.PowerOfChoice", {"sample": "md"}, "`sample=md` has no effect with `parts.x`"),
        ("median.Median", {"aggregate": "weighted_com"}, "`aggregate=weighted_com` is a weighted mean"),
    ],
)
def test_options_that_mean_nothing_with_a_part(target, options, message):
    numbers = {"candidates": 5} if "choice" in target else {}
    parts, _ = build_parts({"x": {"_target_": f"{HERE}.{target}", **numbers}})
    with pytest.raises(ValueError, match=message):
        require_fitting(parts, OptionConf(**options))


FLGO = ["algorithm=flgo", "algorithm.module=flgo.algorithm.fedavg"]
SMALL = [
    *("task=synthetic", "task.num_clients=6", "task.source.num_features=5", "model=logistic", "proportion=0.5"),
    *("num_epochs=1", "device=cpu", "dtype=float64", f"+parts.top._target_={HERE}.top_k.TopK"),
]


def run(folder, *arguments):
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def rounds_of(folder):
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_sweep_over_a_parts_number(tmp_path):
    sweep = run(tmp_path, "flgo_hydra", "-m", *SMALL, "+parts.top.share=0.1,1.0", "num_rounds=6", "hydra.sweep.dir=s")
    assert sweep.returncode == 0, sweep.stderr
    sparse, whole = (rounds_of(tmp_path / "s" / job) for job in ("0", "1"))
    assert len(sparse) == len(whole) == 7 and sparse != whole and sparse[0] == whole[0]


def test_a_sweep_with_an_unlawful_number_does_not_begin(tmp_path):
    sweep = run(tmp_path, "flgo_hydra", "-m", *SMALL, "+parts.top.share=0.1,7", "hydra.sweep.dir=s")
    assert sweep.returncode == 1 and not (tmp_path / "s").exists()
    assert "`0 <= parts.top.share <= 1` must hold, but got 7" in sweep.stderr and "Traceback" not in sweep.stderr


def test_flgos_algorithms_have_no_parts(tmp_path):
    refused = run(tmp_path, "flgo_hydra", *SMALL, "+parts.top.share=0.1", *FLGO)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "`parts` are of our algorithms" in refused.stderr
