"""Gradients of functions of a model's parameters, inside of `torch.vmap` and of each other.

`torch.func.grad` does this, too. But its first call imports torch's compiler, which takes longer than many a run; it
cannot tell a gradient of zeros from none; it keeps the graph of each gradient for another one, wanted or not; and where
nothing is batched, plain autograd takes half the time.
"""

import contextvars
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.eager_transforms import (
    _create_differentiable,
    _undo_create_differentiable,
    _wrap_all_tensors,
    grad_increment_nesting,
)

_depth = contextvars.ContextVar("gradients under way", default=0)


Function = Callable[[dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


def gradient_of(function: Function, params: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the gradient of a function's value at `params`, of those that it depends on, and what else it returned.

    Args:
        function: returns a tensor without dimensions, and others by name.
    """
    if peek_interpreter_stack() is None:  # no transform of torch.func is under way
        return _plain(function, params)
    depth = _depth.get()
    token = _depth.set(depth + 1)
    try:
        with grad_increment_nesting() as level, torch.enable_grad():
            at: dict[str, Tensor] = _wrap_all_tensors(params, level)
            for p in at.values():
                _create_differentiable(p, level)
            value, more = function(at)
            grads = _grads(value, at, has_outer=depth > 0)
            unwrapped: Any = _undo_create_differentiable((grads, more), level)  # type: ignore[type-var]
            return unwrapped[0], unwrapped[1]
    finally:
        _depth.reset(token)


def _plain(function: Function, params: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By autograd alone: where an outer gradient goes through these parameters, it goes through this one."""
    has_outer = torch.is_grad_enabled() and any(p.requires_grad for p in params.values())
    with torch.enable_grad():
        at = {name: p if has_outer and p.requires_grad else p.detach().requires_grad_() for name, p in params.items()}
        value, more = function(at)
        grads = _grads(value, at, has_outer)
        return grads, more if has_outer else {name: t.detach() for name, t in more.items()}


def _grads(value: Tensor, at: dict[str, Tensor], has_outer: bool) -> dict[str, Tensor]:
    if not value.requires_grad:
        return {}
    found = torch.autograd.grad(value, list(at.values()), create_graph=has_outer, allow_unused=True)
    return {name: g for name, g in zip(at, found, strict=True) if g is not None}
