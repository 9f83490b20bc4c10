"""Does a faster form of a step compute what the plain step computes?

Both take the same steps from the same state. Where they differ by no more than a few roundings, they are the same.
Where they differ by more it may still be rounding, which a deep model blows up: then both are tried again in float64,
on copies. And a parameter may change by nothing but rounding (a bias before a normalisation has no other gradient), so
what is left is measured against what a rounding of the parameters makes of the plain steps themselves. What is more
than that is a fault of the form, or large numbers made of roundings (Adam takes whole steps along such a gradient): the
next plainer form is taken.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flgo_hydra.federated.algorithm.base import State, Tensors
from flgo_hydra.federated.data.on_device import Data, HeldOut
from flgo_hydra.federated.training import ServerState

_log = logging.getLogger(__name__)

_SHARE = {torch.float64: 1e-9, torch.float32: 2e-5}
"""Of the change that the steps make: a difference up to this is rounding."""
_ROUNDINGS = 8
"""Of the largest number: a difference up to this is rounding, however little the steps change."""
_BLOWN_UP = 30
"""Times the difference that a rounding of the parameters makes: a difference up to this is rounding, blown up."""
_MOST = {torch.float64: 1e-10}
"""But never more than this share of the largest change of all."""
_MOST_OF_OTHERS = 1e-2
"""The same, in other dtypes."""


Differs = Callable[[bool], "Difference | None"]
"""Compares a form with the plain steps; True: what a rounding of the parameters makes is no difference."""


@dataclass(frozen=True)
class Difference:
    """The worst of what two forms of the same steps have computed."""

    name: str
    """of the parameter, buffer or slot"""
    size: float
    share: float
    """of its change"""

    def __str__(self) -> str:
        if not math.isfinite(self.size):
            return f"`{self.name}` has other numbers that are not finite"
        of_change = f", {self.share:.1e} of its change" if math.isfinite(self.share) else ", and should not change"
        return f"`{self.name}` differs by {self.size:.1e}{of_change}"


def difference(before: Tensors, plain: Tensors, ours: Tensors, noise: Tensors | None = None) -> Difference | None:
    """The worst difference between two ends of the same steps that is no rounding, or none.

    Args:
        before, plain, ours: tensors by name.
        noise: the plain steps' end after a rounding of the parameters.
    """
    worst: Difference | None = None
    changes = {name: _largest(a - before[name]) for name, a in plain.items() if is_number(a)}
    for name, a in plain.items():
        blown_up = 0.0
        if noise is not None and name in changes:
            most = _MOST.get(a.dtype, _MOST_OF_OTHERS) * max(changes.values())
            blown_up = min(_BLOWN_UP * _largest(a - noise[name]), most)
        found = _difference_of(name, a, ours[name], changes.get(name, 0.0), blown_up)
        if found is not None and (worst is None or found.share > worst.share):
            worst = found
    return worst


def _difference_of(name: str, a: Tensor, b: Tensor, change: float, blown_up: float) -> Difference | None:
    if not is_number(a):
        if torch.equal(a, b):
            return None
        return Difference(name, _largest(a.double() - b.double()), 1.0)
    is_finite = torch.isfinite(a)
    if not bool(is_finite.all()):
        if torch.equal(is_finite, torch.isfinite(b)):
            return None  # there is nothing to compare
        return Difference(name, float("inf"), float("inf"))
    size = _largest(a - b)
    eps = torch.finfo(a.dtype).eps
    allowed = _SHARE.get(a.dtype, 64 * eps) * change + _ROUNDINGS * eps * _largest(a)
    if size <= allowed + blown_up:
        return None
    return Difference(name, size, size / change if change > 0 and size == size else float("inf"))


def is_number(t: Tensor) -> bool:
    """Not a counter or a mask, which are the same or not."""
    return t.is_floating_point() or t.is_complex()


def _largest(t: Tensor) -> float:
    return float(t.abs().max()) if t.numel() else 0.0


def rounded(server: ServerState) -> ServerState:
    """The server's parameters, each a rounding up or down, every second one the other way."""

    def one(p: Tensor) -> Tensor:
        signs = torch.arange(p.numel(), device=p.device).view(p.shape) % 2 * 2 - 1
        return p * (1 + torch.finfo(p.dtype).eps * signs.to(p.dtype))

    return replace(server, params={name: one(p) for name, p in server.params.items()})


def widened(server: ServerState) -> ServerState:
    """The server in float64."""

    def all_of(tensors: Tensors) -> Tensors:
        return {
            name: t.to(torch.promote_types(t.dtype, torch.float64)) if is_number(t) else t
            for name, t in tensors.items()
        }

    state: State = {key: all_of(tensors) for key, tensors in server.state.items()}
    return ServerState(all_of(server.params), all_of(server.buffers), state)


def few(data: Data, most: int) -> Data:
    """Some of the training samples, in float64.

    Args:
        most: of them, from all over.
    """
    n = len(data.x_train)
    rows = torch.arange(min(most, n), device=data.x_train.device) * max(1, n // most)

    def wide(t: Tensor) -> Tensor:
        return t.double() if t.is_floating_point() else t

    def cut(samples: HeldOut) -> HeldOut:
        return HeldOut(wide(samples.x[:2]), wide(samples.y[:2]), samples.weights[:2])

    x, y = wide(data.x_train[rows]), wide(data.y_train[rows])
    return replace(data, x_train=x, y_train=y, offsets=[0, len(rows)], valid=cut(data.valid), test=cut(data.test))


def is_wide(model: nn.Module, x: Tensor) -> bool:
    """Whether the model, which is in float64, computes in float64 throughout."""
    from flgo_hydra.recorder.tape import record

    is_training = model.training
    try:
        with torch.no_grad():
            ops, _ = record(lambda: model(x))
    except Exception:  # a dtype that a layer does not take, or whatever else: not in float64
        return False
    finally:
        model.train(is_training)
    outputs = [t for op in ops for t in op.outputs if t.is_floating_point()]
    return all(t.dtype == torch.float64 for t in outputs)


def verdict(native: Differs, wide: Callable[[], Differs | None], dtype: torch.dtype) -> str:
    """Says what was found of a form in the run's dtype and, where that may be rounding, in float64; or nothing.

    Args:
        native: compares.
        wide: makes the same for float64, or None where that cannot be. What it raises says that, too.
    """
    found = native(False)
    if found is None:
        return ""
    compares, where = native, ""
    if dtype != torch.float64:
        try:
            in_float64 = wide()
            if in_float64 is not None:
                found = in_float64(False)
                compares, where = in_float64, ", in float64"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _log.debug("no trial in float64: %s", error)
    if found is not None:
        found = compares(True)
    return f"{found}{where}" if found is not None else ""
