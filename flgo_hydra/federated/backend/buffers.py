"""A working model's buffers, found by their names.

A forward pass may change a buffer in place or assign it anew (`self.mean = 0.9 * self.mean + 0.1 * x.mean(0)`): what
counts is the tensor that goes by the name afterwards.
"""

from typing import Any

import torch
from torch import Tensor, nn

from flgo_hydra.federated.algorithm.base import Tensors
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.training import buffers_of


class Buffers:
    """The model's state that is not trained.

    Attributes:
        homes: the tensors that it starts each client with, by name. Programs work on these.
    """

    def __init__(self, model: nn.Module) -> None:
        self.homes: Tensors = buffers_of(model)
        modules = dict(model.named_modules())
        self._places: list[tuple[str, dict[str, Any], str, Tensor]] = []
        for name, home in self.homes.items():
            if home.layout != torch.strided or home.is_quantized:
                kind = "quantized" if home.is_quantized else str(home.layout).removeprefix("torch.")
                raise Refused(
                    f"The model's buffer `{name}` is {kind}, and cannot be averaged over clients. Keep it as a plain "
                    "attribute (`self.a = a`) where it never changes, or as a dense buffer."
                )
            owner, _, leaf = name.rpartition(".")
            module = modules[owner]
            registry = module._buffers if leaf in module._buffers else module._parameters
            self._places.append((name, registry, leaf, home))

    def put(self, values: Tensors) -> None:
        """Gives the model these values, in the tensors it had at first."""
        for name, registry, leaf, home in self._places:
            if registry[leaf] is not home:
                registry[leaf] = home
            if home.shape != values[name].shape:
                self._check(name, home, values[name])
            home.copy_(values[name])

    def now(self) -> Tensors:
        """The buffers as they are.

        Raises:
            Refused: one has become something else.
        """
        found = {}
        for name, registry, leaf, home in self._places:
            now = registry[leaf]
            if now is not home:
                self._check(name, now, home)
            found[name] = now.detach()
        return found

    def bring_home(self) -> None:
        """Puts what was assigned anew into the tensors that programs work on."""
        for name, registry, leaf, home in self._places:
            now = registry[leaf]
            if now is not home:
                self._check(name, now, home)
                registry[leaf] = home
                home.copy_(now)

    def anew(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs of a buffer's first tensor and the one that was assigned in its place, as a recording knows it; puts
        the first ones back."""
        pairs = []
        for name, registry, leaf, home in self._places:
            now = registry[leaf]
            if now is not home:
                registry[leaf] = home
                self._check(name, now, home)
                pairs.append((home, now))
        return pairs

    @staticmethod
    def _check(name: str, now: Tensor | None, home: Tensor) -> None:
        if now is None or now.shape != home.shape or now.dtype != home.dtype:
            got = "nothing" if now is None else f"shape {tuple(now.shape)} and dtype {_name(now.dtype)}"
            raise Refused(
                f"The model's buffer `{name}` must keep its shape {tuple(home.shape)} and its dtype "
                f"{_name(home.dtype)}, since the clients' buffers are averaged, but a forward pass gave it {got}."
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
