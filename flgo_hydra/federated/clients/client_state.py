"""What every client keeps from round to round: one row a client.

SCAFFOLD and personalised methods keep one to three models' worth for each client: with many clients that is the largest
thing of a run. On a GPU, rows that are small altogether lie there; else they lie on the host, and those of a cohort
travel: in memory up to `IN_MEMORY`, beyond it in a file of the run's folder (`row_file.py`), from where they are read
into the lanes' own tensors. A client has a row from its first time on, in the order of these: who has never taken part
takes no memory, has what `init_client` says, and is in no checkpoint.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from flgo_hydra.federated.algorithm.base import State
from flgo_hydra.federated.clients.row_file import RowFile
from flgo_hydra.federated.transfer import to_device

IN_MEMORY = 2**30
"""Largest size in bytes of all rows that is kept in memory: a file costs little more, but its pages are written to the
disk sooner or later."""
ON_GPU = 2**26
"""Largest size in bytes of all rows that is kept on a GPU: many runs may share one."""
_AT_ONCE = 2**20
"""Bytes of rows that go to a checkpoint at once, and come from it."""


class ClientStates:
    """Rows of tensors by state name and parameter name, all as the template at first."""

    def __init__(self, template: State, num_clients: int, folder: Path | None = None) -> None:
        """
        Args:
            template: a client's state at first.
            folder: where a file may be made, which has no name and goes with the process; None: memory only.
        """
        self._first = {s: {n: t.detach().clone() for n, t in ts.items()} for s, ts in template.items()}
        tensors = [t for ts in self._first.values() for t in ts.values()]
        self._device = tensors[0].device if tensors else torch.device("cpu")
        self._row_bytes = sum(t.nbytes for t in tensors)
        size = self._row_bytes * num_clients
        is_on_gpu = self._device.type == "cuda" and size <= ON_GPU
        self._home = self._device if is_on_gpu else torch.device("cpu")
        self._file: RowFile | None = None
        self._rows: State = {}
        if folder is not None and not is_on_gpu and size > IN_MEMORY:
            self._file = RowFile(folder, self._row_bytes)
        else:
            self._rows = {
                s: {n: _empty(t, num_clients, self._home) for n, t in ts.items()} for s, ts in self._first.items()
            }
        self._row_of: dict[int, int] = {}
        """of each client that has taken part"""

    @property
    def used(self) -> list[int]:
        """The clients that have taken part, in the order of their first times."""
        return list(self._row_of)

    def get(self, client: int) -> State:
        """The client's state on the device. Not to be changed in place."""
        if client not in self._row_of:
            return self._first
        if self._file is not None:
            return {s: {n: t[0] for n, t in ts.items()} for s, ts in self.get_many([client]).items()}
        row = self._row_of[client]
        # Copies: what is put may be made of them.
        return {s: {n: t[row].to(self._device, copy=True) for n, t in ts.items()} for s, ts in self._rows.items()}

    def put(self, client: int, state: State) -> None:
        """Keeps a copy of the client's state."""
        shaped = {s: {n: state[s][n].expand_as(t) for n, t in ts.items()} for s, ts in self._first.items()}
        self.put_many([client], {s: {n: t.unsqueeze(0) for n, t in ts.items()} for s, ts in shaped.items()})

    def get_many(self, clients: Sequence[int], into: State | None = None) -> State:
        """The clients' states, stacked in the order given.

        Args:
            into: tensors with at least so many rows, into whose first ones they are read; None: new ones on the device.
        """
        into = into if into is not None else self._new(len(clients), self._device)
        found = {s: {n: t[: len(clients)] for n, t in ts.items()} for s, ts in into.items()}
        new = [i for i, client in enumerate(clients) if client not in self._row_of]
        if len(new) < len(clients):
            rows = [self._row_of.get(client) for client in clients]
            if self._file is not None:
                self._read(self._file, rows, found)
            else:
                self._select([row or 0 for row in rows], found)
        for state, tensors in found.items() if new else ():
            for name, t in tensors.items():
                t[to_device(torch.tensor(new), t.device)] = self._first[state][name].to(t.device)
        return found

    def put_many(self, clients: Sequence[int], state: State) -> None:
        """Keeps copies of the clients' states, stacked in the order given."""
        if not self._row_bytes:
            return
        new = [client for client in dict.fromkeys(clients) if client not in self._row_of]
        row_of_new = {client: len(self._row_of) + i for i, client in enumerate(new)}
        rows = [self._row_of[client] if client in self._row_of else row_of_new[client] for client in clients]
        if self._file is not None:
            self._write(self._file, rows, state)
        else:
            at = to_device(torch.tensor(rows), self._home)
            for name, tensors in self._rows.items():
                for parameter, own in tensors.items():
                    own.index_copy_(0, at, state[name][parameter].to(own.device, own.dtype))
        self._row_of |= row_of_new  # only now: what was raised above has left them without a row

    def _select(self, rows: list[int], found: State) -> None:
        at = to_device(torch.tensor(rows), self._home)
        for state, tensors in found.items():
            for name, t in tensors.items():
                if t.device == self._home:
                    torch.index_select(self._rows[state][name], 0, at, out=t)
                else:
                    t.copy_(to_device(self._rows[state][name].index_select(0, at), t.device))

    def _read(self, file: RowFile, rows: Sequence[int | None], found: State) -> None:
        """Reads the rows that there are of the file's."""
        device = _device_of(found)
        is_pinned = device.type == "cuda"
        on_host = found if device.type == "cpu" else self._new(len(rows), torch.device("cpu"), is_pinned)
        parts = self._parts(on_host)
        for i, row in enumerate(rows):
            if row is not None:
                file.read(row, [part[i * n : (i + 1) * n] for part, n in parts])
        for state, tensors in found.items() if on_host is not found else ():
            for name, t in tensors.items():
                t.copy_(on_host[state][name], non_blocking=is_pinned)

    def _write(self, file: RowFile, rows: Sequence[int], state: State) -> None:
        plain = {s: {n: _plain(state[s][n], t.dtype) for n, t in ts.items()} for s, ts in self._first.items()}
        parts = self._parts(plain)
        for i, row in enumerate(rows):
            file.write(row, [part[i * n : (i + 1) * n] for part, n in parts])

    def _parts(self, stacked: State) -> list[tuple[memoryview, int]]:
        """The bytes of each tensor, and how many of them are one client's."""
        tensors = [(stacked[s][n], t.nbytes) for s, ts in self._first.items() for n, t in ts.items()]
        return [(t.detach().view(-1).view(torch.uint8).numpy().data, size) for t, size in tensors]

    def _new(self, num_rows: int, device: torch.device, is_pinned: bool = False) -> State:
        return {
            s: {
                n: torch.empty((num_rows, *t.shape), dtype=t.dtype, device=device, pin_memory=is_pinned)
                for n, t in ts.items()
            }
            for s, ts in self._first.items()
        }

    # Checkpoints.

    def export(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the rows: whose they are, in their order, and what is in each."""
        return {"clients": self.used, "layout": self._layout()}

    def rows(self) -> Iterator[memoryview]:
        """The rows that were used as bytes, some at a time: each client's tensors one after the other."""
        clients = self.used
        at_once = max(1, _AT_ONCE // max(1, self._row_bytes))
        into = self._new(at_once, torch.device("cpu"))
        for begin in range(0, len(clients), at_once):
            some = self.get_many(clients[begin : begin + at_once], into)
            yield np.concatenate(self._columns(some), axis=1).data

    def restore(self, exported: dict[str, Any], rows: BinaryIO | None) -> None:
        """Puts what a checkpoint has kept.

        Args:
            rows: where the rows are read from; None: a version before has kept them as tensors in `exported`.
        Raises:
            ValueError: clients keep something else now.
        """
        clients = exported["clients"]
        if rows is None:
            self.put_many(clients, exported["rows"])
            return
        if exported["layout"] != self._layout():
            raise ValueError(
                "What the algorithm's clients keep must be as it was when the run's checkpoint was written, "
                f"{exported['layout']}, but is {self._layout()} now. Put the code back, or delete the checkpoint to "
                "start anew."
            )
        at_once = max(1, _AT_ONCE // max(1, self._row_bytes))
        for begin in range(0, len(clients), at_once):
            some = clients[begin : begin + at_once]
            block = np.frombuffer(rows.read(len(some) * self._row_bytes), np.uint8).reshape(len(some), -1)
            found, left = self._new(len(some), torch.device("cpu")), 0
            for column in self._columns(found):
                column[:] = block[:, left : left + column.shape[1]]
                left += column.shape[1]
            self.put_many(some, found)

    def _layout(self) -> list[list[Any]]:
        return [[s, n, str(t.dtype), list(t.shape)] for s, ts in self._first.items() for n, t in ts.items()]

    def _columns(self, stacked: State) -> list[np.ndarray]:
        """The bytes of each tensor on the host that has any, a client a row."""
        return [np.frombuffer(part, np.uint8).reshape(-1, n) for part, n in self._parts(stacked) if n]


def _empty(template: Tensor, num_rows: int, device: torch.device) -> Tensor:
    """Memory that is given out where it is first written."""
    if device.type != "cpu" or not template.nbytes:
        return template.new_empty((num_rows, *template.shape), device=device)
    # Not torch's, which may be asked to fill what it gives.
    rows = torch.from_numpy(np.empty(num_rows * template.nbytes, np.uint8))
    return rows.view(template.dtype).view(num_rows, *template.shape)


def _plain(t: Tensor, dtype: torch.dtype) -> Tensor:
    """The same on the host, as its bytes are read."""
    return t.detach().to("cpu", dtype).resolve_conj().resolve_neg().contiguous()


def _device_of(state: State) -> torch.device:
    return next(t.device for ts in state.values() for t in ts.values())
