"""What every client keeps from round to round: one row a client, on the host.

SCAFFOLD keeps a model's worth for each client: with many clients that is the largest thing of a run. Rows that no
client has used yet take no memory (the pages of a zeroed array are given out when they are first written).
"""

import numpy as np
import torch
from torch import Tensor

from flgo_hydra.federated.algorithm.base import State, Tensors


class ClientStates:
    """Rows of tensors by state name and parameter name, all zeros at first."""

    def __init__(self, template: State, num_clients: int) -> None:
        self._rows = {
            state: {name: _zeros(num_clients, tensor) for name, tensor in tensors.items()}
            for state, tensors in template.items()
        }
        self._device = next((t.device for ts in template.values() for t in ts.values()), torch.device("cpu"))
        self._used: set[int] = set()

    def get(self, client: int) -> State:
        """The client's state on the device. Not to be changed in place."""
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

    def get_many(self, clients: list[int]) -> State:
        """The clients' states, stacked in the order given."""
        return {
            state: {name: rows[clients].to(self._device) for name, rows in tensors.items()}
            for state, tensors in self._rows.items()
        }

    def put_many(self, clients: list[int], state: State) -> None:
        for name, tensors in self._rows.items():
            for parameter, rows in tensors.items():
                rows[clients] = state[name][parameter].to(rows.device)
        if self._rows:
            self._used.update(clients)

    def export(self) -> dict[str, object]:
        """What a checkpoint keeps: the rows that were used, and whose they are."""
        clients = sorted(self._used)
        rows = {s: {name: rows[clients] for name, rows in tensors.items()} for s, tensors in self._rows.items()}
        return {"clients": clients, "rows": rows}

    def restore(self, exported: dict[str, object]) -> None:
        clients: list[int] = exported["clients"]  # type: ignore[assignment]
        rows: dict[str, Tensors] = exported["rows"]  # type: ignore[assignment]
        for state, tensors in self._rows.items():
            for name, own in tensors.items():
                own[clients] = rows[state][name]
        self._used = set(clients)


def _zeros(num_clients: int, template: Tensor) -> Tensor:
    # numpy asks for zeroed pages, which cost nothing until they are written; torch.zeros writes them.
    dtype = torch.empty(0, dtype=template.dtype).numpy().dtype
    return torch.from_numpy(np.zeros((num_clients, *template.shape), dtype))
