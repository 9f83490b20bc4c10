"""Notices calls of torch that a faster form does not repeat."""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from flgo_hydra.recorder.tape import readers_noticed

_PACKAGE = Path(__file__).resolve().parents[2]


class Calls(TorchFunctionMode):
    """Notices calls that a faster form does not repeat, whatever they compute at the moment."""

    _LOOK_UPS = (functional.embedding, functional.embedding_bag, torch.embedding, torch.embedding_bag)

    def __init__(self) -> None:
        super().__init__()
        self.reader = ""
        """how a tensor's numbers leave torch"""
        self.scalar = ""
        """how a number leaves torch by itself: side by side that is an error, which a user's code may keep to itself"""
        self.look_up = ""
        """what a table of embeddings does with its gradient that `torch.vmap` does not"""

    def __enter__(self) -> "Calls":
        # Within hooks of the backward pass there is no mode.
        self._readers = readers_noticed(self._read)
        self._readers.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._readers.__exit__(*exception)

    def _read(self, name: str) -> None:
        self.reader = self.reader or name

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MAKERS and any(isinstance(t, list | tuple) and _has_tensor(t) for t in (*args, *kwargs.values())):
            self._read(func.__name__)
        if func in _SCALARS and not self.scalar and not _is_ours(sys._getframe(1).f_code.co_filename):
            self.scalar = func.__name__
        if func in self._LOOK_UPS and not self.look_up:
            self._look_at_table(func, args, kwargs)
        return func(*args, **kwargs)

    def _look_at_table(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        given = dict(zip(_ARGUMENTS[func], args, strict=False)) | kwargs
        if given.get("padding_idx") not in (None, -1) or (func in _FUNCTIONALS and given.get("padding_idx") == -1):
            self.look_up = "an embedding has a `padding_idx`, which torch.vmap does not know"
        elif given.get("scale_grad_by_freq"):
            self.look_up = "an embedding has `scale_grad_by_freq`, which counts over a batch"
        elif given.get("sparse"):
            self.look_up = "an embedding has sparse gradients"


_SCALARS = (
    *(Tensor.item, Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__, Tensor.__complex__),
    *(Tensor.is_nonzero, torch.is_nonzero, Tensor.equal, torch.equal, Tensor.allclose, torch.allclose),
)


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(_PACKAGE)


_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray)
"""Given a list of tensors they read its numbers."""


def _has_tensor(items: Any) -> bool:
    return any(isinstance(item, Tensor) or (isinstance(item, list | tuple) and _has_tensor(item)) for item in items)


_FUNCTIONALS = (functional.embedding, functional.embedding_bag)
_OF_TABLE = ("padding_idx", "scale_grad_by_freq", "sparse")
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    functional.embedding: ("input", "weight", "padding_idx", "max_norm", "norm_type", *_OF_TABLE[1:]),
    torch.embedding: ("weight", "input", *_OF_TABLE),
    functional.embedding_bag: tuple(inspect.signature(functional.embedding_bag).parameters),
    torch.embedding_bag: (
        *("weight", "input", "offsets", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights"),
        *("include_last_offset", "padding_idx"),
    ),
}
