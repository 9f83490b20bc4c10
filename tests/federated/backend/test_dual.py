"""The dual form of the first layer: neither its weights nor the samples are touched in a step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.config.option import PLAIN
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedprox import FedProx
from flgo_hydra.federated.backend import extent
from flgo_hydra.federated.backend.extent import extent_of
from flgo_hydra.federated.backend.lane_differences import LaneDifferences
from flgo_hydra.federated.backend.lane_tensors import Numbers
from flgo_hydra.federated.backend.lanes import Lanes, Recipe
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.data.on_device import to_data
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(extent, "_DUAL_PAYS", 1e9)


def lanes_of(model, data, algorithm, optimizer, batch_size=4):
    step, work = LocalStep(algorithm, optimizer), LocalWork(batch_size, 2, None, seed=3)
    loop = LoopBackend(model, data, step, work, engine=PLAIN)
    recipe = Recipe(algorithm, optimizer.num_slots, lambda numbers: step)
    num_clients = len(data.offsets) - 1
    made = Lanes(model, data, loop, recipe, extent_of(data, work, float("inf"), num_clients), 1, num_clients)
    orders = work.orders(np.array(data.offsets), np.arange(len(data.offsets) - 1), 1)
    return made, loop, orders


def assert_ready(made, server, hyper, loop):
    """All kinds of steps are recorded, and do what the loop does."""
    made.record(made.extent.kinds, [Numbers(hyper)])
    assert LaneDifferences(made, {0: loop}, [server], [Numbers(hyper)]).of_steps(is_rounded=False) is None


def test_a_step_reads_neither_weights_nor_samples(make_ragged_task, make_mlp):
    data, model = to_data(make_ragged_task((8, 8, 8)), CPU, torch.float64), make_mlp()
    made, loop, orders = lanes_of(model, data, FedAvg(), build_optimizer("sgd"))
    server = server_state(model, FedAvg())
    assert_ready(made, server, {"lr": 0.1}, loop)
    (kind,) = made._kinds.values()
    assert not kind.program.reads(made.tensors.params["0.weight"]) and not kind.program.reads(kind.x)
    assert kind.program.reads(made.tensors.params["2.weight"])
    assert made.note["dual_layers"] == ["0.weight"]


@pytest.mark.parametrize("optimizer", [build_optimizer("sgd"), build_optimizer("momentum", 0.9, 0.1)])
@pytest.mark.parametrize("algorithm, numbers", [(FedAvg(), {}), (FedProx(), {"mu": 0.5})])
def test_the_mean_change_is_that_of_the_weights(ragged, make_mlp, algorithm, numbers, optimizer):
    """What the servers are sent is computed without the clients' weights."""
    model, weights = make_mlp(), np.array([0.4, 0.3, 0.2, 0.1])
    made, loop, orders = lanes_of(model, ragged, algorithm, optimizer)
    server = server_state(model, algorithm)
    hyper = {"lr": 0.1, **numbers}
    assert_ready(made, server, hyper, loop)
    with torch.no_grad():
        made.begin([server], [Numbers(hyper)], orders, {}, made.facts_at_trial(), made.ids_at_trial())
        made.run(orders)
        message, _, _ = made.mean(np.stack([weights] * 3), [len(order) for order in orders])
        made.put_weights()
        changes = made.tensors.params["0.weight"] - server.params["0.weight"]
        expected = torch.einsum("h,hoi->oi", torch.from_numpy(weights), changes)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(message["update"]["0.weight"][0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 3)),  # nothing but the layer
        lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)),
    ],
)
def test_forms_of_models_that_have_it(ragged, build):
    made, loop, orders = lanes_of(build().double(), ragged, FedAvg(), build_optimizer("sgd"))
    server = server_state(made._model, FedAvg())
    assert_ready(made, server, {"lr": 0.1}, loop)
    assert len(made.note["dual_layers"]) == 1


def test_one_lane_has_it_too(make_ragged_task, make_mlp):
    data = to_data(make_ragged_task((8,)), CPU, torch.float64)
    made, loop, orders = lanes_of(make_mlp(), data, FedAvg(), build_optimizer("sgd"))
    server = server_state(made._model, FedAvg())
    assert_ready(made, server, {"lr": 0.1}, loop)
    assert made.note["dual_layers"] == ["0.weight"]


def test_frozen_parameters_are_not_copied_for_each_client(make_ragged_task, make_mlp):
    """A frozen backbone times the cohort would not fit."""
    data, model = to_data(make_ragged_task((8, 8, 8)), CPU, torch.float64), make_mlp()
    model[0].requires_grad_(False)
    made, loop, orders = lanes_of(model, data, FedAvg(), build_optimizer("sgd"))
    server = server_state(model, FedAvg())
    assert_ready(made, server, {"lr": 0.1}, loop)
    assert {name: t.shape for name, t in made.tensors.frozen.items()} == {"0.weight": (4, 5), "0.bias": (4,)}
    assert made.tensors.buffers == {}


class Tied(nn.Module):
    """Uses its weights twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))[:, :3]


class Penalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        return self.layer(x) + self.layer.weight.square().sum()


@pytest.mark.parametrize(
    "build, optimizer",
    [
        (Tied, build_optimizer("sgd")),
        (Penalised, build_optimizer("sgd")),
        (lambda: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 3)), build_optimizer("sgd")),
        (lambda: nn.Linear(5, 3), build_optimizer("adam")),
    ],
)
def test_what_has_no_dual_form_keeps_its_weights(ragged, build, optimizer):
    made, loop, orders = lanes_of(build().double(), ragged, FedAvg(), optimizer)
    server = server_state(made._model, FedAvg())
    assert_ready(made, server, {"lr": 0.1}, loop)
    assert made.note["dual_layers"] == [] and made.note["compiled_with_masks"]


def dual_layers(model, data, step, work):
    backend = VmapBackend(model.double(), data, step, work, lanes=2)
    backend.prepare(server_state(model, step.algorithm), {"lr": 0.1})
    return backend.note["dual_layers"]


def test_it_is_taken_where_it_is_less_work(make_ragged_task, monkeypatch):
    """2 epochs over 8 samples of 5 features: the Gram matrix alone costs what the epochs do."""
    monkeypatch.undo()
    data = to_data(make_ragged_task((8, 8)), CPU, torch.float64)
    step, work = LocalStep(FedAvg(), build_optimizer("sgd")), LocalWork(4, 2, None, 3)
    for epochs, pays in ((2, False), (40, False)):
        work = LocalWork(4, epochs, None, 3)
        assert bool(dual_layers(nn.Linear(5, 3), data, step, work)) == pays
    wide = to_data(make_ragged_task((8, 8)), CPU, torch.float64)
    valid, test = (replace(samples, x=samples.x.repeat(1, 40)) for samples in (wide.valid, wide.test))
    wide = replace(wide, x_train=wide.x_train.repeat(1, 40), valid=valid, test=test)
    assert dual_layers(nn.Linear(200, 3), wide, step, LocalWork(4, 5, None, 3)) == ["weight"]
