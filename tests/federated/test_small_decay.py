"""A weight decay or a pull that is small beside a float32 parameter is not lost, in any form of a step.

lr * decay = 2.9e-8 is below half the distance of float32 numbers: p * (1 - lr * decay) is p. Added to the gradient, as
the written step does, the decay of many steps is there.
"""

import functools
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.config.option import PLAIN, EngineConf
from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedprox import FedProx
from flgo_hydra.federated.algorithm.scaffold import Scaffold
from flgo_hydra.federated.backend import extent
from flgo_hydra.federated.backend.fused import FusedBackend, Member
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.data.on_device import to_data
from flgo_hydra.federated.data.task import Task
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.rounds import RoundWork
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

CPU = torch.device("cpu")
NUM_STEPS = 300
FORMS = {
    "plain": partial(LoopBackend, engine=PLAIN),
    "recorded": LoopBackend,
    "vmap": partial(VmapBackend, lanes=2, engine=EngineConf(dual="off")),
    "dual": partial(VmapBackend, lanes=2),
    "fused": None,
    "fused, dual": None,
}


def task(sizes):
    rng = np.random.default_rng(0)
    total = sum(sizes) + 4
    x, y = rng.normal(size=(total, 30)).astype(np.float32), rng.integers(0, 40, total)
    return Task(
        "wide", x[:-4], y[:-4], np.cumsum([0, *sizes]), x[-4:], y[-4:],
        np.linspace(0, 4, len(sizes) + 1).astype(int), x[-4:], y[-4:], 40,
    )  # fmt: skip


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 60), nn.Tanh(), nn.Linear(60, 40))


class Pulled(Algorithm):
    """Stands for a user's own: a small pull to the other side of where the client starts."""

    def correct(self, grads, params, client, hyper):
        return {name: g + hyper["pull"] * (params[name] + client.anchor[name]) for name, g in grads.items()}


def change(form, dtype, algorithm, hyper, settings, sizes):
    """What the server's model becomes in one round of many steps, minus what it was."""
    data = to_data(task(sizes), CPU, dtype)
    model = mlp().to(dtype)
    settings = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0, **settings}
    step = LocalStep(algorithm, build_optimizer(**settings))
    work = LocalWork(8, 1, NUM_STEPS, seed=3)
    server = server_state(model, algorithm)
    states = [ClientStates(algorithm.init_client(server.params), len(sizes)) for _ in range(2)]
    cohort = sample_cohort(np.array(sizes), 1.0, "full", "other", algorithm.weighting, np.random.default_rng(0))
    with torch.no_grad():
        if algorithm.init_server(server.params):
            control = {name: 0.01 * torch.ones_like(p) for name, p in server.params.items()}
            server.state = {"control": {name: hyper.get("c", 0.0) * p for name, p in control.items()}}
    if form.startswith("fused"):
        loop = LoopBackend(model, data, step, work, engine=PLAIN)
        numbers = (settings["name"], settings["momentum"], settings["weight_decay"], 0.0)
        members = {i: Member(algorithm, *numbers, work, loop) for i in range(2)}
        backend = FusedBackend(model, data, members, 8, EngineConf(dual="auto" if form.endswith("dual") else "off"))
        end = backend.train({i: RoundWork(server, states[i], cohort, hyper, 1) for i in range(2)})[1]
    else:
        backend = FORMS[form](model, data, step, work)
        end = backend.train(server, states[0], cohort, hyper, 1)
    note = backend.note
    assert note.get("dual_layers", []) == (["0.weight"] if form.endswith("dual") else [])
    assert "why_not_compiled" not in note or form == "plain"
    return torch.cat([(end.params[name] - p).double().flatten() for name, p in server.params.items()])


CASES = {
    "decay 2.9e-8": (FedAvg(), {}, {"weight_decay": 2.9e-5}, {}),
    "decay 1e-9": (FedAvg(), {}, {"weight_decay": 1e-6}, {}),
    "with momentum": (FedAvg(), {}, {"weight_decay": 1e-6, "momentum": 0.9}, {"momentum": 0.9}),
    "own pull": (Pulled(), {"pull": 1e-5}, {}, {}),
    "fedprox": (FedProx(), {"mu": 0.5}, {"weight_decay": 2e-6}, {}),
    "scaffold": (Scaffold(), {"eta": 1.0}, {"weight_decay": 2e-6}, {}),
    "small control": (Scaffold(), {"eta": 1.0, "c": 1e-3}, {}, {}),  # of 1e-5, so that lr * c = 1e-8
}


@functools.cache
def effect(form, dtype, case, sizes):
    """What the decay, the pull or the control does to the model."""
    algorithm, hyper, settings, without = CASES[case]
    off = {**hyper, "lr": 1e-3} | dict.fromkeys({"pull", "c"} & set(hyper), 0.0)
    with_it = change(form, dtype, algorithm, {**hyper, "lr": 1e-3}, settings, sizes)
    return with_it - change(form, dtype, algorithm, off, without, sizes)


def assert_alike(effect, wanted):
    """Along what it is in float64: roundings of single parameters average out."""
    assert float(effect @ wanted / (wanted @ wanted)) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.few(4)
def test_it_adds_up_over_many_steps(monkeypatch, form, case):
    monkeypatch.setattr(extent, "_DUAL_PAYS", 1e9)
    assert_alike(effect(form, torch.float32, case, (40, 40)), effect("plain", torch.float64, case, (40, 40)))


@pytest.mark.parametrize("case", ["decay 1e-9", "fedprox"])
@pytest.mark.parametrize("form", ["vmap", "dual", "fused"])
def test_with_masks(monkeypatch, form, case):
    monkeypatch.setattr(extent, "_DUAL_PAYS", 1e9)
    assert_alike(effect(form, torch.float32, case, (40, 13)), effect("plain", torch.float64, case, (40, 13)))


@pytest.mark.parametrize("form", ["plain", "recorded", "vmap", "fused"])
def test_decoupled_decay_too(form):
    """torch.optim.AdamW multiplies by 1 - lr * decay, and has no such decay in float32."""
    effects = []
    for dtype, how in ((torch.float64, "plain"), (torch.float32, form)):
        ends = [
            change(how, dtype, FedAvg(), {"lr": 1e-3}, {"name": "adamw", "weight_decay": decay}, (40, 40))
            for decay in (2e-5, 0.0)
        ]
        effects.append(ends[0] - ends[1])
    assert_alike(effects[1], effects[0])


def test_plain_steps_are_those_of_torch_optim():
    """In float32 too, where both round alike."""
    torch.manual_seed(0)
    ours = theirs = None
    for optimizer in ("ours", "theirs"):
        data, model = to_data(task((40,)), CPU, torch.float32), mlp()
        step = LocalStep(FedAvg(), build_optimizer("sgd", 0.0, 2.9e-5))
        work = LocalWork(8, 1, NUM_STEPS, seed=3)
        if optimizer == "ours":
            cohort = sample_cohort(np.array([40]), 1.0, "full", "other", "samples", np.random.default_rng(0))
            backend = LoopBackend(model, data, step, work, engine=PLAIN)
            start = server_state(model, FedAvg())
            ours = backend.train(start, ClientStates({}, 1), cohort, {"lr": 1e-3}, 1).params
            continue
        sgd = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=2.9e-5)
        for rows in work.orders(np.array([0, 40]), np.array([0]), 1)[0].batches():
            sgd.zero_grad()
            data.mean_criterion(model(data.x_train[rows]), data.y_train[rows]).backward()
            sgd.step()
        theirs = dict(model.named_parameters())
    for name, p in ours.items():
        torch.testing.assert_close(p, theirs[name].detach(), rtol=0, atol=1e-6)
