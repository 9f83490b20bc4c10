"""Memory for the intermediates of recorded steps."""

import torch
from torch import Tensor

from flgo_hydra.recorder.operations import storage

_ALIGN = 64


class Arena:
    """Blocks of memory on one device, for the intermediates of programs that never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: list[Tensor] = []

    @property
    def num_bytes(self) -> int:
        return sum(len(block) for block in self._blocks)

    def places(self) -> "Places":
        return Places(self._blocks, self._device)


class Places:
    """Who of one program's intermediates lies in which block, while the program is written line by line."""

    def __init__(self, blocks: list[Tensor], device: torch.device) -> None:
        self._blocks = blocks
        self._device = device
        self._free = set(range(len(blocks)))
        self._taken: dict[int, int] = {}  # block by the storage of the recorded tensor

    def holds(self, t: Tensor) -> bool:
        return storage(t) in self._taken

    def take(self, t: Tensor) -> Tensor:
        """A tensor of the same form as `t` in the smallest free block, or in a new one."""
        span = 1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)) if t.numel() else 1
        num_bytes = -(-span * t.element_size() // _ALIGN) * _ALIGN
        fits = [i for i in self._free if len(self._blocks[i]) >= num_bytes]
        number = min(fits, key=lambda i: len(self._blocks[i]), default=len(self._blocks))
        if not fits:
            self._blocks.append(torch.empty(num_bytes, dtype=torch.uint8, device=self._device))
        self._free.discard(number)
        self._taken[storage(t)] = number
        return self._blocks[number].view(t.dtype).as_strided(t.shape, t.stride(), 0)

    def hand_over(self, old: Tensor, new: Tensor) -> None:
        self._taken[storage(new)] = self._taken.pop(storage(old))

    def give_back(self, t: Tensor) -> None:
        if self.holds(t):
            self._free.add(self._taken.pop(storage(t)))
