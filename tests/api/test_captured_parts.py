"""Models, algorithms and metrics that share a text and differ in what they captured, each trained as itself."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import functools, json
import torch
from torch import nn
import flgo_hydra as flgo

TASK = {"name": "digits", "num_clients": 4}
OPTION = {"num_rounds": 1, "num_steps": 1, "no_log_console": True}
SCALE = 1.0


def layers(width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def of_width(width):
    def build(input_shape, num_outputs):
        return layers(width)
    return build


def plain(input_shape, num_outputs, width=2):
    return layers(width)


class Maker:
    def __init__(self, width):
        self.width = width

    def build(self, input_shape, num_outputs):
        return layers(self.width)


def algorithm(scale):
    class Scaled(flgo.Algorithm):
        def update_server(self, params, server, message, participation, hyper):
            return {name: w + scale * message["update"][name] for name, w in params.items()}, server
    return Scaled


class Twice(nn.Module):
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.layers = layers(3)

    def forward(self, x):
        return self.layers(x)


first = Twice


class Twice(nn.Module):
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.layers = layers(33)

    def forward(self, x):
        return self.layers(x)


def size(model, data, task):
    return {"size": float(sum(p.numel() for p in model.parameters()))}


models = [of_width(w) for w in (2, 16, 64)] + [lambda input_shape, num_outputs: layers(5)]
models += [lambda input_shape, num_outputs: layers(6)] + [functools.partial(plain, width=w) for w in (7, 8)]
models += [Maker(9).build, Maker(10).build, first, Twice]
runners = [{"task": TASK, "algorithm": "fedavg", "option": OPTION, "model": m, "metrics": size} for m in models]
runners += [{"task": TASK, "algorithm": algorithm(s), "option": OPTION} for s in (0.0, 1.0, 0.5)]
records = flgo.multi_init_and_run(runners, folder="all")
print("SIZES", json.dumps([record.get("size", [0])[-1] for record in records]))
print("LOSSES", json.dumps([record["val_loss"] for record in records[-3:]]))


def scaled(input_shape, num_outputs):
    return layers(int(3 * SCALE))


for SCALE in (1.0, 2.0):                      # in one folder, call after call
    record = flgo.multi_init_and_run(
        [{"task": TASK, "algorithm": "fedavg", "option": OPTION, "model": scaled, "metrics": size}], folder=f"s{SCALE}"
    )[0]
    print("GLOBAL", record["size"][-1])
runner = flgo.init(TASK, "fedavg", OPTION, scaled)
SCALE = 5.0
try:
    runner.run()
except ValueError as error:
    print("REFUSED", error)
"""


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(tmp_path_factory, cache_folder):
    folder = tmp_path_factory.mktemp("captured")
    (folder / "experiment.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "experiment.py"], cwd=folder, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.partition(" ")[0].isupper()]


def said(out, word):
    return [line.partition(" ")[2] for line in out if line.startswith(f"{word} ")]


def test_each_model_is_its_own(out):
    widths = (2, 16, 64, 5, 6, 7, 8, 9, 10, 3, 33)
    sizes = json.loads(said(out, "SIZES")[0])
    assert sizes[: len(widths)] == [65 * width + 10 * (width + 1) for width in widths]


def test_each_algorithm_is_its_own(out):
    still, whole, half = json.loads(said(out, "LOSSES")[0])
    assert still[0] == still[-1] and whole[-1] < half[-1] < still[-1]


def test_a_global_value_that_changes_between_calls_makes_another_one(out):
    assert said(out, "GLOBAL") == [str(float(65 * width + 10 * (width + 1))) for width in (3, 6)]


def test_what_changes_between_init_and_run_is_refused(out):
    (error,) = said(out, "REFUSED")
    assert "'scaled'" in error and "has changed since" in error
