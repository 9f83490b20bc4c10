"""Models as users write them, each with what is odd about it, and what a run has to make of it.

`expect` is `exact`, the plain loop's numbers in every form, or the pattern of the sentence with which every form
refuses the model before round 1.
"""

import array
import functools
import itertools
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from . import elsewhere, samples
from .runs import Case

EXACT = "exact"


@dataclass(frozen=True)
class Model:
    """A model of the zoo."""

    case: Case
    why: str
    expect: str = EXACT
    forms: frozenset[str] = frozenset()
    """faster forms that must come on: recorded, vmap, fused"""
    keeps: Callable[[nn.Module], Any] | None = None
    """what it keeps in Python, to be compared after a run of the loop"""


MODELS: dict[str, Model] = {}
ALL = frozenset({"recorded", "vmap", "fused"})
VARIANTS: list[dict[str, Any]] = [{}, {"momentum": 0.5, "weight_decay": 0.01}, {"clip_grad": 1.0}]


def zoo(
    why: str,
    source: Callable[..., Any] = samples.vectors,
    expect: str = EXACT,
    sizes: str = "ragged",
    forms: frozenset[str] = frozenset(),
    keeps: Callable[[nn.Module], Any] | None = None,
    is_one_model: bool = False,
    before: Callable[[], None] | None = None,
    **options: Any,
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Puts a model (a class, or a function that makes one) into the zoo."""

    def put(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        name = build.__name__
        assert name not in MODELS
        options_of = options or VARIANTS[len(MODELS) % len(VARIANTS)]
        case = Case(
            name,
            build,
            source,
            sizes,
            options=options_of,
            is_one_model=is_one_model or keeps is not None,
            before=before,
        )
        MODELS[name] = Model(case, why, expect, forms, keeps)
        return build

    return put


class Body(nn.Module):
    """Two layers; most of the zoo differs from it in one thing."""

    def __init__(self, input_shape, num_outputs, width=5):
        super().__init__()
        self.hidden = nn.Linear(int(np.prod(input_shape)), width)
        self.output = nn.Linear(width, num_outputs)

    def forward(self, x):
        return self.output(torch.tanh(self.hidden(x.flatten(1))))


# Ordinary ones: every faster form must come on.


@zoo("logistic regression, whose only layer is on the samples", forms=ALL)
def logistic(input_shape, num_outputs):
    return nn.Linear(input_shape[0], num_outputs)


@zoo("two layers", forms=ALL)
class TwoLayers(Body):
    pass


@zoo("an activation that changes its input in place", forms=ALL)
def relu_in_place(input_shape, num_outputs):
    return nn.Sequential(nn.Linear(input_shape[0], 5), nn.ReLU(inplace=True), nn.Linear(5, num_outputs))


@zoo("convolutions, pooling", samples.images, forms=ALL)
def conv2d(input_shape, num_outputs):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, num_outputs)
    )


@zoo("depthwise, dilated and transposed convolutions, padding by reflection", samples.images)
def conv2d_kinds(input_shape, num_outputs):
    return nn.Sequential(
        nn.ReflectionPad2d(1),
        nn.Conv2d(2, 4, 3, groups=2),
        nn.SiLU(),
        nn.ConvTranspose2d(4, 3, 2, stride=2),
        nn.ReplicationPad2d(1),
        nn.Conv2d(3, 3, 3, dilation=2, padding=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, num_outputs),
    )


@zoo("convolutions along a signal", samples.signals)
def conv1d(input_shape, num_outputs):
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.PReLU(4), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(28, num_outputs))


@zoo("batch norm of features", sizes="pairs", forms=ALL)
def batch_norm(input_shape, num_outputs):
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, num_outputs))


@zoo("batch norm of channels", samples.images, sizes="pairs")
def batch_norm_2d(input_shape, num_outputs):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, num_outputs)
    )


@zoo("a cumulative mean needs the count of batches in the momentum's place", sizes="pairs")
def batch_norm_cumulative(input_shape, num_outputs):
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=None), nn.Linear(5, num_outputs))


@zoo("no running statistics: evaluation normalises by its own batch", sizes="pairs")
def batch_norm_untracked(input_shape, num_outputs):
    return nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, num_outputs))


@zoo("not affine, statistics alone", sizes="pairs")
def batch_norm_bare(input_shape, num_outputs):
    return nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, num_outputs))


@zoo("one norm used twice in a step", sizes="pairs")
class NormTwice(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.output(torch.tanh(self.norm(torch.tanh(self.norm(self.hidden(x))))))


@zoo("a norm over halves of the samples, twice as many rows as samples", sizes="pairs")
class NormOfHalves(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.output = nn.Linear(6, num_outputs)

    def forward(self, x):
        return self.output(self.norm(x.reshape(-1, 3)).reshape(-1, 6))


@zoo("a norm of the batch's first two samples", sizes="pairs")
class NormOfSome(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.output = nn.Linear(6, num_outputs)

    def forward(self, x):
        return self.output(torch.cat([self.norm(x[:2]), x[2:]]))


@zoo("functional batch norm with buffers of its own", sizes="pairs")
class FunctionalNorm(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("var", torch.ones(5))

    def forward(self, x):
        h = functional.batch_norm(self.hidden(x), self.mean, self.var, training=self.training, momentum=0.2)
        return self.output(torch.relu(h))


@zoo("a single sample has no variance", expect="single sample.*batch_size", sizes="ragged")
def batch_norm_single(input_shape, num_outputs):
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, num_outputs))


@zoo("frozen statistics: `eval()` of a part inside training", sizes="pairs")
class BatchNormFrozen(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.norm = nn.BatchNorm1d(5)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.output(torch.relu(self.norm(self.hidden(x))))


@zoo("norms over a sample", samples.images)
def group_and_layer_norm(input_shape, num_outputs):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.GELU(),
        nn.Flatten(),
        nn.LayerNorm(64),
        nn.Linear(64, num_outputs),
        nn.RMSNorm(num_outputs),
    )


@zoo("instance norm with running statistics", samples.images, sizes="pairs")
def instance_norm(input_shape, num_outputs):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, num_outputs),
    )


@zoo("a recurrent layer, its last state", samples.signals)
class Lstm(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.lstm = nn.LSTM(2, 4, batch_first=True)
        self.output = nn.Linear(4, num_outputs)

    def forward(self, x):
        return self.output(self.lstm(x.transpose(1, 2))[0][:, -1])


@zoo("a recurrent layer, both ways", samples.signals)
class Gru(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.gru = nn.GRU(2, 3, batch_first=True, bidirectional=True)
        self.output = nn.Linear(6, num_outputs)

    def forward(self, x):
        return self.output(self.gru(x.transpose(1, 2))[1].transpose(0, 1).flatten(1))


@zoo("a cell in a loop of Python", samples.signals)
class Cell(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.cell = nn.RNNCell(2, 4)
        self.output = nn.Linear(4, num_outputs)

    def forward(self, x):
        h = x.new_zeros(len(x), 4)
        for t in range(x.shape[2]):
            h = self.cell(x[:, :, t], h)
        return self.output(h)


@zoo("attention over tokens", samples.tokens)
class Attention(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.output = nn.Linear(4, num_outputs)

    def forward(self, x):
        e = self.embedding(x.long())
        return self.output(self.attention(e, e, e)[0].mean(1))


@zoo("a transformer's layer with a mask", samples.tokens)
class Transformer(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.output = nn.Linear(4, num_outputs)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=self.output.weight.dtype)
        return self.output(self.layer(self.embedding(x.long()), src_mask=mask)[:, -1])


# Parameters under several names, unused, frozen, switched.


@zoo("one weight in two layers, as an autoencoder or a language model has it")
class TiedWeights(nn.Module):
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.output = nn.Linear(6, num_outputs)

    def forward(self, x):
        return self.output(torch.tanh(self.second(torch.tanh(self.first(x)))))


@zoo("one module under two names")
class OneModuleTwice(nn.Module):
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first
        self.layers = nn.ModuleList([self.first, nn.Linear(6, num_outputs)])

    def forward(self, x):
        return self.layers[1](torch.tanh(self.again(torch.tanh(self.first(x)))))


@zoo("one buffer under two names, changed in place")
class TiedBuffers(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("mean", torch.zeros(5))
        self.inner = nn.Module()
        self.inner.register_buffer("mean", self.mean)

    def forward(self, x):
        h = torch.tanh(self.hidden(x))
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
        return self.output(h - self.inner.mean)


@zoo("a property, and `__slots__`, which deepcopy loses", is_one_model=True)
class Properties(nn.Module):
    __slots__ = ("scale",)

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.raw = nn.Parameter(torch.randn(num_outputs, 6))
        self.scale = 0.5

    @property
    def weight(self):
        return self.scale * self.raw / (1e-3 + self.raw.norm(dim=1, keepdim=True))

    def forward(self, x):
        return x @ self.weight.T


@zoo("two parameters in one memory", expect="`first.weight` and `second.weight` lie in the same")
class SharedStorage(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = nn.Parameter(self.first.weight.data)
        self.output = nn.Linear(6, num_outputs)

    def forward(self, x):
        return self.output(torch.tanh(self.second(torch.tanh(self.first(x)))))


@zoo("a buffer in a parameter's memory", expect="`hidden.weight` and `seen` lie in the same")
class BufferInWeights(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("seen", self.hidden.weight.data)

    def forward(self, x):
        return super().forward(x) * (1 + 0.1 * self.seen.mean())


@zoo("a weight that lies transposed in memory")
class Transposed(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.weight = nn.Parameter((0.3 * torch.randn(6, num_outputs)).T)
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x):
        return functional.linear(x, self.weight, self.bias)


@zoo("`train` that returns nothing")
class TrainReturnsNothing(Body):
    def train(self, mode=True):
        super().train(mode)


@zoo("attributes that come from an inner model", is_one_model=True)
class Delegates(nn.Module):
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.inner = Body(input_shape, num_outputs)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def __call__(self, x, **_):
        return self.output(torch.tanh(self.hidden(x)))


@zoo("a head that nothing uses")
class UnusedHead(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.head = nn.Linear(5, 7)


@zoo("a branch that only some batches use", momentum=0.5, weight_decay=0.01)
class SometimesUsed(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.more = nn.Linear(6, num_outputs)

    def forward(self, x):
        y = super().forward(x)
        return y + self.more(x) if x[0, 0] > 0 else y


@zoo("a branch by the batch's size", momentum=0.5, weight_decay=0.01)
class UsedBySize(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.more = nn.Linear(6, num_outputs)

    def forward(self, x):
        y = super().forward(x)
        return y + self.more(x) if len(x) == 4 else y


@zoo("frozen parameters in a layer")
class FrozenBias(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.hidden.bias.requires_grad_(False)


@zoo("a frozen layer under a trained one", weight_decay=0.01)
def frozen_first(input_shape, num_outputs):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, num_outputs))
    model[0].requires_grad_(False)
    return model


@zoo("a frozen batch norm's scale, its statistics going on", sizes="pairs")
def frozen_norm(input_shape, num_outputs):
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, num_outputs))
    model[1].requires_grad_(False)
    return model


@zoo("a part that is switched off in forward", is_one_model=True)
class SwitchedOff(Body):
    def forward(self, x):
        self.hidden.weight.requires_grad_(bool(x[0, 0] > 0) or not self.training)
        y = super().forward(x)
        self.hidden.weight.requires_grad_(True)
        return y


@zoo("detached in forward: a layer without a gradient")
class Detached(Body):
    def forward(self, x):
        return self.output(torch.tanh(self.hidden(x)).detach())


@zoo("without gradients for a part, by no_grad")
class NoGradBlock(Body):
    def forward(self, x):
        with torch.no_grad():
            shift = self.hidden(x).mean(1, keepdim=True)
        return super().forward(x) - shift


# Changes in forward.


@zoo("the input changed in place: the data must stay as they are", is_one_model=True)
class InputInPlace(Body):
    def forward(self, x):
        x -= 0.25
        x.mul_(2.0)
        return super().forward(x)


@zoo("the input's view changed in place", samples.images)
class InputViewInPlace(Body):
    def forward(self, x):
        x[:, 0, :2] = 0.0
        return super().forward(x)


@zoo("a running mean assigned anew, as most people write it")
class BufferAssigned(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return super().forward(x - self.mean)


@zoo("the same in place")
class BufferInPlace(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return super().forward(x - self.mean)


@zoo("the same through `.data` and through copy_ under no_grad")
class BufferThroughData(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("square", torch.ones(6))

    def forward(self, x):
        if self.training:
            self.mean.data = 0.9 * self.mean + 0.1 * x.detach().mean(0)
            with torch.no_grad():
                self.square.copy_(0.9 * self.square + 0.1 * x.square().mean(0))
        return super().forward((x - self.mean) / self.square.sqrt())


@zoo("a buffer assigned in a module of a list")
class BufferAssignedBelow(Body):
    class Centre(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(5))

        def forward(self, x):
            if self.training:
                self.mean = torch.lerp(self.mean, x.detach().mean(0), 0.1)
            return x - self.mean

    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.layers = nn.ModuleList([self.Centre(), self.Centre()])

    def forward(self, x):
        h = self.layers[0](torch.tanh(self.hidden(x)))
        return self.output(self.layers[1](torch.sin(h)))


@zoo("an integer counter that scales the outputs")
class CounterBuffer(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.steps += 1
        return super().forward(x) / (1 + 0.01 * self.steps)


@zoo("an integer counter assigned anew, and a flag")
class CounterAssigned(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("steps", torch.tensor([0], dtype=torch.int32))
        self.register_buffer("is_begun", torch.tensor(False))

    def forward(self, x):
        if self.training:
            self.steps = self.steps + 1
            self.is_begun |= True
        return super().forward(x) / (1 + 0.01 * self.steps)


@zoo("a buffer that is not in the state dict")
class BufferNotPersistent(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("mean", torch.zeros(6), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return super().forward(x - self.mean)


@zoo("a constant buffer, and one that is None")
class BufferConstant(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("frequencies", torch.linspace(0.5, 2.0, 6))
        self.register_buffer("nothing", None)

    def forward(self, x):
        return super().forward(torch.sin(x * self.frequencies))


@zoo("a copy of the weights as a buffer: a moving average of them")
class BufferOfWeights(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("average", self.hidden.weight.detach().clone())

    def forward(self, x):
        if self.training:
            self.average.lerp_(self.hidden.weight.detach(), 0.1)
            return super().forward(x)
        return self.output(torch.tanh(functional.linear(x, self.average, self.hidden.bias)))


@zoo("calls counted in Python, and used", keeps=lambda m: m.calls)
class CountsCalls(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) / (1 + 0.001 * self.calls)


@zoo("calls counted in Python while training, in a list, and used", keeps=lambda m: m.sizes)
class CountsInList(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.sizes = []

    def forward(self, x):
        if self.training:
            self.sizes.append(len(x))
        return super().forward(x) * (1.0 + 0.1 * (len(self.sizes) % 7))


@zoo("calls counted in Python, for people only", keeps=lambda m: m.calls)
class CountsForPeople(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return super().forward(x)


@zoo("the last activations cached, and used in the next step", keeps=lambda m: sorted(m.cache))
class CachesTensors(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.cache = {}

    def forward(self, x):
        h = torch.tanh(self.hidden(x))
        if self.training:
            h = h + 0.1 * self.cache.get("mean", 0.0)
            self.cache["mean"] = h.detach().mean(0)
        return self.output(h)


@zoo("a mask made once for each batch size, in a dict", keeps=lambda m: sorted(m.masks))
class CachesMasks(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.masks = {}

    def forward(self, x):
        if len(x) not in self.masks:
            self.masks[len(x)] = torch.linspace(0.5, 1.0, len(x), dtype=x.dtype).unsqueeze(1)
        return super().forward(x) * self.masks[len(x)]


@zoo("a plain tensor as an attribute: neither parameter nor buffer, changed in place", is_one_model=True)
class TensorAttribute(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.scale = torch.ones(())

    def forward(self, x):
        if self.training:
            self.scale.mul_(0.999)
        return super().forward(x) * self.scale


_CALLS = [0]


def _forget() -> None:
    _CALLS[0] = 0
    ClassCounter.calls = 0
    _Counts.total = 0
    for holder in (elsewhere, _made_by_need, MadeByNeed):
        vars(holder).get("number") and delattr(holder, "number")
    globals().pop("_number", None)
    _ramp.calls = 0
    _BANK.zero_()
    elsewhere.forget()
    _table.cache_clear()


@zoo("a counter of the module's, outside the model", before=_forget, is_one_model=True)
class GlobalState(Body):
    def forward(self, x):
        _CALLS[0] += self.training
        return super().forward(x) / (1 + 0.01 * _CALLS[0])


@zoo("a counter of the class, not of the object", before=_forget, is_one_model=True)
class ClassCounter(Body):
    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return super().forward(x) / (1 + 0.001 * self.calls)


@functools.lru_cache
def _table(n, dtype):
    return torch.linspace(0.5, 1.0, n, dtype=dtype)


@zoo("a table from functools.lru_cache", before=_forget)
class LruCache(Body):
    def forward(self, x):
        return super().forward(x * _table(x.shape[1], x.dtype))


@zoo("an iterator that goes on with each call", is_one_model=True)
class Cycles(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.scales = itertools.cycle([1.0, 0.9, 0.8])

    def forward(self, x):
        return super().forward(x) * (next(self.scales) if self.training else 1.0)


@zoo("a layer that is trained after so many calls only", keeps=lambda m: m.calls, momentum=0.5)
class UnfreezesLater(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        h = torch.tanh(self.hidden(x))
        return self.output(h if self.calls > 10 else h.detach())


@zoo("a teacher that follows in forward: parameters without gradient that change all the same")
class Teacher(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.teacher = nn.Linear(6, num_outputs).requires_grad_(False)
        self.student = nn.Linear(6, num_outputs)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                for mine, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    mine.lerp_(theirs, 0.1)
        return super().forward(x) + self.student(x) + self.teacher(x)


@zoo("a queue of earlier samples and its position, as MoCo has it", sizes="ragged")
class Queue(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("queue", torch.zeros(8, 5))
        self.register_buffer("position", torch.zeros(1, dtype=torch.int64))

    def forward(self, x):
        h = torch.tanh(self.hidden(x))
        y = self.output(h - 0.1 * self.queue.clone().mean(0))
        if self.training:
            places = (torch.arange(len(x)) + int(self.position)) % 8
            self.queue[places] = h.detach()
            self.position[0] = (int(self.position) + len(x)) % 8
        return y


@zoo("a buffer that is registered in the first forward")
class BufferMadeLate(Body):
    def forward(self, x):
        if not hasattr(self, "mean"):
            self.register_buffer("mean", torch.zeros(6, dtype=x.dtype))
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return super().forward(x - self.mean)


@zoo("the number of the step anneals a temperature, in Python", keeps=lambda m: m.temperature)
class Anneals(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.temperature = 2.0

    def forward(self, x):
        if self.training:
            self.temperature = max(1.0, self.temperature * 0.99)
        return super().forward(x) / self.temperature


@zoo("`max_norm` renormalises the weights in forward", samples.tokens)
class MaxNorm(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.embedding = nn.Embedding(10, 4, max_norm=1.0)
        self.output = nn.Linear(20, num_outputs)

    def forward(self, x):
        return self.output(self.embedding(x.long()).flatten(1))


@zoo("weights normalised in forward through `.data`")
class NormalisesData(Body):
    def forward(self, x):
        if self.training:
            self.hidden.weight.data = functional.normalize(self.hidden.weight.data, dim=1)
        return super().forward(x)


@zoo("weights clamped in forward under no_grad")
class ClampsWeights(Body):
    def forward(self, x):
        with torch.no_grad():
            self.output.weight.clamp_(-0.3, 0.3)
        return super().forward(x)


# Hooks and parametrizations.


@zoo("hooks before and after a layer")
class ForwardHooks(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.hidden.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
        self.hidden.register_forward_hook(lambda module, inputs, output: output - output.mean(1, keepdim=True))


@zoo("a hook that keeps activations, by a bound method", keeps=lambda m: len(m.seen))
class HookKeeps(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.seen = []
        self.hidden.register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        self.seen.append(output.detach().shape)


@zoo("a hook on a tensor scales its gradient")
class GradientHook(Body):
    def forward(self, x):
        h = torch.tanh(self.hidden(x))
        if h.requires_grad:
            h.register_hook(lambda g: 0.5 * g)
        return self.output(h)


@zoo("a hook on a parameter scales its gradient", is_one_model=True)
class ParameterHook(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.hidden.weight.register_hook(lambda g: 0.5 * g)


@zoo("a hook of the backward pass of a layer")
class BackwardHook(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.hidden.register_full_backward_hook(lambda module, inputs, outputs: None)
        self.output.register_full_backward_pre_hook(lambda module, outputs: (2 * outputs[0],))


@zoo("weight norm, as a parametrization")
class WeightNorm(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        parametrizations.weight_norm(self.hidden)


@zoo("spectral norm: a buffer changed in forward, then read")
class SpectralNorm(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        parametrizations.spectral_norm(self.hidden)


@zoo("a parametrization of one's own")
class SymmetricWeight(nn.Module):
    class Symmetric(nn.Module):
        def forward(self, w):
            return w.triu() + w.triu(1).T

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.hidden = nn.Linear(6, 6)
        parametrize.register_parametrization(self.hidden, "weight", self.Symmetric())
        self.output = nn.Linear(6, num_outputs)

    def forward(self, x):
        with parametrize.cached():
            return self.output(torch.tanh(self.hidden(torch.tanh(self.hidden(x)))))


@zoo("orthogonal weights, by the matrix exponential")
class Orthogonal(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        parametrizations.orthogonal(self.hidden)


# Random draws.


@zoo("dropout")
def dropout(input_shape, num_outputs):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, num_outputs))


@zoo("noise from torch, while training")
class TorchNoise(Body):
    def forward(self, x):
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        return super().forward(x)


@zoo("noise from numpy, while training")
class NumpyNoise(Body):
    def forward(self, x):
        scale = float(np.random.rand()) if self.training else 0.5
        return super().forward(x) * (0.5 + scale)


@zoo("a layer left out by Python's random", momentum=0.5)
class PythonNoise(Body):
    def forward(self, x):
        if self.training and random.random() < 0.3:
            return self.output(x[:, :5])
        return super().forward(x)


@zoo("a random permutation of the batch: mixup")
class Mixup(Body):
    def forward(self, x):
        if self.training:
            x = 0.9 * x + 0.1 * x[torch.randperm(len(x))]
        return super().forward(x)


@zoo("noise of a generator of its own", is_one_model=True)
class OwnGenerator(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x):
        if self.training:
            x = x + 0.1 * torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        return super().forward(x)


@zoo("noise that is the same in each step, since forward seeds torch itself")
class SeedsItself(Body):
    def forward(self, x):
        if self.training:
            torch.manual_seed(0)
            x = x + 0.1 * torch.randn_like(x)
        return super().forward(x)


@zoo("noise under fork_rng: nobody else's draws change")
class ForksGenerator(Body):
    def forward(self, x):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return super().forward(functional.dropout(x, 0.3, self.training))


@zoo("gumbel softmax, alpha dropout, bernoulli")
class OtherNoise(Body):
    def forward(self, x):
        h = functional.alpha_dropout(self.hidden(x), 0.2, self.training)
        if self.training:
            h = h * functional.gumbel_softmax(h, tau=0.5) * torch.bernoulli(torch.full_like(h, 0.7))
        return self.output(h)


@zoo("initial weights from numpy")
class NumpyInit(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.from_numpy(0.3 * np.random.randn(5, 6)))


# Parts made late.


@zoo("lazy layers", samples.images)
def lazy(input_shape, num_outputs):
    return nn.Sequential(nn.LazyConv2d(3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_outputs))


@zoo("a lazy batch norm: its statistics too", sizes="pairs")
def lazy_norm(input_shape, num_outputs):
    return nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(num_outputs))


@zoo("a layer made in the first forward")
class MadeLate(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.late = None

    def forward(self, x):
        if self.late is None:
            self.late = nn.Linear(x.shape[1], x.shape[1]).to(x.dtype)
        return super().forward(torch.tanh(self.late(x)))


# Outputs of other shapes.

SHAPES = r"must return a floating-point tensor of shape .* but it returns float\d\d of shape"


@zoo("one output of shape (b,) where the targets are (b, 1)", samples.one_target, SHAPES)
class Squeezed(Body):
    def forward(self, x):
        return super().forward(x).squeeze(-1)


@zoo("one output for two targets", samples.targets, SHAPES)
def too_few_targets(input_shape, num_outputs):
    return nn.Linear(6, 1)


@zoo("three outputs for one target", samples.one_target, SHAPES)
def too_many_targets(input_shape, num_outputs):
    return nn.Linear(6, 3)


@zoo("the outputs in a tuple", expect="must return .* but it returns a tuple of 2")
class Tuple(Body):
    def forward(self, x):
        return super().forward(x), x


@zoo("the outputs in a dict", expect="must return .* but it returns a dict with 'logits'")
class Dict(Body):
    def forward(self, x):
        return {"logits": super().forward(x)}


@zoo("an axis more, (b, 1, classes)", expect=SHAPES)
class AxisMore(Body):
    def forward(self, x):
        return super().forward(x).unsqueeze(1)


@zoo("fewer outputs than classes", expect=SHAPES)
def too_few_classes(input_shape, num_outputs):
    return nn.Linear(6, num_outputs - 1)


@zoo("the tuple in evaluation only", expect="must return .* but it returns a tuple of 2")
class TupleInEval(Body):
    def forward(self, x):
        y = super().forward(x)
        return y if self.training else (y, x)


@zoo("squeezed: a batch of one loses its axis", expect=SHAPES)
class SqueezedAll(Body):
    def forward(self, x):
        return super().forward(x).squeeze()


@zoo("the whole batch's mean in every row's place: one row", expect=SHAPES)
class OneRow(Body):
    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)


@zoo("classes in the outputs' place", expect="must return a floating-point tensor .* but it returns int64")
class IntegerOutputs(Body):
    def forward(self, x):
        return super().forward(x).argmax(1, keepdim=True).expand(-1, 3)


@zoo("outputs that do not depend on the samples")
class ConstantOutputs(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x):
        return self.bias.expand(len(x), -1)


@zoo("a regression of two targets", samples.targets, forms=ALL)
def regression(input_shape, num_outputs):
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, num_outputs))


@zoo("more outputs than classes")
def more_outputs(input_shape, num_outputs):
    return nn.Linear(6, num_outputs + 2)


@zoo("probabilities where logits are meant")
class Softmax(Body):
    def forward(self, x):
        return super().forward(x).softmax(-1)


@zoo("outputs expanded from fewer numbers")
class Expanded(Body):
    def forward(self, x):
        y = super().forward(x)
        return y[:, :1].expand(-1, 3) + torch.tensor([0.0, 0.1, 0.2], dtype=x.dtype) * y


# Dtypes of their own.


@zoo("float64 inside", expect=EXACT)
class DoubleInside(Body):
    def forward(self, x):
        h = torch.tanh(functional.linear(x.double(), self.hidden.weight.double(), self.hidden.bias.double()))
        return self.output(h.to(x.dtype))


@zoo("a layer in half precision")
class HalfInside(Body):
    def forward(self, x):
        h = functional.linear(x.bfloat16(), self.hidden.weight.bfloat16(), self.hidden.bias.bfloat16())
        return self.output(torch.tanh(h.to(x.dtype)))


@zoo("autocast in forward")
class Autocast(Body):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = super().forward(x)  # float64 stays as it is
        return y.to(x.dtype)


@zoo("outputs in another dtype than the parameters")
class DoubleOutputs(Body):
    def forward(self, x):
        return super().forward(x).double()


@zoo("complex numbers: a Fourier transform", samples.signals)
class Fourier(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(2, 9))
        self.output = nn.Linear(32, num_outputs)

    def forward(self, x):
        return self.output(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=16).flatten(1))


@zoo("a complex parameter", samples.signals, "`filter` is complex")
class ComplexParameter(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(2, 9, dtype=torch.complex64))
        self.output = nn.Linear(32, num_outputs)

    def forward(self, x):
        assert self.filter.is_complex()
        return self.output(torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=16).flatten(1))


@zoo("token ids that come as floats", samples.tokens)
class Embeds(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.embedding = nn.Embedding(10, 4, padding_idx=0)
        self.output = nn.Linear(20, num_outputs)

    def forward(self, x):
        return self.output(self.embedding(x.long()).flatten(1))


@zoo("sparse gradients", samples.tokens)
class SparseGradients(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.embedding = nn.Embedding(10, 4, sparse=True)
        self.output = nn.Linear(20, num_outputs)

    def forward(self, x):
        return self.output(self.embedding(x.long()).flatten(1))


@zoo("a bag of embeddings", samples.tokens)
class Bag(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.bag = nn.EmbeddingBag(10, 4, mode="mean")
        self.output = nn.Linear(4, num_outputs)

    def forward(self, x):
        return self.output(self.bag(x.long()))


# Control flow by numbers, and operations that mix or sort.


@zoo("a branch by the data, of the whole batch")
class BranchByData(Body):
    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


@zoo("a loop until a norm is small")
class WhileLoop(Body):
    def forward(self, x):
        while x.norm() > 4:
            x = x / 2
        return super().forward(x)


@zoo("a number read by .item()")
class Item(Body):
    def forward(self, x):
        return super().forward(x) * (1 + 0.1 * torch.tanh(x.sum()).item())


@zoo("numpy inside forward")
class ThroughNumpy(Body):
    def forward(self, x):
        scale = torch.from_numpy(np.tanh(x.detach().numpy()).mean(axis=1, keepdims=True))
        return super().forward(x) * (1 + scale)


@zoo("a rare branch by a number that numpy read, which no operation of torch tells")
class RareBranch(Body):
    def forward(self, x):
        y = super().forward(x)
        return 0.5 * y if x.detach().numpy().max() > 2.3 else y


@zoo("a rare branch by tolist")
class RareByList(Body):
    def forward(self, x):
        y = super().forward(x)
        return 0.5 * y if max(x.detach().flatten().tolist()) > 2.3 else y


@zoo("unique and nonzero: shapes that depend on numbers", samples.tokens)
class Unique(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.output = nn.Linear(20, num_outputs)

    def forward(self, x):
        found, where = x.long().unique(return_inverse=True)
        return self.output(self.embedding(found)[where].flatten(1))


@zoo("the samples chosen by a mask")
class BooleanMask(Body):
    def forward(self, x):
        h = self.hidden(x)
        h[h < 0] = 0.1
        return self.output(h.clone())


@zoo("topk, sort, gather and scatter in a sample")
class SortsAndGathers(Body):
    def forward(self, x):
        x = x.sort(dim=1).values
        h = torch.tanh(self.hidden(x))
        values, places = h.topk(3, dim=1)
        h = torch.zeros_like(h).scatter(1, places, values) + h.gather(1, places[:, :1])
        return self.output(h)


@zoo("median and argmax pick by position")
class Median(Body):
    def forward(self, x):
        h = torch.tanh(self.hidden(x))
        h = h - h.median(dim=1, keepdim=True).values
        return self.output(h * functional.one_hot(h.argmax(1), 5).to(h.dtype) + 0.5 * h)


@zoo("the batch is centred: samples are mixed", sizes="pairs")
class MixesSamples(Body):
    def forward(self, x):
        return super().forward(x - x.mean(0))


@zoo("attention over the batch: samples are mixed")
class BatchAttention(Body):
    def forward(self, x):
        return super().forward((x @ x.T / 6).softmax(-1) @ x)


@zoo("the batch is sorted by its first feature")
class SortsBatch(Body):
    def forward(self, x):
        order = x[:, 0].argsort()
        return super().forward(x[order])[order.argsort()]


@zoo("the batch's size in the formula")
class UsesBatchSize(Body):
    def forward(self, x):
        return super().forward(x) * (1 + 0.1 * len(x))


@zoo("distances to prototypes, a solved system, a running sum")
class Linalg(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(4, 6))
        self.matrix = nn.Parameter(torch.eye(4) + 0.1 * torch.randn(4, 4))
        self.output = nn.Linear(4, num_outputs)

    def forward(self, x):
        d = torch.cdist(x, self.prototypes).cumsum(1)
        return self.output(torch.linalg.solve(self.matrix, d.T).T)


@zoo("resized, unfolded and shuffled images", samples.images)
class Resizes(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.output = nn.Linear(12, num_outputs)

    def forward(self, x):
        h = functional.interpolate(torch.relu(self.conv(x)), scale_factor=1.5, mode="bilinear")
        h = functional.unfold(functional.pixel_shuffle(h[:, :, :4, :4], 2), 2, stride=2).flatten(2)
        return self.output(functional.adaptive_max_pool1d(h, 3).flatten(1))


@zoo("a convolution whose kernel each sample makes: the batch in the groups", samples.images)
class DynamicConv(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.kernel = nn.Linear(32, 2 * 2 * 9)
        self.output = nn.Linear(8, num_outputs)

    def forward(self, x):
        b = len(x)
        kernel = self.kernel(x.flatten(1)).view(2 * b, 2, 3, 3)
        h = functional.conv2d(x.reshape(1, 2 * b, 4, 4), kernel, groups=b)
        return self.output(h.view(b, 8))


@zoo("fake quantisation, straight through")
class FakeQuantized(Body):
    def forward(self, x):
        weight = torch.fake_quantize_per_tensor_affine(self.hidden.weight, 0.05, 0, -128, 127)
        h = torch.tanh(functional.linear(x, weight, self.hidden.bias))
        return self.output(h + ((h * 8).round() / 8 - h).detach())


@zoo("gradients scaled by how often a token occurs in the batch", samples.tokens)
class ScaledByFrequency(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.embedding = nn.Embedding(10, 4, scale_grad_by_freq=True)
        self.output = nn.Linear(20, num_outputs)

    def forward(self, x):
        return self.output(self.embedding(x.long()).flatten(1))


@zoo("einsum, bilinear forms, a parameter list and a dict")
class Factors(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.factors = nn.ParameterList([nn.Parameter(0.5 * torch.randn(6, 3)) for _ in range(2)])
        self.more = nn.ParameterDict({"core": nn.Parameter(torch.randn(3, 3, 4))})
        self.bilinear = nn.Bilinear(4, 6, num_outputs)

    def forward(self, x):
        a, b = (x @ f for f in self.factors)
        return self.bilinear(torch.einsum("bi,bj,ijk->bk", a, b, self.more["core"]), x)


@zoo("no weights but a scale and a shift of dimension 0")
class Scalars(nn.Module):
    def __init__(self, num_outputs):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return (self.scale * x[:, :3] + self.shift * x[:, 3:]).tanh()


@zoo("a parameter without elements, and empty parts")
class Empty(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.empty = nn.Sequential()
        self.identity = nn.Identity()

    def forward(self, x):
        return super().forward(self.empty(self.identity(x))) + self.nothing.sum()


# Autograd of one's own.


@zoo("an autograd function of one's own")
class OwnFunction(Body):
    class Straight(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sign()

        @staticmethod
        def backward(ctx, g):
            return g

    def forward(self, x):
        return self.output(self.Straight.apply(self.hidden(x)))


@zoo("the same with setup_context, for functorch")
class OwnFunctionVmap(Body):
    class Reverse(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x.clone()

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            return -0.5 * g

    def forward(self, x):
        return self.output(torch.tanh(self.Reverse.apply(self.hidden(x))))


@zoo("activations computed again in the backward pass")
class Checkpointed(Body):
    def forward(self, x):
        h = torch.utils.checkpoint.checkpoint(self.hidden, x, use_reentrant=False)
        return self.output(torch.tanh(h))


@zoo("a gradient inside forward, by autograd.grad: energy's force")
class GradInside(Body):
    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = torch.tanh(self.hidden(x)).square().sum()
            force = torch.autograd.grad(energy, x, create_graph=self.training)[0]
        return self.output(force[:, :5])


@zoo("torch.func inside forward")
class FuncInside(Body):
    def forward(self, x):
        force = torch.func.vmap(torch.func.grad(lambda v: torch.tanh(self.hidden(v)).square().sum()))(x)
        return self.output(force[:, :5])


@zoo("functional_call inside forward, with changed weights: a hypernetwork")
class Hypernetwork(Body):
    def forward(self, x):
        weight = self.hidden.weight * 0.5
        h = functional_call(self.hidden, {"weight": weight, "bias": self.hidden.bias}, (x,))
        return self.output(torch.tanh(h))


# What cannot be copied, or is not Python.


@zoo("a lock, which cannot be copied", is_one_model=True)
class HoldsLock(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.lock = threading.Lock()

    def forward(self, x):
        with self.lock:
            return super().forward(x)


@zoo("a lambda and an open generator", is_one_model=True)
class HoldsLambda(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.activation = lambda h: torch.tanh(h) * 1.1
        self.numbers = (i for i in range(3))

    def forward(self, x):
        return self.output(self.activation(self.hidden(x)))


@zoo("old-style weight norm, whose weight is no leaf", is_one_model=True)
class OldWeightNorm(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.hidden = torch.nn.utils.weight_norm(self.hidden)


@zoo("a script module", is_one_model=True)
def scripted(input_shape, num_outputs):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, num_outputs)))


@zoo("a part that is no module's child: in a plain list", is_one_model=True)
class HiddenList(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.hidden_layers = [nn.Linear(6, 6)]

    def forward(self, x):
        return super().forward(x + self.hidden_layers[0].to(x.dtype)(x).detach())


@zoo("another forward while training: an auxiliary path")
class TrainEval(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.side = nn.Linear(6, num_outputs)

    def forward(self, x):
        y = super().forward(x)
        return y + 0.3 * self.side(x) if self.training else y


@zoo("a model that sets itself to eval in forward", is_one_model=True)
class SetsEval(Body):
    def forward(self, x):
        y = super().forward(x)
        if self.training and float(y.detach().sum()) > 1e9:
            self.eval()
        return y


@zoo("a model that replaces one of its parameters in forward", expect="must make its parameters before it trains")
class ReplacesParameter(Body):
    def forward(self, x):
        if self.training:
            self.output.bias = nn.Parameter(self.output.bias.detach().clamp(-0.1, 0.1))
        return super().forward(x)


@zoo("a counter of another module, in a function of that module", before=_forget, is_one_model=True)
class OtherModule(Body):
    def forward(self, x):
        outputs = super().forward(x)
        return elsewhere.warm(outputs) if self.training else outputs


@zoo("another module's dict, which counts late", before=_forget, is_one_model=True)
class OtherModulesDict(Body):
    def forward(self, x):
        elsewhere.STATE["calls"] += self.training
        return super().forward(x) * (0.5 if elsewhere.STATE["calls"] > 12 else 1.0)


@zoo("a generator of another module", before=_forget, is_one_model=True)
class OtherModulesNoise(Body):
    def forward(self, x):
        outputs = super().forward(x)
        noise = elsewhere.rng.normal(size=tuple(outputs.shape))
        return outputs + 0.1 * torch.from_numpy(noise).to(outputs) if self.training else outputs


def _ramp(outputs):
    _ramp.calls += 1
    return outputs * min(1.0, _ramp.calls / 20)


@zoo("an attribute of a function", before=_forget, is_one_model=True)
class FunctionAttribute(Body):
    def forward(self, x):
        return _ramp(super().forward(x)) if self.training else super().forward(x)


@zoo("a counter in an array of Python's", keeps=lambda m: m.calls.tolist(), is_one_model=True)
class ArrayCounter(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.calls = array.array("l", [0])

    def forward(self, x):
        self.calls[0] += self.training
        return super().forward(x) / (1 + 0.01 * self.calls[0])


@zoo("an iterator over a list, whose values change late", is_one_model=True)
class ListIterator(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.scales = iter([1.0] * 12 + [0.5] * 100_000)

    def forward(self, x):
        return super().forward(x) * (next(self.scales) if self.training else 1.0)


@zoo("an attribute of a parameter", is_one_model=True)
class ParameterAttribute(Body):
    def forward(self, x):
        weight = self.hidden.weight
        weight.calls = getattr(weight, "calls", 0) + self.training
        return super().forward(x) / (1 + 0.01 * weight.calls)


_SCHEDULE = (1.0 / (1 + i) for i in itertools.count())


@zoo("a generator object of the module's", expect="_SCHEDULE is an iterator")
class GlobalGenerator(Body):
    def forward(self, x):
        return super().forward(x) * (next(_SCHEDULE) if self.training else 1.0)


@zoo("a hook that clips `.grad`", expect="register_post_accumulate_grad_hook")
class ClipsAccumulated(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)

        def clip(p):
            p.grad.clamp_(-0.01, 0.01)

        self.hidden.weight.register_post_accumulate_grad_hook(clip)


@zoo("numbers read by numpy in a hook of the backward pass")
class NumpyInBackward(Body):
    def forward(self, x):
        h = torch.tanh(self.hidden(x))
        if h.requires_grad:
            h.register_hook(lambda g: g * (0.1 if np.abs(x.detach().numpy()).max() > 2.5 else 1.0))
        return self.output(h)


@zoo("a sparse matrix as an attribute, as graph networks have it")
class SparseAttribute(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.neighbours = torch.eye(6).to_sparse()

    def forward(self, x):
        return super().forward(torch.sparse.mm(self.neighbours.to(x.dtype), x.T).T)


@zoo("a sparse buffer", expect="buffer `neighbours` is sparse_coo")
class SparseBuffer(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.register_buffer("neighbours", torch.eye(6).to_sparse())


@zoo("a checkpoint that only `.backward()` can do", expect="use_reentrant=False")
class ReentrantCheckpoint(Body):
    def forward(self, x):
        if not self.training:
            return super().forward(x)
        h = torch.utils.checkpoint.checkpoint(self.hidden, x.requires_grad_(), use_reentrant=True)
        return self.output(torch.tanh(h))


_BANK = torch.zeros(700, 100)


@zoo("a large tensor of the module's", before=_forget, is_one_model=True)
class LargeGlobal(Body):
    def forward(self, x):
        if self.training:
            _BANK.add_(0.01)
        return super().forward(x) / (1 + _BANK[0, 0].to(x.dtype))


@zoo("another module, imported in the method that changes it", before=_forget, is_one_model=True)
class ImportsInside(Body):
    def tick(self):
        from .elsewhere import STATE

        STATE["calls"] += 1
        return STATE["calls"]

    def forward(self, x):
        return super().forward(x) * (0.5 if self.training and self.tick() > 12 else 1.0)


def _made_by_need(outputs):
    """Counts in attributes that are not there before the first call."""
    global _number
    _number = globals().get("_number", 0) + 1
    elsewhere.number = getattr(elsewhere, "number", 0) + 1
    _made_by_need.number = getattr(_made_by_need, "number", 0) + 1
    MadeByNeed.number = getattr(MadeByNeed, "number", 0) + 1
    counts = _number, elsewhere.number, _made_by_need.number, MadeByNeed.number
    return outputs * min(1.0, sum(counts) / 80)


@zoo("counters that come into being in the first call", before=_forget, is_one_model=True)
class MadeByNeed(Body):
    def forward(self, x):
        return _made_by_need(super().forward(x)) if self.training else super().forward(x)


class _Counts(type):
    total = 0


@zoo("a counter of the class's class", before=_forget, is_one_model=True)
class MetaclassCounter(Body, metaclass=_Counts):
    def forward(self, x):
        type(type(self)).total += self.training
        return super().forward(x) / (1 + 0.01 * type(type(self)).total)


@zoo("a counter in a large array of its own", is_one_model=True)
class LargeArray(Body):
    def __init__(self, input_shape, num_outputs):
        super().__init__(input_shape, num_outputs)
        self.visits = np.zeros(100_000)

    def forward(self, x):
        self.visits[5] += self.training
        return super().forward(x) * (0.5 if self.visits[5] > 12 else 1.0)
