"""Whose batch statistics are: averaged, each client's own, or the server's alone."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.config.option import PLAIN
from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedbn import FedBN
from flgo_hydra.federated.backend.fused import FusedBackend, Member
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.clients.personal import Personal
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.data.on_device import to_data
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.rounds import RoundWork
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

STATISTICS = ("1.running_mean", "1.running_var", "1.num_batches_tracked")


class Local(FedAvg):
    """SiloBN (Andreux et al., Siloed Federated Learning for Multi-Centric Histopathology Datasets, DART 2020):
    statistics are the clients', scales and shifts global."""

    def bind(self, model):
        self.private = frozenset(STATISTICS)


class Servers(FedAvg):
    """Statistics are the server's, and never change."""

    def bind(self, model):
        self.fixed_buffers = frozenset(STATISTICS)


def model(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()


@pytest.fixture
def data(make_ragged_task):
    return to_data(make_ragged_task((7, 3, 12, 4)), torch.device("cpu"), torch.float64)


BACKENDS = {
    "plain": partial(LoopBackend, engine=PLAIN),
    "recorded": LoopBackend,
    "side by side": partial(VmapBackend, lanes=3),
    "side by side, plain": partial(VmapBackend, lanes=2, engine=PLAIN),
}


def begin(algorithm, made, data, build, **work):
    step = LocalStep(algorithm, build_optimizer("sgd"))
    work = LocalWork(**{"batch_size": -1, "num_epochs": 2, "num_steps": None, "seed": 0, **work})
    backend = build(made, data, step, work)
    server = server_state(made, algorithm)
    loop = backend if isinstance(backend, LoopBackend) else backend._loop
    first = loop.own_buffers.first(algorithm.init_client(server.params), server.buffers)
    return backend, server, ClientStates(first, len(data.offsets) - 1)


def train(data, algorithm, build, num_rounds=3, **work):
    backend, server, clients = begin(algorithm, model(), data, build, **work)
    sizes = np.diff(data.offsets)
    for r in range(1, num_rounds + 1):
        cohort = sample_cohort(sizes, 0.75, "uniform", "other", algorithm.weighting, np.random.default_rng(r))
        server = backend.train(server, clients, cohort, {"lr": 0.1}, r)
    return server, clients, backend


@pytest.mark.parametrize("algorithm", [FedBN, Local, Servers])
@pytest.mark.parametrize("batch_size", [-1, 5])
def test_whoever_trains(data, algorithm, batch_size):
    ends = {
        name: train(data, algorithm(), build, batch_size=batch_size, num_steps=4) for name, build in BACKENDS.items()
    }
    plain, kept, _ = ends["plain"]
    for name, (server, clients, backend) in ends.items():
        assert backend.note["backend"] == ("vmap" if name.startswith("side") else "loop"), backend.note
        for tensors, others in ((plain.params, server.params), (plain.buffers, server.buffers)):
            for key, t in tensors.items():
                torch.testing.assert_close(others[key], t, rtol=0, atol=1e-12)
        theirs = clients.get_many(range(4))
        for state, tensors in kept.get_many(range(4)).items():
            for key, rows in tensors.items():
                torch.testing.assert_close(theirs[state][key], rows, rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", [FedBN, Local, Servers])
def test_those_of_the_server_stay_as_they_were(data, algorithm):
    first = {name: b.clone() for name, b in model().named_buffers()}
    server, _, _ = train(data, algorithm(), LoopBackend)
    assert all(torch.equal(server.buffers[name], b) for name, b in first.items())
    server, _, _ = train(data, FedAvg(), LoopBackend)
    assert not any(torch.equal(server.buffers[name], b) for name, b in first.items())


def test_a_client_goes_on_with_its_own(data):
    """Client 0 alone takes part: its statistics are those of its model trained on and on, its server's shared part."""
    algorithm = FedBN()
    backend, server, clients = begin(algorithm, model(), data, LoopBackend, num_epochs=1)
    cohort = sample_cohort(np.array([7]), 1.0, "full", "other", "samples", np.random.default_rng(0))
    for r in (1, 2, 3):
        server = backend.train(server, clients, cohort, {"lr": 0.1}, r)
    alone = model()
    sgd = torch.optim.SGD(alone.parameters(), lr=0.1)
    x, y = data.client(0)
    for _ in range(3):
        sgd.zero_grad()
        data.mean_criterion(alone(x), y).backward()
        sgd.step()
    own = clients.get(0)
    for name, value in alone.state_dict().items():
        mine = own["buffers"].get(name, own["own"].get(name, server.params.get(name)))
        torch.testing.assert_close(mine, value, rtol=0, atol=1e-13)
    assert set(own["buffers"]) == set(STATISTICS) and int(own["buffers"]["1.num_batches_tracked"]) == 3
    # The others have the first ones still.
    assert torch.equal(clients.get(1)["buffers"]["1.running_mean"], torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("algorithm", [FedBN, Local])
def test_its_own_model_is_evaluated_with_them(data, algorithm):
    made = algorithm()
    server, clients, backend = train(data, made, LoopBackend)
    found = Personal(backend.model, data, made)(server, clients)
    total = 0.0
    for k in range(3):
        at = slice(data.valid_offsets[k], data.valid_offsets[k + 1])
        own = model().eval()
        kept = clients.get(k)
        own.load_state_dict({**server.params, **server.buffers, **kept.get("own", {}), **kept["buffers"]})
        with torch.no_grad():
            losses = data.criterion(own(data.valid.x[at]), data.valid.y[at])
        total += float((losses * data.valid.weights[at]).sum())
    assert found["personal_valid_loss"] == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("algorithm", [FedBN, Local, Servers])
def test_several_runs_at_once(data, algorithm):
    sizes = np.diff(data.offsets)

    def member(seed):
        made = algorithm()
        step, work = LocalStep(made, build_optimizer("sgd")), LocalWork(-1, 2, None, seed=seed)
        return Member(made, "sgd", 0.0, 0.0, 0.0, work, LoopBackend(model(seed), data, step, work, engine=PLAIN))

    def start(members):
        servers = {i: server_state(one.loop.model, one.algorithm) for i, one in members.items()}
        kept = {
            i: ClientStates(
                one.loop.own_buffers.first(one.algorithm.init_client(servers[i].params), servers[i].buffers), len(sizes)
            )
            for i, one in members.items()
        }
        return servers, kept

    def works(r, servers, kept):
        cohorts = [
            sample_cohort(sizes, 0.75, "uniform", "other", "samples", np.random.default_rng(r + i)) for i in (0, 9)
        ]
        return {i: RoundWork(servers[i], kept[i], cohorts[i], {"lr": 0.1 + i}, r) for i in servers}

    members, alone = ({i: member(i) for i in (0, 1)} for _ in range(2))
    fused = FusedBackend(model(), data, members, 2)
    (ours, my_kept), (theirs, their_kept) = start(members), start(alone)
    for r in (1, 2, 3):
        ours = fused.train(works(r, ours, my_kept))
        for i, work in works(r, theirs, their_kept).items():
            theirs[i] = alone[i].loop.train(work.server, work.clients, work.cohort, work.hyper, r)
    for i in (0, 1):
        for name, t in {**theirs[i].params, **theirs[i].buffers}.items():
            torch.testing.assert_close({**ours[i].params, **ours[i].buffers}[name], t, rtol=0, atol=1e-12)
        mine = my_kept[i].get_many(range(4))
        for state, tensors in their_kept[i].get_many(range(4)).items():
            for name, rows in tensors.items():
                torch.testing.assert_close(mine[state][name], rows, rtol=0, atol=1e-12)


def named(private=(), fixed=(), kept=None):
    class Wrong(Algorithm):
        def bind(self, model):
            self.private, self.fixed_buffers = frozenset(private), frozenset(fixed)

        def init_client(self, params):
            return kept or {}

    return Wrong()


@pytest.mark.parametrize(
    "algorithm, message",
    [
        (named(private=["1.mean"]), "`private` of Wrong names `1.mean`, which is no parameter or buffer of the model"),
        (named(fixed=["1.weight"]), "`fixed_buffers` of Wrong names `1.weight`, which is no buffer of the model"),
        (named(STATISTICS, kept={"buffers": {}}), "`init_client` of Wrong has an entry `buffers`"),
    ],
)
def test_names_that_mean_nothing(data, algorithm, message):
    with pytest.raises(Refused, match=message):
        begin(algorithm, model(), data, LoopBackend)
