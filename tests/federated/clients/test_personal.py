"""The clients' own models on their own validation samples, by hand and against each alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.clients.personal import Personal
from flgo_hydra.federated.data.on_device import to_data
from flgo_hydra.federated.data.task import Task
from flgo_hydra.federated.evaluation import metrics_of
from flgo_hydra.federated.training import ServerState, server_state


class Own(Algorithm):
    def init_client(self, params):
        return {"own": params}

    def personal(self, params, state):
        return {name: p + state["own"][name] for name, p in params.items()}


def task(valid_sizes, seed=0, num_classes=3):
    rng = np.random.default_rng(seed)
    clients, valid = len(valid_sizes), sum(valid_sizes)
    sizes = rng.integers(2, 9, clients)

    def some(n):
        return rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, num_classes, n)

    (x, y), (xv, yv), (xt, yt) = some(sizes.sum()), some(valid), some(3)
    offsets = [np.concatenate([[0], np.cumsum(one)]) for one in (sizes, valid_sizes)]
    return Task("t", x, y, offsets[0], xv, yv, offsets[1], xt, yt, num_classes)


class Looks(nn.Module):
    """Cannot be a batch dimension: it looks at a number."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 3)

    def forward(self, x):
        return self.line(x) if float(x.sum()) < 1e9 else x


class Half(Algorithm):
    """Every client uses the server's model."""


@pytest.mark.parametrize("algorithm", [Own, Half])
def test_their_own_test_samples(algorithm):
    """Where clients have some, the server's model counts as everyone's that has none of its own."""
    whole = task((3, 1, 0, 7, 2))
    more = task((2, 1, 0, 4, 1), seed=5)
    own = replace(whole, x_own_test=more.x_valid, y_own_test=more.y_valid, own_test_offsets=more.valid_offsets)
    data, made = to_data(own, torch.device("cpu"), torch.float64), algorithm()
    model = nn.Linear(4, 3).double()
    server = server_state(model, made)
    clients = ClientStates(made.init_client(server.params), 5)
    found = Personal(model, data, made)(server, clients)
    as_valid = Personal(model, replace(data, valid=data.own_test, valid_offsets=data.own_test_offsets), made)
    for name, value in as_valid(server, clients).items():
        if name.startswith("personal_valid"):
            assert found[name.replace("valid", "test")] == value
    assert len(found) == 12
    if algorithm is Half:
        assert found["personal_valid_loss"] == pytest.approx(metrics_of(model, data)["valid_loss"], rel=1e-12)
        assert Personal(model, to_data(whole, torch.device("cpu"), torch.float64), made)(server, clients) == {}


@pytest.mark.parametrize("build", [lambda: nn.Linear(4, 3), Looks], ids=["side by side", "one by one"])
@pytest.mark.parametrize("valid_sizes", [(3, 1, 0, 7, 2), (2, 2, 2), tuple(range(1, 14))])
def test_each_is_what_it_is_alone(build, valid_sizes):
    data = to_data(task(valid_sizes), torch.device("cpu"), torch.float64)
    model, algorithm = build().double(), Own()
    server = server_state(model, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), len(valid_sizes))
    torch.manual_seed(1)
    for k in (0, 1):  # the others have what they have at first
        clients.put(k, {"own": {name: torch.randn_like(p) for name, p in server.params.items()}})
    found = Personal(model, data, algorithm)(server, clients)
    losses, rights, weights = [], [], []
    begin = 0
    for k, size in enumerate(valid_sizes):
        if size:
            own = algorithm.personal(server.params, clients.get(k))
            x, y = data.valid.x[begin : begin + size], data.valid.y[begin : begin + size]
            outputs = torch.func.functional_call(model, own, (x,))
            losses.append(float(data.mean_criterion(outputs, y)))
            rights.append(float((outputs.argmax(1) == y).double().mean()))
            weights.append(data.num_samples(k))
            begin += size
    tenth = math.ceil(len(losses) / 10)
    expected = {
        "personal_valid_loss": np.average(losses, weights=weights),
        "personal_valid_loss_worst": max(losses),
        "personal_valid_loss_worst_tenth": np.mean(sorted(losses)[-tenth:]),
        "personal_valid_accuracy": np.average(rights, weights=weights),
        "personal_valid_accuracy_worst": min(rights),
        "personal_valid_accuracy_worst_tenth": np.mean(sorted(rights)[:tenth]),
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_who_uses_the_servers_model_has_none():
    data = to_data(task((1, 2)), torch.device("cpu"), torch.float64)
    model = nn.Linear(4, 3).double()
    server: ServerState = server_state(model, Algorithm())
    assert Personal(model, data, Algorithm())(server, ClientStates({}, 2)) == {}


def test_they_are_recorded_followed_and_stop_early(command, empty_folder):
    import json

    small = ["num_rounds=6", "task.num_clients=5", "model=logistic", "num_steps=2", "proportion=0.6"]
    done = command(*small, "algorithm=ditto", "monitor=personal_valid_loss", "hydra.run.dir=run")
    assert done.status == 0
    lines = [json.loads(line) for line in (empty_folder / "run/rounds.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    # round 0: nobody has trained, and all use the untrained model, which the server has
    assert lines[0]["personal_valid_loss"] == pytest.approx(lines[0]["valid_loss"], rel=1e-6)
    assert lines[0]["personal_valid_accuracy"] == pytest.approx(lines[0]["valid_accuracy"], rel=1e-6)
    best = json.loads((empty_folder / "run/result.json").read_text())["best"]
    assert best["personal_valid_loss"] == min(line["personal_valid_loss"] for line in lines)
    refused = command(*small, "monitor=personal_valid_loss", "hydra.run.dir=none")
    assert refused.status == 1 and "`monitor=personal_valid_loss` is not among the metrics of round 0" in refused.err
