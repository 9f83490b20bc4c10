"""What a local step of a model computes: how many operations, multiplications and bytes.

One forward and backward pass is taken on a copy of the model, at two small batch sizes, and every ATen operation is
counted; larger batches follow, since each kind of work is a number a step and a number a sample. The model, its
buffers and all generators stay as they are. What an algorithm or optimizer adds is not looked at: runs that differ in
those have one profile.
"""

import contextvars
import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flgo_hydra.federated.backend.beyond import nothing_changed_beyond
from flgo_hydra.federated.backend.python_state import outside_kept
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.randomness import generators_kept
from flgo_hydra.recorder.operations import is_random, is_view, short_name
from flgo_hydra.recorder.tape import Op, record

_LARGE, _SMALL = 8, 4
"""Samples of the passes. Not one, which batch normalisation refuses."""
_DENSE = ("mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot")
_OTHER_CONVOLUTIONS = ("mkldnn_convolution", "_slow_conv2d_forward", "_conv_depthwise2d")

_LAYERS = ("norm", "pool", "rnn", "attention", "embedding", "upsample")


@dataclass(frozen=True)
class Amount:
    """Work of a forward and a backward pass."""

    ops: float = 0.0
    """operations that compute something: views are not counted"""
    layers: float = 0.0
    """of these norms, pools and the like, which take several times as long to begin"""
    convs: float = 0.0
    """and convolutions, which take longest"""
    dense: float = 0.0
    """multiplications of matrix products"""
    conv: float = 0.0
    """of convolutions"""
    bytes: float = 0.0
    """read and written, as if nothing were kept in a register"""

    def plus(self, other: "Amount", factor: float = 1.0) -> "Amount":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Amount(*(a + factor * b for a, b in pairs))


@dataclass(frozen=True)
class Profile:
    """Work by batch size."""

    fixed: Amount
    per_sample: Amount
    is_random: bool
    """the model draws random numbers"""

    def at(self, batch: float) -> Amount:
        return self.fixed.plus(self.per_sample, batch)


def take_profile(model: nn.Module, data: Data) -> Profile:
    """Raises whatever the model does when it is copied, or called with a small batch."""
    found: list[tuple[Amount, bool]] = []
    with generators_kept(), outside_kept(model=model), nothing_changed_beyond() as beyond:
        for size in (_SMALL, _LARGE):
            found.append(contextvars.copy_context().run(_amount, copy.deepcopy(model), data, size))
    if beyond.changes:
        raise RuntimeError(str(beyond))
    (small, _), (large, draws) = found
    difference = large.plus(small, -1.0)
    step = Amount(*(max(0.0, value / (_LARGE - _SMALL)) for value in vars(difference).values()))
    return Profile(small.plus(step, -_SMALL), step, draws)


def _amount(model: nn.Module, data: Data, size: int) -> tuple[Amount, bool]:
    rows = torch.arange(size, device=data.x_train.device) % len(data.x_train)
    x, y = data.x_train[rows], data.y_train[rows]
    params = [p for p in model.parameters() if p.requires_grad]
    model.train()

    def both_ways() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            loss = data.mean_criterion(model(x), y)
            return torch.autograd.grad(loss, params, allow_unused=True)

    ops = [op for op in record(both_ways)[0] if op.outputs and not is_view(op)]
    total = Amount()
    for op in ops:
        total = total.plus(_amount_of(op))
    return total, any(map(is_random, ops))


def _amount_of(op: Op) -> Amount:
    name = short_name(op)
    num_bytes = float(sum(t.numel() * t.element_size() for t in [*op.inputs, *op.outputs]))
    if name in _DENSE:
        left = list(op.inputs)[1 if name in ("addmm", "baddbmm", "addmv") else 0]
        return Amount(ops=1.0, dense=float(op.output.numel() * left.shape[-1]), bytes=num_bytes)
    if name in ("convolution", "_convolution", *_OTHER_CONVOLUTIONS):
        return Amount(ops=1.0, convs=1.0, conv=_per_weight(op.output, op.args[1]), bytes=num_bytes)
    if name == "convolution_backward":
        both = sum(map(bool, op.args[-1][:2]))
        return Amount(ops=1.0, convs=both, conv=both * _per_weight(op.args[0], op.args[2]), bytes=num_bytes)
    is_layer = any(word in name for word in _LAYERS)
    return Amount(ops=1.0, layers=float(is_layer), bytes=num_bytes)


def _per_weight(outputs: Tensor, weight: Tensor) -> float:
    return float(outputs.numel() * weight[0].numel())
