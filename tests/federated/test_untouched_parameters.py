"""What a step has no gradient for stays as it is, in every form: against loops of `torch.optim`, and bit for bit."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from flgo_hydra.config.option import PLAIN
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
from flgo_hydra.federated.optimizer import StepCounts, build_optimizer, clip
from flgo_hydra.federated.rounds import RoundWork
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

CPU = torch.device("cpu")
FORMS = {
    "plain": partial(LoopBackend, engine=PLAIN),
    "recorded": LoopBackend,
    "vmap": partial(VmapBackend, lanes=2),
    "vmap, plain": partial(VmapBackend, lanes=4, engine=PLAIN),
    "vmap, steps lie ready": partial(VmapBackend, lanes=4, plans=True),
    "fused": None,
}
SETTINGS = {
    "sgd": ({"name": "sgd", "weight_decay": 0.1}, partial(torch.optim.SGD, weight_decay=0.1)),
    "momentum": ({"name": "momentum", "momentum": 0.8}, partial(torch.optim.SGD, momentum=0.8)),
    "adam": ({"name": "adam"}, torch.optim.Adam),
    "adamw": ({"name": "adamw", "weight_decay": 0.2}, partial(torch.optim.AdamW, weight_decay=0.2)),
    "rmsprop": ({"name": "rmsprop", "momentum": 0.5}, partial(torch.optim.RMSprop, momentum=0.5)),
    "adadelta": ({"name": "adadelta", "weight_decay": 0.1}, partial(torch.optim.Adadelta, weight_decay=0.1)),
}
NUMBERS = {FedAvg: {}, FedProx: {"mu": 0.4}, Scaffold: {"eta": 1.0}}


class Heads(nn.Module):
    """A layer, and heads of which a batch may have no use for one."""

    def __init__(self):
        super().__init__()
        self.body, self.one, self.other = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        h = self.body(x).tanh()
        return self.one(h) + self.other(h) if self.uses_both(x) else self.one(h)


class UnusedHead(Heads):
    def uses_both(self, x):
        return False


class BySize(Heads):
    def uses_both(self, x):
        return len(x) == 4  # and not the last batches of 3 and 1


class ByData(Heads):
    def uses_both(self, x):
        return bool(x[0, 0] > 0)


class Detached(Heads):
    def forward(self, x):
        with torch.no_grad():
            h = self.body(x).tanh()
        return self.one(h)


def train(form, build, data, algorithm, hyper, settings, clip_grad=0.0, num_rounds=2, cohorts=None):
    """Returns the server' params and buffers, and the backend, after rounds with everyone."""
    torch.manual_seed(0)
    model = build() if data.x_train.dtype == torch.float32 else build().double()
    settings = {"momentum": 0.0, "weight_decay": 0.0, **settings}
    step = LocalStep(algorithm, build_optimizer(**settings), clip_grad)
    work = LocalWork(4, 2, None, seed=3)
    server = server_state(model, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), len(data.offsets) - 1)
    if form == "fused":
        loop = LoopBackend(model, data, step, work, engine=PLAIN)
        member = Member(
            algorithm, settings["name"], settings["momentum"], settings["weight_decay"], clip_grad, work, loop
        )
        backend = FusedBackend(model, data, {0: member, 1: member}, 8)
    else:
        backend = FORMS[form](model, data, step, work)
    others, other_clients = server, ClientStates(algorithm.init_client(server.params), len(data.offsets) - 1)
    for r in range(1, num_rounds + 1):
        how = cohorts or (1.0, "full", "other")
        cohort = sample_cohort(np.diff(data.offsets), *how, algorithm.weighting, np.random.default_rng(r))
        if form == "fused":
            other = {**hyper, "lr": 0.5 * hyper["lr"]}
            works = {
                0: RoundWork(server, clients, cohort, hyper, r),
                1: RoundWork(others, other_clients, cohort, other, r),
            }
            both = backend.train(works)
            server, others = both[0], both[1]
        else:
            server = backend.train(server, clients, cohort, hyper, r)
    return server, backend, work


def reference(build, data, kind, hyper, make_optimizer, work, clip_grad, num_rounds=2):
    """The same in plain PyTorch; the papers' terms as one would write them there."""
    torch.manual_seed(0)
    server = build().double()
    num_clients = len(data.offsets) - 1
    sizes = np.diff(data.offsets)
    shares = np.full(num_clients, 1 / num_clients) if kind is Scaffold else sizes / sizes.sum()
    c = [torch.zeros_like(p) for p in server.parameters()]
    own = [[torch.zeros_like(p) for p in c] for _ in range(num_clients)]
    for r in range(1, num_rounds + 1):
        start = [p.detach().clone() for p in server.parameters()]
        total, change = [torch.zeros_like(p) for p in start], [torch.zeros_like(p) for p in start]
        for k, order in enumerate(work.orders(np.array(data.offsets), np.arange(num_clients), r)):
            model = copy.deepcopy(server)
            optimizer = make_optimizer(model.parameters(), lr=hyper["lr"])
            for rows in order.batches():
                optimizer.zero_grad(set_to_none=True)
                loss = functional.cross_entropy(model(data.x_train[rows]), data.y_train[rows])
                if kind is FedProx:
                    pairs = zip(model.parameters(), start, strict=True)
                    loss = loss + hyper["mu"] / 2 * sum((p - w).square().sum() for p, w in pairs)
                loss.backward()
                if kind is Scaffold:
                    for p, c_k, c_i in zip(model.parameters(), own[k], c, strict=True):
                        p.grad = (torch.zeros_like(p) if p.grad is None else p.grad) - c_k + c_i
                if clip_grad:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
                optimizer.step()
            for i, p in enumerate(model.parameters()):
                delta = p.detach() - start[i]
                total[i] += shares[k] * delta
                moved = -c[i] - delta / (len(order) * hyper["lr"])
                change[i] += moved / num_clients
                own[k][i] += moved
        with torch.no_grad():
            for i, p in enumerate(server.parameters()):
                p += total[i]
                c[i] += change[i]
    return {name: p.detach() for name, p in server.named_parameters()}


def check(form, build, data, kind, name, clip_grad=0.0):
    settings, make_optimizer = SETTINGS[name]
    hyper = {"lr": 0.05, **NUMBERS[kind]}
    server, backend, work = train(form, build, data, kind(), hyper, settings, clip_grad)
    expected = reference(build, data, kind, hyper, make_optimizer, work, clip_grad)
    for key, p in expected.items():
        torch.testing.assert_close(server.params[key], p, rtol=0, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}")
    return server, backend


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("form", FORMS)
def test_a_head_that_is_never_used_as_in_torch_optim(ragged, monkeypatch, form, name):
    monkeypatch.setattr(extent, "_DUAL_PAYS", 1e9)
    server, backend = check(form, UnusedHead, ragged, FedAvg, name)
    torch.manual_seed(0)
    assert torch.equal(server.params["other.weight"], UnusedHead().double().other.weight.detach())
    if form in ("vmap", "vmap, steps lie ready", "fused"):
        assert backend.note["compiled_with_masks"]
        assert backend.note["dual_layers"] == (["body.weight"] if name in ("sgd", "momentum") else [])
    if form == "recorded":
        assert backend.note == {"backend": "loop", "compiled_batch_sizes": [1, 3, 4]}


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("form", FORMS)
def test_a_layer_behind_no_grad_as_in_torch_optim(ragged, form, name):
    check(form, Detached, ragged, FedAvg, name)


@pytest.mark.parametrize("build", [BySize, ByData])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("form", ["plain", "recorded", "vmap"])
def test_a_head_that_some_batches_use_counts_its_own_steps(ragged, form, name, build):
    """Adam corrects each parameter by the number of its own steps; what vmap cannot do runs in the loop."""
    _, backend = check(form, build, ragged, FedAvg, name)
    if form == "recorded" and build is BySize and name != "adam":
        assert backend.note["compiled_batch_sizes"] == [1, 3, 4]


@pytest.mark.parametrize("clip_grad", [0.0, 0.2])
@pytest.mark.parametrize("kind", [FedAvg, FedProx, Scaffold])
@pytest.mark.parametrize("form", FORMS)
def test_a_term_of_the_objective_acts_on_every_parameter(ragged, form, kind, clip_grad):
    """As it does where it is written into the loss; clipping takes the norm of what is there."""
    check(form, BySize if form in ("plain", "recorded") else UnusedHead, ragged, kind, "sgd", clip_grad)


def test_an_algorithm_that_asks_for_a_missing_gradient_is_told(ragged):
    class Own(Algorithm):
        def correct(self, grads, params, client, hyper):
            return {name: 2 * grads[name] for name in params}

    with pytest.raises(ValueError, match=r"`correct` of Own .*'other.weight'.*grads\.get\(name, 0\.0\)"):
        train("plain", UnusedHead, ragged, Own(), {"lr": 0.1}, {"name": "sgd"})


def test_nothing_to_clip_is_clipped():
    assert clip({}, 1.0) == {}


def test_step_counts():
    counts = StepCounts("ab")
    assert counts.next_of_all("ab") == 1
    assert counts.next("a") == {"a": 2, "b": 1}
    assert counts.next_of_all("ab") is None and counts.next_of_all("b") == 2 and counts.next_of_all("ab") == 3


# What is frozen, and what only stands in the state.


class Frozen(nn.Module):
    """float32 numbers that are no sums of powers of two; a mask, a first minimum, counters and flags."""

    def __init__(self):
        super().__init__()
        self.backbone, self.norm, self.head = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.backbone.requires_grad_(False)
        self.norm.weight.requires_grad_(False)
        self.register_buffer("scale", torch.rand(8) / 3)
        self.register_buffer("negative_zero", torch.tensor(-0.0))
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("ids", torch.tensor([2**53 + 1, 7]))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("rotations", torch.polar(torch.ones(4), torch.rand(4)))

    def forward(self, x):
        return self.head((self.norm(self.backbone(x)) * self.scale).relu())


@pytest.mark.parametrize("form", FORMS)
def test_what_nobody_changes_stays_bit_for_bit(make_ragged_task, form):
    data = to_data(make_ragged_task((8, 4, 8)), CPU, torch.float32)
    torch.manual_seed(0)
    before = {name: t.clone() for name, t in Frozen().state_dict().items()}
    rounds = 40 if form == "plain" else 10
    server, backend, _ = train(form, Frozen, data, FedAvg(), {"lr": 0.1}, {"name": "sgd"}, num_rounds=rounds)
    kept = {name for name, t in server.buffers.items() if t.numpy().tobytes() == before[name].numpy().tobytes()}
    trained = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert server.buffers.keys() - kept == trained
    assert server.buffers["norm.num_batches_tracked"] > 2 * rounds
    assert "why_not_vmap" not in backend.note


@pytest.mark.parametrize("form", FORMS)
def test_weighted_scale_leaves_what_is_frozen(make_ragged_task, form):
    """The absent clients' share shrinks the model that is trained, and nothing else."""
    data = to_data(make_ragged_task((8, 4, 8)), CPU, torch.float32)
    torch.manual_seed(0)
    before = Frozen().backbone.weight
    cohorts = (0.7, "uniform", "weighted_scale")
    server, _, _ = train(form, Frozen, data, FedAvg(), {"lr": 0.1}, {"name": "sgd"}, num_rounds=3, cohorts=cohorts)
    assert torch.equal(server.buffers["backbone.weight"], before)


@pytest.mark.parametrize("form", ["plain", "recorded", "vmap, plain", "fused"])
def test_state_that_begins_at_infinity_is_averaged(make_ragged_task, form):
    """As the first minimum of an observer: the mean is that of the clients' values."""

    class Observer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)
            self.register_buffer("least", torch.tensor(torch.inf))

        def forward(self, x):
            if self.training:
                self.least.copy_(torch.minimum(self.least, x.detach().min()))
            return self.layer(x)

    data = to_data(make_ragged_task((8, 4)), CPU, torch.float64)
    server, _, _ = train(form, Observer, data, FedAvg(), {"lr": 0.1}, {"name": "sgd"}, num_rounds=1)
    expected = (8 * data.x_train[:8].min() + 4 * data.x_train[8:].min()) / 12
    torch.testing.assert_close(server.buffers["least"], expected.double(), rtol=1e-6, atol=0)
