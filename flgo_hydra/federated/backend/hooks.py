"""Hooks that run in `.backward()` only, where nobody calls it: refused in a sentence."""

import sys
from types import FrameType
from typing import Any

import torch
from torch import nn

from flgo_hydra import own_code
from flgo_hydra.federated.refused import Refused


class _Called(Exception):
    pass


def refuse_hooks(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if getattr(p, "_post_accumulate_grad_hooks", None):
            raise Refused(
                f"`{name}` has a hook that runs when `.backward()` has added to `.grad` "
                "(`register_post_accumulate_grad_hook`), but gradients are taken with `torch.autograd.grad` here, and "
                "it would never run. Use `register_hook`, or change the gradient in the algorithm's `correct`."
            )
    name = _hooked_where_gradients_add_up(model)
    if name:
        raise Refused(
            f"`{name}` has a hook at the node that adds to `.grad` (`AccumulateGrad`), but gradients are taken with "
            "`torch.autograd.grad` here, and it would never run. Use the parameter's `register_hook`, or change the "
            "gradient in the algorithm's `correct`."
        )


def _hooked_where_gradients_add_up(model: nn.Module) -> str:
    """The name of a parameter whose hooks run only in `.backward()`, or nothing; none of them runs.

    Torch does not tell of such hooks, so gradients of zero are added up, and the first call of a user's function is
    ended before it begins.
    """

    def end(frame: FrameType, event: str, _: Any) -> None:
        caller = frame.f_back.f_code.co_name if frame.f_back is not None else ""
        if event == "call" and "run_backward" in caller and not own_code.is_installed(frame.f_code.co_filename):
            raise _Called

    for name, p in model.named_parameters():
        if not p.requires_grad or p._backward_hooks or p.layout != torch.strided:
            continue
        kept, profiler = p.grad, sys.getprofile()
        with torch.enable_grad():
            same = p.view_as(p)
        p.grad = None
        sys.setprofile(end)
        try:
            torch.autograd.backward(same, torch.zeros_like(same))
        except _Called:
            return name
        finally:
            sys.setprofile(profiler)
            p.grad = kept
    return ""
