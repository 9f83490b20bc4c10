"""Whatever a model or an algorithm does, every backend gives the numbers of plain steps, or plain steps it is."""

import copy
import random
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from flgo_hydra.config.option import PLAIN
from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend import extent
from flgo_hydra.federated.backend.lane_differences import LaneDifferences
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.trial import Difference
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.data.on_device import to_data
from flgo_hydra.federated.evaluation import metrics_of
from flgo_hydra.federated.model import resnet, to_dtype
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

CPU = torch.device("cpu")
BACKENDS = {
    "plain": partial(LoopBackend, engine=PLAIN),
    "recorded": LoopBackend,
    "short": partial(LoopBackend, visits=0.1),
    "vmap": partial(VmapBackend, lanes=3),
    "vmap, plain": partial(VmapBackend, lanes=3, engine=PLAIN),
}


class Line(nn.Module):
    """Five features to three outputs, and whatever else a model may do."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(5, 3)
        self.make()

    def make(self):
        pass

    def forward(self, x):
        return self.line(x)


class AssignsBuffer(Line):
    """N4."""

    def make(self):
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.line(x - self.mean)


class AssignsCounter(Line):
    def make(self):
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.steps = self.steps + 1
        return self.line(x) / (1 + 0.01 * self.steps)


class AssignsWithGradient(Line):
    def make(self):
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        y = self.line(x)
        self.mean = 0.5 * self.mean.detach() + y.mean(0)
        return y


class MaxNorm(nn.Module):
    """N5."""

    def __init__(self):
        super().__init__()
        self.words, self.line = nn.Embedding(7, 4, max_norm=0.5), nn.Linear(20, 3)

    def forward(self, x):
        return self.line(self.words((x.abs() * 3).long().clamp(0, 6)).flatten(1))


class MaxNormBag(MaxNorm):
    def __init__(self):
        super().__init__()
        self.words, self.line = nn.EmbeddingBag(7, 4, max_norm=0.5), nn.Linear(4, 3)


class Clamps(Line):
    """Through `.data`, which no version counter tells of."""

    def forward(self, x):
        self.line.weight.data.clamp_(-0.2, 0.2)
        return self.line(x)


class CountsCalls(Line):
    """N6."""

    def make(self):
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.line(x) * (1 - 0.5**self.calls)


class CountsForAll(Line):
    """In a list of the class."""

    seen = [0]

    def forward(self, x):
        self.seen[0] += 1
        return self.line(x) * (1 - 0.5 ** self.seen[0])


_calls = 0


class CountsGlobally(Line):
    def forward(self, x):
        global _calls
        _calls += 1
        return self.line(x) * (1 - 0.5**_calls)


class Remembers(Line):
    """In a default that is made once."""

    def forward(self, x, memory=[]):  # noqa: B006
        memory.append(len(x))
        return self.line(x) * (1 - 0.5 ** len(memory))


class CountsEvaluations(Line):
    def make(self):
        self.scale = 1.0

    def forward(self, x):
        if not self.training:
            self.scale *= 0.5
        return self.line(x) * self.scale


class KeepsHidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.line, self.hidden = nn.GRUCell(5, 4), nn.Linear(4, 3), None

    def forward(self, x):
        h = self.cell(x, None if self.hidden is None else self.hidden.expand(len(x), -1))
        self.hidden = h[:1].detach()
        return self.line(h)


class Caches(Line):
    def make(self):
        self.cache = {}

    def forward(self, x):
        ramp = self.cache.setdefault(len(x), torch.arange(5).to(x))
        return self.line(x * ramp)


class OwnGenerator(Line):
    def make(self):
        self.rng = np.random.default_rng(0)

    def forward(self, x):
        return self.line(x) * (1 + 0.1 * self.rng.random())


class HookCounts(Line):
    def make(self):
        seen = []

        def hook(module, args, output):
            seen.append(1)
            return output * (1 - 0.5 ** len(seen))

        self.line.register_forward_hook(hook)


class HookScales(Line):
    def make(self):
        self.line.register_forward_hook(lambda module, args, output: output * 0.5)


class BackwardHook(Line):
    def make(self):
        self.before = nn.Linear(5, 5)
        self.line.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 0.5,))

    def forward(self, x):
        return self.line(self.before(x))


class GradientHook(Line):
    """Clips what the trial may not have reached; a copy has no hook."""

    def make(self):
        self.line.weight.register_hook(lambda g: g.clamp(-0.01, 0.01))


class Padded(nn.Module):
    """`torch.vmap` gives the padding's row a gradient; the trial may have no padding in its batches."""

    def __init__(self):
        super().__init__()
        self.words, self.line = nn.Embedding(7, 4, padding_idx=1), nn.Linear(20, 3)

    def forward(self, x):
        return self.line(self.words((x.abs() * 3).long().clamp(0, 6)).flatten(1))


class PaddedBag(Padded):
    def __init__(self):
        super().__init__()
        self.words, self.line = nn.EmbeddingBag(7, 4, padding_idx=-1, mode="mean"), nn.Linear(4, 3)


class ByFrequency(Padded):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4, scale_grad_by_freq=True)


class Empty(Line):
    def make(self):
        self.nothing = nn.Parameter(torch.zeros(0, 4))

    def forward(self, x):
        return self.line(x) + self.nothing.sum()


class TrainsSilently(Line):
    """Like many an override, `train` returns nothing."""

    def train(self, mode=True):
        super().train(mode)


class CountsByClass(Line):
    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return self.line(x) * (1 - 0.5 ** type(self).calls)


class Closure(Line):
    def make(self):
        self.call = lambda x: self.line(x)

    def forward(self, x):
        return self.call(x)


class ThroughNumpy(Line):
    def forward(self, x):
        return self.line(x * float(np.abs(x.detach().numpy()).mean()))


class ChangesInput(Line):
    def forward(self, x):
        return self.line(x.mul_(2))


class Dropout(Line):
    def forward(self, x):
        return self.line(functional.dropout(x, 0.5, self.training))


class Tied(nn.Module):
    """The same weights and the same layer under two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.b.weight, self.again = self.a.weight, self.out

    def forward(self, x):
        return self.again(self.b(torch.tanh(self.a(x))))


class AssignsInHook(Line):
    """N4 by a hook, which assigns a buffer anew."""

    def make(self):
        self.register_buffer("mean", torch.zeros(5))
        self.line.register_forward_pre_hook(self.keep)

    def keep(self, line, inputs):
        if self.training:
            setattr(self, "mean", 0.9 * self.mean + 0.1 * inputs[0].detach().mean(0))  # noqa: B010 - as a user may

    def forward(self, x):
        return self.line(x) - self.mean.sum()


class Falls(Line):
    """An error that the numbers make, and a way round it."""

    def forward(self, x):
        w = self.line.weight.detach()
        try:
            torch.linalg.cholesky(0.6 * torch.eye(3, dtype=x.dtype) - w @ w.T)
            return self.line(x)
        except torch.linalg.LinAlgError:
            return 0.5 * self.line(x)


class Packs(nn.Module):
    """Sequences of lengths that follow from the numbers."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        lengths = torch.where(x.sum(1) > 2, 2, 5)
        pack = nn.utils.rnn.pack_padded_sequence(x.unsqueeze(2), lengths, batch_first=True, enforce_sorted=False)
        return self.out(self.rnn(pack)[1][-1])


class Decides(Line):
    def forward(self, x):
        return self.line(x) if x.mean() > 0 else -self.line(x)


class Spectral(Line):
    def make(self):
        parametrizations.spectral_norm(self.line)


class WeightNorm(Line):
    def make(self):
        parametrizations.weight_norm(self.line)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 3)

    def forward(self, x):
        return self.line(torch.fft.rfft(x).abs())


class Turns(nn.Module):
    """By angles that are complex buffers, one of which learns and one of which is frozen."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 3)
        self.register_buffer("turns", torch.polar(torch.ones(3), torch.arange(3.0)))
        self.register_buffer("mean", torch.zeros(3, dtype=torch.complex64))
        self.phase = nn.Parameter(torch.tensor(0.5 + 0.5j), requires_grad=False)

    def forward(self, x):
        z = torch.fft.rfft(x) * self.turns * self.phase
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * z[0]
        return self.line((z - self.mean).real)


class HalfInside(Line):
    def forward(self, x):
        return self.line(x).to(torch.bfloat16).to(x.dtype) + self.line(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.line = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.line(self.cells(x.unsqueeze(-1))[0][:, -1])


def cumulative():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 3))


def batch_norm():
    """N18: the gradient of the first bias is rounding, which Adam makes steps of."""
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


def instance_norm():
    norm = nn.InstanceNorm1d(1, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (1, 5)), norm, nn.Flatten(), nn.Linear(5, 3))


# What the loop says of recorded steps, and vmap of lanes: nothing, or a part of the reason.
CHANGES = "changes while it computes"
MODELS = {
    AssignsBuffer: ("", "`mean` differs"),  # over the batches that are filled up
    AssignsCounter: ("", ""),
    AssignsWithGradient: ("", "`mean` differs"),
    MaxNorm: ("parameter `words.weight`", "parameter `words.weight`"),
    MaxNormBag: ("parameter `words.weight`", "parameter `words.weight`"),
    Clamps: ("parameter `line.weight`", "parameter `line.weight`"),
    CountsCalls: (f"`model.calls` {CHANGES}", f"`model.calls` {CHANGES}"),
    CountsForAll: (f"`CountsForAll.seen` {CHANGES}", CHANGES),
    CountsGlobally: (f"`the global _calls` {CHANGES}", CHANGES),
    Remembers: (f"`a default of forward` {CHANGES}", CHANGES),
    CountsEvaluations: (f"`model.scale` {CHANGES}", CHANGES),
    KeepsHidden: (f"`model.hidden` {CHANGES}", CHANGES),
    Caches: (f"`model.cache` {CHANGES}", CHANGES),
    OwnGenerator: (f"`model.rng` {CHANGES}", CHANGES),
    HookCounts: (f"`seen of hook` {CHANGES}", CHANGES),
    HookScales: ("", ""),
    BackwardHook: ("", "differs by"),
    GradientHook: ("parameters have hooks", "parameters have hooks"),
    Padded: ("", "`padding_idx`"),
    PaddedBag: ("", "`padding_idx`"),
    ByFrequency: ("", "`scale_grad_by_freq`"),
    Empty: ("", ""),
    TrainsSilently: ("", ""),
    CountsByClass: (f"`CountsByClass.calls` {CHANGES}", CHANGES),
    Closure: ("cannot be copied apart", "cannot be copied apart"),
    ThroughNumpy: ("reads numbers", "reads numbers"),
    ChangesInput: ("", ""),
    Dropout: ("", "draws random numbers"),
    Tied: ("", ""),
    Decides: ("reads numbers", "reads a number"),
    Falls: ("may raise an error", "may raise an error"),
    Packs: ("shapes depend on numbers", None),
    AssignsInHook: (None, None),
    Spectral: ("", None),
    WeightNorm: ("", None),
    Complex: ("", ""),
    Turns: ("", ""),
    HalfInside: ("", ""),
    Recurrent: ("", None),
    cumulative: ("reads numbers", "reads a number"),
    batch_norm: ("", None),
    instance_norm: ("", "running_"),
}


def reset():
    """What models keep outside themselves."""
    global _calls
    _calls = 0
    CountsForAll.seen[:] = [0]
    CountsByClass.calls = 0
    Remembers.forward.__defaults__[0].clear()


def train(name, data, build, algorithm=None, optimizer="sgd", batch_size=4, num_rounds=2, epochs=2, **hyper):
    """The server after some rounds of all clients, its metrics, and what the backend says of itself."""
    reset()
    algorithm = algorithm or FedAvg()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = to_dtype(build(), data.x_train.dtype)
    step = LocalStep(algorithm, build_optimizer(optimizer))
    backend = BACKENDS[name](model, data, step, LocalWork(batch_size, epochs, None, seed=3))
    server = server_state(model, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), len(data.offsets) - 1)
    cohort = sample_cohort(np.diff(data.offsets), 1.0, "full", "other", algorithm.weighting, np.random.default_rng(0))
    backend.prepare(server, {"lr": 0.1, **hyper})
    metrics = [metrics_of(backend.load(server), data)]
    for r in range(1, num_rounds + 1):
        server = backend.train(server, clients, cohort, {"lr": 0.1, **hyper}, r)
        metrics.append(metrics_of(backend.load(server), data))
    return {**server.params, **server.buffers}, metrics, backend.note


def assert_alike(data, build, atol, why_not_recorded="", why_not_vmap="", backends=tuple(BACKENDS)[1:], **more):
    """All backends give the plain numbers, and say what they could not do."""
    plain, plain_metrics, _ = train("plain", data, build, **more)
    for name in backends:
        ends, metrics, note = train(name, data, build, **more)
        for key, tensor in plain.items():
            torch.testing.assert_close(
                ends[key], tensor, rtol=0, atol=atol, msg=lambda m, n=name, k=key: f"{n} {k} {m}"
            )
        for line, other in zip(plain_metrics, metrics, strict=True):
            assert other == pytest.approx(line, rel=0, abs=max(atol, 1e-12))
        if name == "recorded" and why_not_recorded is not None:
            assert why_not_recorded in note.get("why_not_compiled", "")
            assert bool(note["compiled_batch_sizes"]) == (not why_not_recorded)
        if name.startswith("vmap") and why_not_vmap is not None:
            assert any(why in note.get("why_not_vmap", "") for why in why_not_vmap.split("|"))
            assert note["backend"] == ("loop" if why_not_vmap else "vmap")


@pytest.fixture
def data(make_ragged_task):
    """Clients of 7, 6 and 12 samples, in batches of 4, 3 and 2."""
    return to_data(make_ragged_task((7, 6, 12)), CPU, torch.float64)


@pytest.fixture
def data32(make_ragged_task):
    return to_data(make_ragged_task((7, 6, 12)), CPU, torch.float32)


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.few(6)
def test_every_backend_gives_the_plain_numbers(data, build, optimizer):
    expected = MODELS[build] if build is not batch_norm or optimizer == "sgd" else ("", "differs by")
    assert_alike(data, build, 1e-12, *expected, optimizer=optimizer)


@pytest.mark.parametrize("build", [b for b in MODELS if b is not HalfInside], ids=lambda build: build.__name__)
def test_every_backend_gives_the_plain_numbers_in_float32(data32, build):
    assert_alike(data32, build, 1e-5, None, None)


def test_buffers_assigned_anew_are_averaged_as_those_changed_in_place(data):
    class InPlace(AssignsBuffer):
        def forward(self, x):
            if self.training:
                self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
            return self.line(x - self.mean)

    in_place, *_ = train("plain", data, InPlace)
    anew, *_ = train("plain", data, AssignsBuffer)
    assert anew["mean"].abs().max() > 0.01
    for name, tensor in in_place.items():
        torch.testing.assert_close(anew[name], tensor, rtol=0, atol=1e-12)


def test_buffers_assigned_anew_side_by_side(make_ragged_task):
    """Where no batch is filled up."""
    data = to_data(make_ragged_task((8, 8, 8)), CPU, torch.float64)
    assert_alike(data, AssignsBuffer, 1e-12)


@pytest.mark.parametrize(
    "build", [CountsCalls, CountsForAll, CountsGlobally, Remembers, Caches, HookCounts, OwnGenerator, CountsByClass]
)
@pytest.mark.parametrize("backend", ["recorded", "vmap"])
def test_a_trial_leaves_no_trace(data, build, backend):
    """In the model, in what it shares with its copies, in the data, in any generator."""
    reset()
    model = build().double()
    state = copy.deepcopy({key: value for key, value in vars(model).items() if not key.startswith("_")})
    tensors = {name: t.clone() for name, t in model.state_dict().items()}
    samples = [t.clone() for t in (data.x_train, data.y_train, data.valid.x, data.test.x)]
    made = BACKENDS[backend](model, data, LocalStep(FedAvg(), build_optimizer("sgd")), LocalWork(4, 2, None, seed=3))
    noise = [torch.get_rng_state(), random.getstate(), repr(np.random.get_state())]
    made.prepare(server_state(model, FedAvg()), {"lr": 0.1})
    assert torch.equal(noise[0], torch.get_rng_state())
    assert noise[1:] == [random.getstate(), repr(np.random.get_state())]
    now = {key: value for key, value in vars(model).items() if not key.startswith("_")}
    assert {**state, "rng": None} == {**now, "rng": None}
    assert (
        _calls == 0
        and CountsByClass.calls == 0
        and CountsForAll.seen == [0]
        and Remembers.forward.__defaults__[0] == []
    )
    if build is OwnGenerator:
        assert model.rng.bit_generator.state == np.random.default_rng(0).bit_generator.state
    if build is HookCounts:
        (hook,) = model.line._forward_hooks.values()
        assert hook.__closure__[0].cell_contents == []
    assert all(torch.equal(t, tensors[name]) for name, t in model.state_dict().items())
    now = (data.x_train, data.y_train, data.valid.x, data.test.x)
    assert all(torch.equal(a, b) for a, b in zip(samples, now, strict=True))


@pytest.mark.parametrize("build", [ChangesInput, lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3))])
def test_inputs_changed_in_place_leave_the_samples_alone(data, build):
    samples = [t.clone() for t in (data.x_train, data.valid.x, data.test.x)]
    for backend in BACKENDS:
        train(backend, data, build)
    now = (data.x_train, data.valid.x, data.test.x)
    assert all(torch.equal(a, b) for a, b in zip(samples, now, strict=True))


def test_inputs_changed_now_and_then_are_told(data, monkeypatch):
    class Sometimes(Line):
        def forward(self, x):
            return self.line(x.mul_(2) if x.sum() > 0 else x)

    monkeypatch.setattr("flgo_hydra.federated.evaluation.CHUNK", {"cpu": 1})
    data.test.x[0], data.test.x[1] = -1.0, 1.0
    with pytest.raises(Refused, match="changes its inputs in place while it is evaluated"):
        metrics_of(Sometimes().double(), data)


class GrowsBuffer(Line):
    def make(self):
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, x):
        self.seen = torch.cat([self.seen, x[:, 0]])
        return self.line(x)


class WidensBuffer(Line):
    def make(self):
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.steps = self.steps + 0.5
        return self.line(x)


class LazyBuffer(Line):
    def make(self):
        self.register_buffer("mean", None)

    def forward(self, x):
        self.mean = x.mean(0)
        return self.line(x)


class LazyPart(Line):
    def forward(self, x):
        if not hasattr(self, "scale"):
            self.scale = nn.Parameter(torch.ones(()))
        return self.line(x) * self.scale


class Freezes(Line):
    def forward(self, x):
        self.line.bias.requires_grad_(False)
        return self.line(x)


class FreezesInTraining(Line):
    def train(self, mode=True):
        super().train(mode)
        self.line.bias.requires_grad_(not mode)
        return self


@pytest.mark.parametrize(
    "build, message",
    [
        (FreezesInTraining, r"sets `requires_grad` of `line.bias` in its `train\(\)`"),
        (GrowsBuffer, r"buffer `seen` must keep its shape \(0,\)"),
        (WidensBuffer, "`steps` must keep its shape .* dtype int64"),
        (LazyBuffer, "makes or drops `mean`"),
        (LazyPart, "makes or drops `scale`"),
        (Freezes, "sets `requires_grad` of `line.bias`"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_no_backend_can_do_is_refused_before_the_first_round(data, backend, build, message):
    with pytest.raises(Refused, match=message):
        train(backend, data, build)


# Algorithms.


class Sends(Algorithm):
    """Sends what `extra` makes of the number of steps, beside the update."""

    def __init__(self, extra):
        self.extra = extra

    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        return {**sent, "steps": {"mean": self.extra(num_steps)}}, kept

    def update_server(self, params, server, message, participation, hyper):
        scale = 1 / (1 + message["steps"]["mean"])
        return {name: w + scale * message["update"][name] for name, w in params.items()}, server


def as_numpy(num_steps):
    return np.float64(num_steps) if isinstance(num_steps, int) else num_steps


@pytest.mark.parametrize("extra", [lambda n: n, lambda n: n * 0.5, lambda n: True, as_numpy])
def test_a_message_may_hold_numbers(data, extra):
    """N3."""
    assert_alike(data, Line, 1e-12, algorithm=Sends(extra))


class Draws(Algorithm):
    """N2."""

    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        return {"update": {n: u + 0.01 * torch.rand_like(u) for n, u in sent["update"].items()}}, kept


class Clips(Algorithm):
    """N2."""

    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        norm = sum(u.square().sum() for u in sent["update"].values()).sqrt()
        if norm > 0.05:
            return {"update": {n: u * 0.05 / norm for n, u in sent["update"].items()}}, kept
        return sent, kept


class ByNumSteps(Algorithm):
    """Only where clients take different numbers of steps does this depend on data."""

    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        return (sent if num_steps > 4 else {"update": {n: 2 * u for n, u in sent["update"].items()}}), kept


class DrawsFromNumpy(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        return {"update": {n: u * (1 + 0.0 * np.random.random()) for n, u in sent["update"].items()}}, kept


class CountsFinishes(Algorithm):
    count = 0

    def finish(self, params, client, num_steps, hyper):
        self.count += 1
        sent, kept = super().finish(params, client, num_steps, hyper)
        return {"update": {n: u / self.count for n, u in sent["update"].items()}}, kept


class CountsRounds(Algorithm):
    """In `update_server`; `correct` uses it."""

    def __init__(self):
        self.rounds = 0

    def correct(self, grads, params, client, hyper):
        return {name: g / (1 + self.rounds) for name, g in grads.items()}

    def update_server(self, params, server, message, participation, hyper):
        self.rounds += 1
        return super().update_server(params, server, message, participation, hyper)


class MixesLoss(Algorithm):
    def loss(self, outputs, targets, criterion):
        return criterion(outputs - outputs.mean(0), targets)


@pytest.mark.parametrize(
    "algorithm, why_not_vmap",
    [
        (Draws, "random"),
        (Clips, "reads a number from a tensor"),
        (ByNumSteps, "`finish` of clients side by side"),
        (DrawsFromNumpy, "Python or numpy"),
        (CountsFinishes, f"`algorithm.count` {CHANGES}"),
        (CountsRounds, f"`algorithm.rounds` {CHANGES}"),
        (MixesLoss, "differs by"),
    ],
)
@pytest.mark.parametrize("num_rounds", [1, 3])
def test_what_cannot_be_done_side_by_side_is_done_in_the_loop(data, algorithm, why_not_vmap, num_rounds):
    plain, *_ = train("plain", data, Line, algorithm(), num_rounds=num_rounds)
    for name in ("recorded", "vmap", "vmap, plain"):
        ends, _, note = train(name, data, Line, algorithm(), num_rounds=num_rounds)
        for key, tensor in plain.items():
            torch.testing.assert_close(ends[key], tensor, rtol=0, atol=1e-12)
        if name.startswith("vmap"):
            assert note["backend"] == "loop"
            assert re.search(why_not_vmap, note["why_not_vmap"])


def test_a_decision_by_the_number_of_steps_is_one_number_where_all_take_as_many(make_ragged_task):
    data = to_data(make_ragged_task((8, 8, 8)), CPU, torch.float64)
    assert_alike(data, Line, 1e-12, algorithm=ByNumSteps())


class Returns(Algorithm):
    def __init__(self, returned):
        self.returned = returned

    def init_client(self, params):
        return {"mine": {"a": torch.zeros(2)}}

    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        return self.returned(sent, kept, num_steps)


@pytest.mark.parametrize(
    "returned, message",
    [
        (lambda sent, kept, n: sent, "must return two things"),
        (lambda sent, kept, n: ({**sent, "num_steps": n}, kept), "`num_steps` in the message .* dict by name"),
        (lambda sent, kept, n: ({**sent, "a": {"b": "text"}}, kept), "`a.b` .* a tensor or a number, but got 'text'"),
        (lambda sent, kept, n: ({"delta": sent["update"]}, kept), "must have an entry `update`"),
        (
            lambda sent, kept, n: ({"update": {"line.bias": sent["update"]["line.bias"]}}, kept),
            "`line.weight` is missing",
        ),
        (
            lambda sent, kept, n: ({"update": {k: u[:1] for k, u in sent["update"].items()}}, kept),
            r"`line.weight` has shape \(1, 5\), not \(3, 5\)",
        ),
        (lambda sent, kept, n: (sent, {}), "`mine.a` is missing"),
        (lambda sent, kept, n: (sent, {"mine": {"a": torch.zeros(3)}}), r"shape \(3,\), not \(2,\)"),
        (lambda sent, kept, n: (sent, {**kept, "more": {"b": 1.0}}), "`more.b` is one more"),
        (lambda sent, kept, n: (sent, None), "The client's new state .* must be a dict"),
    ],
)
@pytest.mark.parametrize("backend", ["plain", "short", "vmap"])
def test_a_wrong_message_is_a_sentence(data, backend, returned, message):
    with pytest.raises(Refused, match=message):
        train(backend, data, Line, Returns(returned))


def test_entries_that_only_some_clients_send_are_refused(data):
    def sends(sent, kept, num_steps):
        return ({**sent, "late": {"a": 1.0}} if num_steps > 4 else sent), kept

    for backend in ("plain", "vmap"):
        with pytest.raises(Refused, match="must send the same entries from every client.*late"):
            train(backend, data, Line, Returns(sends))


class ChangesAnchor(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        for name, start in client.anchor.items():
            start.sub_(params[name]).neg_()
        return {"update": client.anchor}, client.state


class ShrinksServer(Algorithm):
    def update_server(self, params, server, message, participation, hyper):
        return {name: w[:1] for name, w in params.items()}, server


@pytest.mark.parametrize(
    "algorithm, message",
    [(ChangesAnchor, "changes `client.anchor` .* in place"), (ShrinksServer, r"`line.weight` has shape \(3, 5\), but")],
)
@pytest.mark.parametrize("backend", ["plain", "vmap"])
def test_an_algorithm_that_breaks_the_server_is_refused(data, backend, algorithm, message):
    with pytest.raises(Refused, match=message):
        train(backend, data, Line, algorithm())


# The verdict.


@pytest.mark.parametrize("lr", [1e-3, 0.1])
def test_rounding_is_not_taken_for_a_fault(make_ragged_task, lr):
    """N19: a residual network blows roundings of noise up to a thousandth of what the steps change."""
    rng = np.random.default_rng(0)
    task = make_ragged_task((24, 24))
    shape = (3, 16, 16)
    for name in ("x_train", "x_valid", "x_test"):
        object.__setattr__(task, name, rng.normal(size=(len(getattr(task, name)), *shape)).astype(np.float32))
    data = to_data(task, CPU, torch.float32)
    build = partial(resnet, shape, 3, [8, 16], 2, 4)
    *_, note = train("vmap", data, build, batch_size=16, num_rounds=1, epochs=1, lr=lr)
    assert note["backend"] == "vmap", note


class Halves(FedAvg):
    """Sends fewer bits than it computes with."""

    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        return {"update": {n: u.bfloat16() for n, u in sent["update"].items()}}, kept


def test_what_is_sent_in_few_bits_is_summed_in_more(data32):
    assert_alike(data32, Line, 1e-6, algorithm=Halves())


def of_rounding(seed, norm):
    """A model with parameters whose gradient is of roundings only: biases before a normalisation."""

    def build():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 32), norm(32), nn.ReLU(), nn.Linear(32, 32), norm(32), nn.Linear(32, 3))

    return build


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.float32, 2e-4)])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, partial(nn.GroupNorm, 32)], ids=["batch", "alone"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.few(2)
def test_a_gradient_of_nothing_but_rounding_is_no_fault(make_ragged_task, dtype, atol, norm, optimizer):
    """Which form trains a run must not be the luck of its weights."""
    data = to_data(make_ragged_task((7, 6, 12)), CPU, dtype)
    for seed in range(6):
        build = of_rounding(seed, norm)
        assert_alike(data, build, atol, backends=["recorded", "vmap"], epochs=1, optimizer=optimizer, lr=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_large_numbers_made_of_roundings_take_one_form_whatever_the_seed(make_ragged_task, dtype):
    """Adam moves such a bias as far as any other, each form another way."""
    data = to_data(make_ragged_task((7, 6, 12)), CPU, dtype)
    for name in ("recorded", "vmap"):
        notes = [train(name, data, of_rounding(seed, nn.BatchNorm1d), optimizer="adam")[2] for seed in range(6)]
        assert len({(note["backend"], *note["compiled_batch_sizes"]) for note in notes}) == 1


def test_a_small_fault_is_not_taken_for_rounding(data32):
    """A mean over the batch that counts a thousandth."""

    class Mixes(Line):
        def forward(self, x):
            return self.line(x - 1e-3 * x.mean(0))

    *_, note = train("vmap", data32, Mixes)
    assert "differs by" in note["why_not_vmap"] and "in float64" in note["why_not_vmap"]


class WorstHalf(Algorithm):
    """Of a batch of two all counts, whoever they are; of two and a filling, that depends."""

    def loss(self, outputs, targets, criterion):
        losses = criterion(outputs, targets)
        return losses * (losses >= losses.median())


class DropsOutliers(Algorithm):
    def loss(self, outputs, targets, criterion):
        losses = criterion(outputs, targets)
        return losses * (losses <= 1.5 * losses.mean())


class Hardest(Algorithm):
    """The loss of the two with the largest, and nothing of the others."""

    def loss(self, outputs, targets, criterion):
        losses = criterion(outputs, targets)
        most = losses.topk(min(2, len(losses))).values.min()
        return losses * (losses >= most)


class Contrasts(Algorithm):
    def loss(self, outputs, targets, criterion):
        unit = functional.normalize(outputs, dim=1)
        near = (unit @ unit.T).logsumexp(1)
        return criterion(outputs, targets) + 0.1 * near


class ByClass(Algorithm):
    """As `bincount` would, in what vmap takes."""

    def loss(self, outputs, targets, criterion):
        same = (targets.unsqueeze(0) == targets.unsqueeze(1)).sum(1)
        return criterion(outputs, targets) / same


class ClipsByMax(Algorithm):
    """Almost never: only where one loss is far above the mean of all."""

    def loss(self, outputs, targets, criterion):
        losses = criterion(outputs, targets)
        return torch.where(losses.max() > 2 * losses.mean(), 0.5 * losses, losses)


class Flood(Algorithm):
    """Upwards where the mean loss is small, which it is late."""

    def loss(self, outputs, targets, criterion):
        losses = criterion(outputs, targets)
        return torch.where(losses.mean().detach() < 0.05, -1.0, 1.0) * losses


class Focal(Algorithm):
    def loss(self, outputs, targets, criterion):
        losses = criterion(outputs, targets)
        return (1 - torch.exp(-losses)) ** 2 * losses


class Gates(Line):
    """Outputs are cut where they are large on the mean, which they are late."""

    def forward(self, x):
        outputs = self.line(x)
        mean = outputs.norm(dim=1).mean().detach()
        return outputs * torch.where(mean > 80, 80 / mean, 1)


class MaxNormalised(Line):
    def forward(self, x):
        return self.line(x / x.abs().amax(0))


class MaxOfHidden(Line):
    def make(self):
        self.hidden = nn.Linear(5, 5)

    def forward(self, x):
        h = torch.tanh(self.hidden(x))
        return self.line(h / h.abs().amax().detach())


class Centres(Line):
    def forward(self, x):
        return self.line(x - x.mean(0))


class Ranks(Line):
    """Below the batch's median, a feature counts half."""

    def forward(self, x):
        return self.line(torch.where(x < x.median(0).values, 0.5 * x, x))


class Sorts(Line):
    def forward(self, x):
        return self.line(x + 0.01 * x.sort(0).values.flip(0)[:1])


MIXES = "differs by|depends on what else is in its batch"
MIXING = [
    *((Line, one) for one in (WorstHalf, DropsOutliers, Hardest, Contrasts, ByClass, ClipsByMax, Flood)),
    *((one, FedAvg) for one in (Gates, MaxNormalised, MaxOfHidden, Centres, Ranks, Sorts)),
]


def named(values):
    return pytest.mark.parametrize("build, algorithm", values, ids=lambda one: one.__name__)


@pytest.mark.parametrize("seed", [0, 1, 2])
@named(MIXING)
@pytest.mark.few(10)
def test_what_mixes_the_samples_of_a_batch_is_found_whatever_fills_it_up(make_ragged_task, build, algorithm, seed):
    """Whichever samples are tried, and in a dtype that rounds."""
    task = make_ragged_task((7, 6, 12))
    order = np.random.default_rng(seed).permutation(len(task.x_train))
    for name in ("x_train", "y_train"):
        object.__setattr__(task, name, np.asarray(getattr(task, name))[order])
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        data = to_data(task, CPU, dtype)
        more = {"backends": ("vmap", "vmap, plain"), "algorithm": algorithm()}
        assert_alike(data, build, atol, None, MIXES, **more)


class Fives(Line):
    """Takes batches of 5, 10, 15… samples only, and mixes each five: a batch's own among themselves."""

    def forward(self, x):
        if not self.training:
            return self.line(x)
        return self.line(x + 0.1 * x.view(-1, 5, 5).mean(1).repeat_interleave(5, 0))


@named([(Line, WorstHalf), (Line, ClipsByMax), (Ranks, FedAvg), (Fives, WorstHalf), (Fives, FedAvg)])
def test_what_mixes_the_samples_of_a_large_batch_is_found(make_ragged_task, build, algorithm):
    data = to_data(make_ragged_task((25, 30, 40, 20)), CPU, torch.float64)
    more = {"backends": ("vmap", "vmap, plain"), "algorithm": algorithm(), "batch_size": -1}
    why_not = "" if (build, algorithm) == (Fives, FedAvg) else MIXES
    assert_alike(data, build, 1e-12, None, why_not, **more)


@named([one for one in MIXING if one[1] is not ByClass])
def test_what_mixes_the_samples_of_a_batch_may_where_none_is_filled_up(make_ragged_task, build, algorithm):
    data = to_data(make_ragged_task((8, 8, 8)), CPU, torch.float64)
    assert_alike(data, build, 1e-12, None, "", backends=("vmap", "vmap, plain"), algorithm=algorithm())


class OfOneSize(Algorithm):
    """Half of the loss in batches of three."""

    def loss(self, outputs, targets, criterion):
        losses = criterion(outputs, targets)
        return 0.5 * losses if len(losses) == 3 else losses


class OfOneSizeInside(Line):
    def forward(self, x):
        return self.line(x) * (0.5 if self.training and len(x) == 3 else 1.0)


@named([(Line, OfOneSize), (OfOneSizeInside, FedAvg)])
def test_what_asks_for_a_size_is_found_among_many(make_ragged_task, build, algorithm):
    data = to_data(make_ragged_task((13, 11, 9, 14)), CPU, torch.float64)  # in eights: 5, 3, 1 and 6 are left
    assert_alike(data, build, 1e-12, None, "differs by", ("vmap", "vmap, plain"), algorithm=algorithm(), batch_size=8)


@pytest.mark.parametrize("build", [AssignsBuffer, AssignsInHook])
def test_buffers_assigned_anew_by_plain_steps_among_recorded_ones(make_ragged_task, build):
    data = to_data(make_ragged_task((14, 16, 22)), CPU, torch.float64)
    plain, metrics, _ = train("plain", data, build, num_rounds=3, batch_size=4)
    BACKENDS["some"] = partial(LoopBackend, visits=6.0)  # 4 samples pay, and 2 do not
    try:
        found, found_metrics, note = train("some", data, build, num_rounds=3, batch_size=4)
    finally:
        del BACKENDS["some"]
    assert note["compiled_batch_sizes"] == [4]
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-12)
    assert found_metrics[-1]["valid_loss"] == pytest.approx(metrics[-1]["valid_loss"], abs=1e-12)


class RareTogether(Algorithm):
    """Samples of the last class share one weight; there is none of them in most batches."""

    def loss(self, outputs, targets, criterion):
        is_rare = targets == 2
        return criterion(outputs, targets) / torch.where(is_rare, is_rare.sum(), 1)


@pytest.mark.parametrize("backend", ["vmap", "vmap, plain"])
def test_what_mixes_a_rare_class_is_found(make_ragged_task, backend):
    task = make_ragged_task((150, 160, 170, 155))
    y = np.minimum(task.y_train, 1)
    y[-1] = 2  # of a batch that is filled up with the same samples in every epoch
    object.__setattr__(task, "y_train", y)
    data = to_data(task, CPU, torch.float64)
    more = {"algorithm": RareTogether(), "batch_size": 32, "epochs": 8, "num_rounds": 3}
    assert_alike(data, Line, 1e-12, None, MIXES, backends=(backend,), **more)


def test_what_mixes_may_where_clients_differ_in_the_number_of_whole_batches(make_ragged_task):
    data = to_data(make_ragged_task((8, 4, 12)), CPU, torch.float64)
    assert_alike(data, Centres, 1e-12, None, "", backends=("vmap", "vmap, plain"), algorithm=WorstHalf())


@named([(Line, Focal), (Line, FedAvg), (batch_norm, FedAvg), (batch_norm, Focal)])
@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_what_does_not_mix_is_side_by_side(make_ragged_task, build, algorithm, dtype, atol):
    """Batch normalisation counts those samples that are the batch's own."""
    data = to_data(make_ragged_task((7, 6, 12)), CPU, dtype)
    assert_alike(data, build, atol, None, "", backends=("vmap", "vmap, plain"), algorithm=algorithm())


def test_the_next_plainer_form_is_taken(data, monkeypatch):
    """A fault of the dual form costs the dual form; one of recorded lanes, the recording."""
    monkeypatch.setattr(extent, "_DUAL_PAYS", 1e9)
    *_, note = train("vmap", data, Line)
    assert note["dual_layers"] == ["line.weight"]
    of_steps, faulty = LaneDifferences.of_steps, {"dual"}

    def with_faults(self, *args):
        form = self._lanes
        is_faulty = (form._dual is not None and "dual" in faulty) or (form.is_recorded and "recorded" in faulty)
        found = of_steps(self, *args)
        return Difference("line.weight", 1.0, 1.0) if is_faulty else found

    monkeypatch.setattr(LaneDifferences, "of_steps", with_faults)
    *_, note = train("vmap", data, Line)
    assert note["backend"] == "vmap" and note["dual_layers"] == [] and note["compiled_with_masks"]
    assert "`line.weight` differs by" in note["why_not_dual"]
    faulty.add("recorded")
    plain, *_ = train("plain", data, Line)
    ends, _, note = train("vmap", data, Line)
    assert note["backend"] == "vmap" and note["compiled_batch_sizes"] == [] and not note["compiled_with_masks"]
    assert "`line.weight` differs by" in note["why_not_compiled"]
    torch.testing.assert_close(ends["line.weight"], plain["line.weight"], rtol=0, atol=1e-12)
