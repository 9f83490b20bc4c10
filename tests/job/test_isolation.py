"""Jobs that one process runs one after another are as each would be in a process of its own."""

import json
from pathlib import Path

import pytest

CODE = """
import functools
import torch
from torch import nn
from flgo_hydra.federated.algorithm.base import Algorithm

MADE = []
SEEN = {"batches": 0}

class Counts(nn.Linear):
    made = 0

    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape[0] * input_shape[1] * input_shape[2], num_outputs)
        type(self).made += 1
        MADE.append(1)
        self.scale = 1 / (type(self).made + len(MADE))

    def forward(self, x):
        if self.training:
            SEEN["batches"] += 1
        return super().forward(x.flatten(1)) * self.scale / (1 + 0.01 * SEEN["batches"])

@functools.cache
def drawn():
    return float(torch.rand(()))

class Draws(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {name: g * drawn() for name, g in grads.items()}

def calls(model, seen=[]):
    seen.append(1)
    return {"calls": len(seen)}
"""
SMALL = ("task.num_clients=3", "num_rounds=2", "num_steps=2", "model=custom", "model._target_=mine.Counts")
SMALL = (*SMALL, "algorithm=custom", "algorithm._target_=mine.Draws", "algorithm.name=mine", "metrics=mine.calls")


def lines(folder):
    found = [json.loads(line) for line in (Path(folder) / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


@pytest.mark.parametrize(
    "launcher", ["hydra/launcher=basic", pytest.param("hydra.launcher.slots=1", marks=pytest.mark.slow)]
)
def test_what_a_run_keeps_in_modules_is_gone_after_it(command, launcher):
    Path("mine.py").write_text(CODE)
    done = command("-m", launcher, *SMALL, "hydra.sweep.dir=sweep", "lr=0.1,0.2,0.1000001")
    assert done.status == 0, done.out + done.err
    assert command(*SMALL, "lr=0.2", "hydra.run.dir=alone").status == 0
    assert lines("sweep/1") == lines("alone")
    assert [line["calls"] for line in lines("sweep/2")] == [1, 2, 3]


PATCHES = """
import decimal
import logging
import math
import torch
from torch import nn
from flgo_hydra.federated.algorithm.base import Algorithm

class Net(nn.Linear):
    def __init__(self, input_shape, num_outputs, patch=False):
        super().__init__(input_shape[0] * input_shape[1] * input_shape[2], num_outputs)
        if patch:
            torch.tanh = torch.sigmoid

    def forward(self, x):
        return torch.tanh(super().forward(x.flatten(1)))

class Patches(Algorithm):
    def correct(self, grads, params, client, hyper):
        level = logging.getLogger("patches.of.mine").level
        scale = getattr(nn.Linear, "late", 1.0) * getattr(math, "late", 1.0) * (0.5 if level else 1.0)
        return {n: g * scale * (0.5 if decimal.getcontext().prec < 9 else 1.0) for n, g in grads.items()}

    def update_server(self, params, server, message, participation, hyper):
        nn.Linear.late = math.late = 0.5
        logging.getLogger("patches.of.mine").setLevel(10)
        decimal.getcontext().prec = 5
        torch.set_default_dtype(torch.float64)
        return super().update_server(params, server, message, participation, hyper)
"""


def test_what_a_run_changes_in_libraries_is_put_back(command):
    Path("mine.py").write_text(PATCHES)
    small = ["task.num_clients=3", "num_rounds=3", "num_steps=2", "model=custom", "model._target_=mine.Net"]
    small += ["algorithm=custom", "algorithm._target_=mine.Patches", "algorithm.name=mine", "lr=0.1"]
    done = command("-m", "hydra/launcher=basic", *small, "+model.patch=true,false", "hydra.sweep.dir=sweep")
    assert done.status == 0, done.out + done.err
    assert command(*small, "+model.patch=false", "hydra.run.dir=alone").status == 0
    assert lines("sweep/1") == lines("alone") != lines("sweep/0")


def test_a_failed_run_leaves_nothing(command):
    Path("mine.py").write_text(f"{CODE}\n\ndef fails(model):\n    MADE.append(2)\n    raise RuntimeError(len(MADE))\n")
    small = [*SMALL[:-1], "metrics=mine.fails", "hydra.run.dir=failed"]
    first, second = (command(*small) for _ in range(2))
    assert first.status == second.status == 1
    assert first.err.splitlines()[-1] == second.err.splitlines()[-1]


def test_what_is_too_much_to_be_looked_at_is_told(command):
    Path("mine.py").write_text(CODE.replace("MADE = []", "MADE = [[i] for i in range(20_000)]"))
    done = command(*SMALL, "hydra.run.dir=run")
    assert done.status == 0 and "may find what this one changes in its modules: it holds more" in done.out


def test_what_cannot_be_looked_at_is_no_reason_to_fail(command):
    Path("mine.py").write_text(f"{CODE}\nUP = iter(range(9))\n\ndef ups(model):\n    return {{'up': next(UP)}}\n")
    assert command(*SMALL[:-1], "metrics=mine.ups", "hydra.run.dir=run").status == 0
    assert [line["up"] for line in lines("run")] == [0, 1, 2]
