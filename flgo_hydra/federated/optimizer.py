"""The clients' optimizers as pure functions: one step of one parameter.

They follow `torch.optim` (same formulas, same defaults) without being it: a first `torch.optim` object costs a second
of imports, its learning rate cannot differ between the lanes of a batch, and its state is not a value. State is new in
each round: nothing is carried from one cohort to the next, as in FLGo.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Slots = tuple[Tensor, ...]
Number = float | Tensor
Step = Callable[[Tensor, Tensor, Slots, Any, Any], tuple[Tensor, Slots]]
"""(parameter, gradient, slots, lr, number of this step from 1) -> (parameter, slots)"""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer's step, and how many tensors of a parameter's shape it keeps (zeros at first)."""

    step: Step
    num_slots: int
    is_plain_sgd: bool = False
    """the step is p - lr * (g + weight_decay * p), which a backend may do in place"""
    weight_decay: float = 0.0
    counts: bool = False
    """a step depends on its number, which each parameter counts by itself"""


def build_optimizer(name: str, momentum: Number = 0.0, weight_decay: Number = 0.0) -> Optimizer:
    """Returns the optimizer of that name (`config.OPTIMIZERS`).

    Args:
        momentum: of sgd and rmsprop; momentum and nesterov take 0.9 where it is 0.
        weight_decay: added to the gradient as weight_decay * p, except for adamw, which shrinks the parameter.
            Both may be tensors of one element (the lanes of a batch differ), which then are not 0.
    """
    if name == "sgd" and is_zero(momentum):
        if isinstance(weight_decay, Tensor):
            return Optimizer(_sgd(weight_decay), 0)
        return Optimizer(_sgd(weight_decay), 0, is_plain_sgd=True, weight_decay=weight_decay)
    if name in ("sgd", "momentum", "nesterov"):
        return Optimizer(
            _momentum(0.9 if is_zero(momentum) else momentum, weight_decay, nesterov=name == "nesterov"), 1
        )
    if name in ("adam", "adamw"):
        return Optimizer(_adam(weight_decay, is_decoupled=name == "adamw"), 2, counts=True)
    if name == "rmsprop":
        return Optimizer(_rmsprop(momentum, weight_decay), 1 if is_zero(momentum) else 2)
    if name == "adagrad":
        return Optimizer(_adagrad(weight_decay), 1)
    if name == "adadelta":
        return Optimizer(_adadelta(weight_decay), 2)
    raise AssertionError(name)  # config.OptionConf has checked it


def _sgd(weight_decay: Number) -> Step:
    def step(p: Tensor, g: Tensor, slots: Slots, lr: Any, count: Any) -> tuple[Tensor, Slots]:
        return p - lr * (g + weight_decay * p if not is_zero(weight_decay) else g), slots

    return step


def _momentum(momentum: Number, weight_decay: Number, nesterov: bool) -> Step:
    def step(p: Tensor, g: Tensor, slots: Slots, lr: Any, count: Any) -> tuple[Tensor, Slots]:
        if not is_zero(weight_decay):
            g = g + weight_decay * p
        v = momentum * slots[0] + g
        return p - lr * (g + momentum * v if nesterov else v), (v,)

    return step


def _adam(weight_decay: Number, is_decoupled: bool, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Step:
    """Kingma and Ba 2015, https://arxiv.org/abs/1412.6980; adamw: https://arxiv.org/abs/1711.05101"""

    def step(p: Tensor, g: Tensor, slots: Slots, lr: Any, count: Any) -> tuple[Tensor, Slots]:
        if not is_decoupled and not is_zero(weight_decay):
            g = g + weight_decay * p
        m = b1 * slots[0] + (1 - b1) * g
        v = b2 * slots[1] + (1 - b2) * g * g
        denominator = torch.sqrt(v) / (1 - b2**count) ** 0.5 + eps
        change = lr / (1 - b1**count) * m / denominator
        if is_decoupled and not is_zero(weight_decay):
            # Not p * (1 - lr * weight_decay): in float32 that is p again where lr * weight_decay is below 3e-8.
            change = change + lr * weight_decay * p
        return p - change, (m, v)

    return step


def _rmsprop(momentum: Number, weight_decay: Number, alpha: float = 0.99, eps: float = 1e-8) -> Step:
    def step(p: Tensor, g: Tensor, slots: Slots, lr: Any, count: Any) -> tuple[Tensor, Slots]:
        if not is_zero(weight_decay):
            g = g + weight_decay * p
        square = alpha * slots[0] + (1 - alpha) * g * g
        direction = g / (torch.sqrt(square) + eps)
        if is_zero(momentum):
            return p - lr * direction, (square,)
        buffer = momentum * slots[1] + direction
        return p - lr * buffer, (square, buffer)

    return step


def _adagrad(weight_decay: Number, eps: float = 1e-10) -> Step:
    """Duchi et al. 2011, https://jmlr.org/papers/v12/duchi11a.html"""

    def step(p: Tensor, g: Tensor, slots: Slots, lr: Any, count: Any) -> tuple[Tensor, Slots]:
        if not is_zero(weight_decay):
            g = g + weight_decay * p
        total = slots[0] + g * g
        return p - lr * g / (torch.sqrt(total) + eps), (total,)

    return step


def _adadelta(weight_decay: Number, rho: float = 0.9, eps: float = 1e-6) -> Step:
    """Zeiler 2012, https://arxiv.org/abs/1212.5701"""

    def step(p: Tensor, g: Tensor, slots: Slots, lr: Any, count: Any) -> tuple[Tensor, Slots]:
        if not is_zero(weight_decay):
            g = g + weight_decay * p
        square = rho * slots[0] + (1 - rho) * g * g
        change = torch.sqrt(slots[1] + eps) / torch.sqrt(square + eps) * g
        return p - lr * change, (square, rho * slots[1] + (1 - rho) * change * change)

    return step


def is_zero(number: Number) -> bool:
    """True for the number 0; a tensor stands for lanes whose values are not looked at."""
    return not isinstance(number, Tensor) and number == 0


class StepCounts:
    """How many steps each parameter has taken, as `torch.optim` counts: those in which it had a gradient."""

    def __init__(self, names: Iterable[str]) -> None:
        self._counts = dict.fromkeys(names, 0)

    def next(self, names: Iterable[str]) -> dict[str, int]:
        """The numbers of the step that these parameters take now, from 1."""
        for name in names:
            self._counts[name] += 1
        return self._counts

    def next_of_all(self, names: Collection[str]) -> int | None:
        """The same where it is one number; None, and nothing is counted, where it is not."""
        numbers = {self._counts[name] for name in names}
        if len(numbers) != 1:
            return None
        self.next(names)
        return numbers.pop() + 1


def clip(grads: dict[str, Tensor], max_norm: Number) -> dict[str, Tensor]:
    """Scales the gradients so that their common 2-norm is at most `max_norm` (`torch.nn.utils.clip_grad_norm_`)."""
    if not grads:
        return grads
    norm = torch.sqrt(torch.stack([(g * g).sum() for g in grads.values()]).sum())
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return {name: g * factor for name, g in grads.items()}
