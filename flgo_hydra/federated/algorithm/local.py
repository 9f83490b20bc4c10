"""What a client's local step may use: its batch, gradients of losses on it, and the optimizer.

All of it is pure: under `torch.vmap` one call stands for the step of many clients. A batch may be filled up with
samples that count nothing, so a mean over the batch is `at.mean`.

Buffers, such as batch statistics, follow one rule, whoever trains: what the model makes of them in the first forward
pass of a step's first gradient is what the client goes on with. Every other pass of the step starts from the same ones,
and what it changes is dropped.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flgo_hydra.federated.algorithm.gradients import gradient_of
from flgo_hydra.federated.algorithm.tensors import Tensors
from flgo_hydra.federated.optimizer import Number, Optimizer, Slots, clip, is_zero
from flgo_hydra.federated.refused import Refused

_GRAIN = 1e-3
Losses = Callable[[Tensors], Tensor]
"""The loss of each sample of the batch, (batch,), from a model's parameters."""


@dataclass
class Batch:
    """B samples of a client, and the model's losses and gradients on them."""

    x: Tensor
    """(B, …)"""
    y: Tensor
    """(B,) of classes, or (B, num_outputs)"""
    weights: Tensor | None
    """of the samples in the batch's mean, (B,), which sum to 1; None: all count alike"""
    buffers: Tensors
    """of the model"""
    next_buffers: Tensors | None = field(default=None, init=False)
    """what the first gradient has made of them"""
    _loss: Callable[[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]], Tensor] = field(kw_only=True)
    """the algorithm's"""
    _model: nn.Module = field(kw_only=True)
    _criterion: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True)
    _fixed: Tensors = field(kw_only=True)
    """the model's parameters that are not trained"""
    _passing: Callable[[], AbstractContextManager[Any]] = field(default=nullcontext, kw_only=True)
    """open around each forward pass"""
    _changed: Tensors | None = field(default=None, init=False)

    def outputs(self, params: Tensors) -> Tensor:
        """The model's outputs on the batch, (B, num_outputs)."""
        # Copies: the model may change them in place.
        buffers = {name: b.clone() for name, b in self.buffers.items()}
        given = {**params, **buffers, **self._fixed}
        with self._passing():
            outputs: Tensor = functional_call(self._model, given, (self.x,))
        if self._changed is None:
            # What the model has assigned anew stands there now.
            self._changed = {name: given[name] for name in buffers}
        return outputs

    def features(self, params: Tensors, module: str | None = None) -> tuple[Tensor, Tensor]:
        """Returns the inputs of a module of the model, (B, …), and the model's outputs, (B, num_outputs).

        Args:
            module: its name in the model; None: the last `torch.nn.Linear`.
        """
        with _inputs_of(self._model, module) as seen:
            outputs = self.outputs(params)
        if not seen:
            raise Refused(f"`features` asks for the inputs of `{module}`, but the model does not call it.")
        return seen[-1], outputs

    def losses(self, params: Tensors) -> Tensor:
        """The algorithm's loss of each sample, (B,)."""
        return self.loss_of(self.outputs(params))

    def loss_of(self, outputs: Tensor) -> Tensor:
        """The same, of outputs that are there already, (B, num_outputs)."""
        return self._loss(outputs, self.y, self._criterion)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the batch's samples of `values`, (B, …)."""
        if self.weights is None:
            return values.mean(0)
        weighted: Tensor = torch.tensordot(self.weights, values, 1)
        return weighted

    def gradient(self, params: Tensors, losses: Losses | None = None) -> Tensors:
        """The gradient at `params` of the mean of `losses`, by default the algorithm's own.

        A parameter that they do not depend on is not among them.
        """
        of_each = losses or self.losses

        def mean(at: Tensors) -> tuple[Tensor, Tensors]:
            self._changed = None
            found = of_each(at)
            return (self.mean(found) if found.dim() else found), self._changed or {}

        grads, changed = gradient_of(mean, params)
        self._changed = None
        if self.next_buffers is None and changed:
            self.next_buffers = {name: b.detach() for name, b in changed.items()}
        return grads


@dataclass
class LocalBatch(Batch):
    """One local step's batch, and the optimizer."""

    count: Any = field(kw_only=True)
    """the step's number in this round, from 1"""
    num_steps: Any = field(kw_only=True)
    """of the client in this round"""
    slots: dict[str, Slots] = field(kw_only=True)
    """the optimizer's, by model and parameter; changed by `descend`"""
    _optimizer: Optimizer = field(kw_only=True)
    _clip_grad: Number = field(kw_only=True)
    _lr: Any = field(kw_only=True)

    def descend(self, model: str, params: Tensors, grads: Tensors, when: Tensor | None = None) -> Tensors:
        """The next parameters after the optimizer's step along `grads`, clipped as `clip_grad` says.

        Args:
            model: names what the optimizer remembers (momentum, …) from step to step.
            grads: of all parameters, or of those that move.
            when: whether the step is taken, a tensor of a bool: else the parameters, and what the optimizer remembers
                of them, stay.
        """
        if not is_zero(self._clip_grad):
            grads = clip(grads, self._clip_grad)
        found = dict(params)
        for name, g in grads.items():
            p, key = params[name], f"{model}.{name}"
            before = self.slots[key] if key in self.slots else self._first_slots(p)
            *slots, count = before if self._optimizer.counts else (*before, torch.zeros(()))
            found[name], after = self._optimizer.step(p, g, tuple(slots), self._lr, count + 1)
            self.slots[key] = (*after, count + 1) if self._optimizer.counts else after
            if when is not None:
                found[name] = torch.where(when, found[name], p)
                pairs = zip(self.slots[key], before, strict=True)
                self.slots[key] = tuple(torch.where(when, new, old) for new, old in pairs)
        return found

    def is_among_first(self, share: Any) -> Tensor:
        """Whether this step is among the first of the client's in this round, a tensor without dimensions.

        Args:
            share: of its steps, rounded down, but at least one.
        """
        # 0.7 * 90 is 62.999… in one dtype and 63 in another: the added grain keeps what was meant.
        of_all = torch.as_tensor(share * self.num_steps, device=self.x.device) + _GRAIN
        return torch.as_tensor(self.count, device=self.x.device) <= torch.clamp(torch.floor(of_all), min=1)

    def _first_slots(self, p: Tensor) -> Slots:
        """What the optimizer remembers of a parameter at first; one that counts steps counts each parameter's."""
        slots = tuple(torch.zeros_like(p) for _ in range(self._optimizer.num_slots))
        return (*slots, torch.zeros((), dtype=p.dtype, device=p.device)) if self._optimizer.counts else slots


@contextmanager
def _inputs_of(model: nn.Module, name: str | None) -> Iterator[list[Tensor]]:
    """While open, the inputs of a module's calls are noted."""
    modules = dict(model.named_modules())
    if name is None:
        name = next((n for n, m in reversed(modules.items()) if isinstance(m, nn.Linear)), "")
    if not name or name not in modules:
        known = ", ".join(f"`{n}`" for n in modules if n)
        what = f"`{name}`, which it has not" if name else "the last `torch.nn.Linear`, of which it has none"
        raise Refused(f"`features` asks the model for the inputs of {what}. Its modules are {known or 'none'}.")
    seen: list[Tensor] = []
    handle = modules[name].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()
