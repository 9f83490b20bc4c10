"""Parts where a run is made: the data of hostile clients, and who takes part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.cohort import count_drawn
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.evaluation import CHUNK
from flgo_hydra.federated.parts.base import Hostile, Selection, ServerRule
from flgo_hydra.federated.parts.build import Named, of_part
from flgo_hydra.federated.parts.composed import hostile_clients
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.rounds import Select
from flgo_hydra.federated.training import ServerState


def require_fitting(parts: Sequence[Named], option: OptionConf) -> Named | None:
    """Returns the part that draws the clients, if there is one.

    Raises:
        ValueError: an option has no effect with a part, or means nothing.
    """
    selection = None
    for one in parts:
        if isinstance(one.part, Selection):
            selection = one
            if option.sample != "uniform":
                raise ValueError(
                    f"`sample={option.sample}` has no effect with `parts.{one.name}`, which draws the clients. "
                    "Drop one of the two."
                )
        if isinstance(one.part, ServerRule) and option.aggregate in ("weighted_com", "weighted_scale"):
            raise ValueError(
                f"`aggregate={option.aggregate}` is a weighted mean whose weights need not sum to 1, but "
                f"`parts.{one.name}` makes something else of the messages. Take aggregate=other or uniform."
            )
    return selection


def poisoned(data: Data, parts: Sequence[Named], numbers: Mapping[str, float], seed: int) -> Data:
    """The data with what hostile clients make of theirs."""
    num_clients = len(data.offsets) - 1
    shares = {name: numbers[f"parts.{name}.share"] for name, part in parts if isinstance(part, Hostile)}
    who = hostile_clients(parts, shares, num_clients, seed)
    for name, part in parts:
        if not isinstance(part, Hostile) or type(part).data is Hostile.data:
            continue
        # They may be the task's own arrays.
        data = replace(data, x_train=data.x_train.clone(), y_train=data.y_train.clone())
        for k in who[name].tolist():
            own = data.client(k)
            given = [t.cpu().numpy().copy() for t in own]
            found = [np.asarray(one) for one in part.data(given[0], given[1], data.num_classes)]
            for what, mine, theirs in zip(("inputs", "targets"), own, found, strict=True):
                if tuple(mine.shape) != theirs.shape:
                    raise Refused(
                        f"`data` of `parts.{name}` must return {what} of the shape {tuple(mine.shape)} that it is "
                        f"given, but returns {theirs.shape}."
                    )
                mine.copy_(torch.from_numpy(np.ascontiguousarray(theirs)))
        classes = data.num_classes
        if classes is not None and not bool(((data.y_train >= 0) & (data.y_train < classes)).all()):
            raise Refused(f"`data` of `parts.{name}` must return classes from 0 to {classes - 1}.")
    return data


def selecting(
    selection: Named, load: Callable[[ServerState], nn.Module], data: Data, numbers: Mapping[str, Any]
) -> Select:
    """Who takes part in a round, as the part says.

    Args:
        load: puts the server's model into a working model.
    """
    name, part = selection
    assert isinstance(part, Selection)
    own = of_part(name, numbers)

    def select(rng: np.random.Generator, num_samples: np.ndarray, proportion: float, server: ServerState) -> np.ndarray:
        def losses(clients: np.ndarray) -> np.ndarray:
            return losses_of(load(server), data, clients)

        size = count_drawn(len(num_samples), proportion)
        try:
            found = np.asarray(part.draw(rng, num_samples, size, losses, own))
        except ValueError as error:
            raise ValueError(f"`parts.{name}`: {error}") from error
        is_ids = found.ndim == 1 and found.size > 0 and np.issubdtype(found.dtype, np.integer)
        if not is_ids or len(np.unique(found)) < found.size or not (0 <= found.min() <= found.max() < len(num_samples)):
            raise Refused(
                f"`draw` of `parts.{name}` must return ids of distinct clients, from 0 to {len(num_samples) - 1}, but "
                f"got {str(found)[:80]}."
            )
        return found

    return select


@torch.no_grad()
def losses_of(model: nn.Module, data: Data, clients: np.ndarray) -> np.ndarray:
    """The model's mean loss on all training samples of each of these clients, float64 of shape (n,)."""
    was_training = model.training
    model.eval()
    found = []
    try:
        for k in clients.tolist():
            x, y = data.client(k)
            size = CHUNK[x.device.type]
            parts = [
                # A model may change its inputs in place.
                data.criterion(model(x[begin : begin + size].clone()), y[begin : begin + size]).sum()
                for begin in range(0, len(x), size)
            ]
            found.append(torch.stack(parts).sum() / len(x))
    finally:
        model.train(was_training)
    return torch.stack(found).double().cpu().numpy()
