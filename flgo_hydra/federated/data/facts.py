"""What is known of clients before they train: how many samples each has, and of which classes."""

from collections.abc import Sequence

import torch

from flgo_hydra.federated.algorithm.base import Tensors
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.transfer import to_device


class Facts:
    """Of all clients, on the device, in the run's dtype. N clients, C classes."""

    def __init__(self, data: Data, dtype: torch.dtype, more: Tensors) -> None:
        """
        Args:
            more: what the algorithm knows of each, (N, …).
        """
        offsets = torch.tensor(data.offsets)
        sizes = offsets.diff()
        self._device = data.x_train.device
        self._all = {"num_samples": sizes.to(dtype)}  # (N,)
        if data.num_classes is not None:
            owners = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
            of_each = owners * data.num_classes + data.y_train.cpu()
            counts = torch.bincount(of_each, minlength=len(sizes) * data.num_classes)
            self._all["label_counts"] = counts.view(len(sizes), data.num_classes).to(dtype)  # (N, C)
        for name, t in more.items():
            if name in self._all or len(t) != len(sizes):
                why = "is known already" if name in self._all else f"has {len(t)} rows, not one for each client"
                raise Refused(f"`more_facts` of the algorithm names {name!r}, which {why}.")
            self._all[name] = t.to(dtype)
        self._all = {name: t.to(self._device) for name, t in self._all.items()}
        self._known: dict[int, Tensors] = {}

    def of(self, client: int) -> Tensors:
        """`num_samples`, (), and for classification `label_counts`, (C,)."""
        if client not in self._known:
            self._known[client] = {name: t[client] for name, t in self._all.items()}
        return self._known[client]

    def of_many(self, clients: Sequence[int]) -> Tensors:
        """The same, stacked in the order given."""
        at = to_device(torch.tensor(clients, dtype=torch.int64), self._device)
        return {name: t.index_select(0, at) for name, t in self._all.items()}
