"""Whether all that a model computes is torch's own code: then nothing of the user's can change how, however late.

`nn.Sequential(nn.Flatten(), nn.Linear(64, 10))` is most people's own model, and need not be looked at in each round.
"""

import collections
import os
import typing
import weakref
from collections.abc import Iterable
from types import FunctionType, MethodType
from typing import Any

import torch
import typing_extensions
from torch import nn
from torch.nn import functional

import flgo_hydra
from flgo_hydra.federated.backend.python_state import global_hooks

_FOLDERS = (
    *(os.path.dirname(str(package.__file__)) + os.sep for package in (torch, flgo_hydra)),
    *(typing.__file__, typing_extensions.__file__, collections.__file__),
)
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, weakref.ref)
_OWN = {"_parameters", "_buffers", "_modules"}


def runs_only_torch(model: nn.Module) -> bool:
    """True where every layer is a class of torch's, or of ours, without hooks or functions of anybody else."""
    if global_hooks() or not _are_torchs([*vars(torch).values(), *vars(functional).values()]):
        return False
    tensors = (*model.parameters(), *model.buffers())
    return all(map(_is_plain_tensor, tensors)) and all(map(_is_torchs, model.modules()))


def _is_torchs(module: nn.Module) -> bool:
    kinds = [kind for kind in type(module).__mro__ if kind is not object]
    if not all(kind.__module__.partition(".")[0] in ("torch", "flgo_hydra", "typing") for kind in kinds):
        return False
    if not all(_are_torchs(vars(kind).values()) for kind in kinds):
        return False
    return all(_is_plain(value) for name, value in vars(module).items() if name not in _OWN)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, dict):  # hooks, most of them
        return all(_is_plain(key) and _is_plain(one) for key, one in value.items())
    if isinstance(value, torch.Tensor):
        return _is_plain_tensor(value)
    is_function = isinstance(value, FunctionType | MethodType) and _are_torchs([value])
    return isinstance(value, _PLAIN) or is_function


def _is_plain_tensor(tensor: torch.Tensor) -> bool:
    is_torchs = type(tensor) in (torch.Tensor, nn.Parameter)
    has_hooks = tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None)
    return (
        is_torchs and not has_hooks and not (set(vars(tensor)) - {"_is_param"} if hasattr(tensor, "__dict__") else ())
    )


def _are_torchs(values: Iterable[Any]) -> bool:
    """Whether those of the values that are functions are torch's: somebody may have put one of his own among them."""
    functions = (getattr(value, "__func__", value) for value in values)
    return all(
        function.__code__.co_filename.startswith(_FOLDERS)
        for function in functions
        if isinstance(function, FunctionType)
    )
