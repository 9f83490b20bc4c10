"""What every client keeps from round to round: one row a client.

On a GPU, rows that are small altogether lie there; else they lie on the host, and those of a cohort travel.
SCAFFOLD keeps a model's worth for each client: with many clients that is the largest thing of a run. Rows that no
client has used yet take no memory (the pages of a zeroed array are given out when they are first written). More than
`IN_MEMORY` lies in a file of the run's folder: the process then holds the pages that it used last, whatever the number
of clients.
"""

import mmap
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flgo_hydra.federated.algorithm.base import State, Tensors
from flgo_hydra.federated.transfer import to_device

IN_MEMORY = 2**30
"""Largest size in bytes of all rows that is kept in memory."""
ON_GPU = 2**26
"""Largest size in bytes of all rows that is kept on a GPU: many runs may share one."""
_HELD = 2**28
"""Bytes of a file's pages that are used before they are given back to the kernel, which writes them when it must."""


class ClientStates:
    """Rows of tensors by state name and parameter name, all as the template at first."""

    def __init__(self, template: State, num_clients: int, folder: Path | None = None) -> None:
        """
        Args:
            template: a client's state at first.
            folder: where a file may be made, which has no name and goes with the process; None: memory only.
        """
        self._row_bytes = sum(t.numel() * t.element_size() for ts in template.values() for t in ts.values())
        self._device = next((t.device for ts in template.values() for t in ts.values()), torch.device("cpu"))
        is_on_gpu = self._device.type == "cuda" and self._row_bytes * num_clients <= ON_GPU
        self._home = self._device if is_on_gpu else torch.device("cpu")
        self._map: mmap.mmap | None = None
        self._is_file = folder is not None and not is_on_gpu and self._row_bytes * num_clients > IN_MEMORY
        size = _size(template, num_clients)
        if self._is_file:
            assert folder is not None
            self._map = _sparse_file(folder, size)
        elif size > 0 and not is_on_gpu:
            # Not numpy's zeros, whose huge pages a visit to one client has to clear.
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._begin = 0
        self._rows = {
            state: {name: self._zeros(num_clients, tensor) for name, tensor in tensors.items()}
            for state, tensors in template.items()
        }
        self._used: set[int] = set()
        self._held = 0
        is_zero = all(not bool(t.any()) for tensors in template.values() for t in tensors.values())
        # Rows are zeros until they are used; what else a client has at first is kept once.
        self._first = None if is_zero else {s: {n: t.clone() for n, t in ts.items()} for s, ts in template.items()}

    def _zeros(self, num_clients: int, template: Tensor) -> Tensor:
        shape = (num_clients, *template.shape)
        if self._home.type != "cpu":
            return template.new_zeros(shape, device=self._home)
        dtype = _numpy_dtype(template)
        if self._map is None:  # no client, or nothing to keep
            return torch.zeros(shape, dtype=template.dtype)
        array = np.frombuffer(self._map, dtype, num_clients * template.numel(), self._begin)
        self._begin += _aligned(array.nbytes)
        return torch.from_numpy(array.reshape(shape))

    def _touched(self, num_clients: int) -> None:
        """Gives the pages of a file back after a while; what was written stays in the file."""
        self._held += self._row_bytes * num_clients
        if self._is_file and self._map is not None and self._held > _HELD:
            self._held = 0
            self._map.madvise(mmap.MADV_DONTNEED)

    def get(self, client: int) -> State:
        """The client's state on the device. Not to be changed in place."""
        if self._first is not None and client not in self._used:
            return self._first
        self._touched(1)
        return {
            state: {name: rows[client].to(self._device) for name, rows in tensors.items()}
            for state, tensors in self._rows.items()
        }

    def put(self, client: int, state: State) -> None:
        for name, tensors in self._rows.items():
            for parameter, rows in tensors.items():
                rows[client].copy_(state[name][parameter])
        if self._rows:
            self._used.add(client)
            self._touched(1)

    def get_many(self, clients: list[int]) -> State:
        """The clients' states, stacked in the order given."""
        self._touched(len(clients))
        at = self._index(clients)
        found = {
            state: {name: to_device(rows.index_select(0, at), self._device) for name, rows in tensors.items()}
            for state, tensors in self._rows.items()
        }
        if self._first is not None and (new := [i for i, client in enumerate(clients) if client not in self._used]):
            places = to_device(torch.tensor(new), self._device)
            for state, tensors in found.items():
                for name, rows in tensors.items():
                    rows[places] = self._first[state][name]
        return found

    def put_many(self, clients: list[int], state: State) -> None:
        at = self._index(clients)
        for name, tensors in self._rows.items():
            for parameter, rows in tensors.items():
                rows.index_copy_(0, at, state[name][parameter].to(rows.device, rows.dtype))
        if self._rows:
            self._used.update(clients)
            self._touched(len(clients))

    def _index(self, clients: list[int]) -> Tensor:
        return to_device(torch.tensor(clients, dtype=torch.int64), self._home)

    def export(self) -> dict[str, object]:
        """What a checkpoint keeps: the rows that were used, and whose they are."""
        clients = sorted(self._used)
        rows = {s: {name: rows[clients].cpu() for name, rows in tensors.items()} for s, tensors in self._rows.items()}
        return {"clients": clients, "rows": rows}

    def restore(self, exported: dict[str, object]) -> None:
        clients: list[int] = exported["clients"]  # type: ignore[assignment]
        rows: dict[str, Tensors] = exported["rows"]  # type: ignore[assignment]
        for state, tensors in self._rows.items():
            for name, own in tensors.items():
                own[clients] = rows[state][name].to(own.device)
        self._used = set(clients)


def _sparse_file(folder: Path, size: int) -> mmap.mmap:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)


def _size(template: State, num_clients: int) -> int:
    tensors = [tensor for tensors in template.values() for tensor in tensors.values()]
    return sum(_aligned(num_clients * t.numel() * t.element_size()) for t in tensors)


def _aligned(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _numpy_dtype(template: Tensor) -> np.dtype:
    return torch.empty(0, dtype=template.dtype).numpy().dtype
