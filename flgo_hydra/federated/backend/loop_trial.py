"""Recorded steps that do what plain steps do, or the reason why they do not."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from flgo_hydra.config.option import EngineConf
from flgo_hydra.federated.algorithm.base import Hyper
from flgo_hydra.federated.backend.cannot import Cannot, cannot
from flgo_hydra.federated.backend.habits import TRIAL_LR
from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.backend.trial import Difference, Differs, difference, few, is_wide, rounded, verdict, widened
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.training import ServerState


def record_alike(
    ours: LocalSteps, plain: LocalSteps, sizes: Sequence[int], server: ServerState, hyper: Hyper, engine: EngineConf
) -> None:
    """Records programs of these batch sizes. Raises `Cannot` where they differ from plain steps.

    Args:
        ours: gets the programs.
        plain: steps in a copy of the model.
    """
    _record(ours, sizes, server, hyper, engine)

    def native(is_rounded: bool) -> Difference | None:
        return _differs(ours, plain, sizes, server, hyper, is_rounded)

    def wide() -> Differs | None:
        data, wide_server = few(ours.data, 2 * max(sizes)), widened(server)
        mine, theirs = (plain.copy(data, torch.float64) for _ in range(2))
        mine.load(wide_server)
        mine.model.train()
        if not is_wide(mine.model, data.x_train[:2]):
            return None
        _record(mine, sizes, wide_server, hyper, engine)
        return partial(_differs, mine, theirs, sizes, wide_server, hyper)

    with cannot():
        found = verdict(native, wide, next(iter(ours.params.values())).dtype)
    if found:
        raise Cannot(f"recorded steps differ from plain ones: {found}")


def _record(ours: LocalSteps, sizes: Sequence[int], server: ServerState, hyper: Hyper, engine: EngineConf) -> None:
    ours.find_program(server, hyper)
    ours.record([_batches_of(ours.data, size)[0] for size in sizes], server, hyper, engine)


def _differs(
    ours: LocalSteps, plain: LocalSteps, sizes: Sequence[int], server: ServerState, hyper: Hyper, is_rounded: bool
) -> Difference | None:
    """The worst difference between our steps and plain ones, two of each size, and of two sizes in turn."""
    hyper = {**hyper, "lr": TRIAL_LR}
    client = ours.client_at_trial(server, 0, hyper)
    tried = [_batches_of(ours.data, size) for size in sizes]
    others = ours.all_sizes() - set(sizes)
    if others:  # a client takes recorded steps and plain ones
        first, second = tried[-1]
        tried.append((first, _batches_of(ours.data, max(others))[0], second))
    for batches in tried:
        theirs = plain.after(batches, server, client, hyper)
        noise = plain.after(batches, rounded(server), client, hyper) if is_rounded else None
        mine = ours.after(batches, server, client, hyper)
        if (found := difference(plain.after((), server, client, hyper), theirs, mine, noise)) is not None:
            return found
    return None


def _batches_of(data: Data, size: int) -> tuple[Tensor, ...]:
    """The rows of two batches that share few samples or none, from all over the training samples."""
    n = len(data.x_train)
    rows = torch.arange(size, device=data.x_train.device) * max(1, n // size)
    return rows % n, (rows.flip(0) + 1) % n
