"""What a smaller batch is filled up with in the trial of masked steps: nothing may depend on it.

A run fills batches up with their own first sample, and which samples those are changes from step to step. A model or a
loss that mixes the samples of a batch (a median, a maximum, a sort, a mean that counts little) may not notice the
samples that are tried, and notice others. So the same batches are filled up with samples that stand out: by their loss
and by their inputs, at both ends; and with many different ones.
"""

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.training import ServerState

LEAST = 64
"""Samples among which those that stand out are looked for, at least, where there are as many."""


def filled_batches(
    loop: LocalSteps, server: ServerState, sizes: Collection[int], width: int
) -> list[tuple[int, np.ndarray]]:
    """Batches of a few of these sizes, each filled up in several ways.

    Args:
        sizes: of the smaller batches that the run takes.
        width: B, of the largest.
    Returns:
        of each the number of its own samples, and rows of the training samples, (B,), its own first. Those
        that are filled up alike are side by side, those with the batch's own first sample first.
    """
    ascending = sorted(sizes)
    if not ascending:
        return []
    n = len(loop.data.x_train)
    most = min(n, max(LEAST, 2 * width))
    some = np.arange(most) * n // most
    ends = _ends(loop, server, some)
    # The batch's own lie between them, where there are enough samples.
    inner = np.setdiff1d(some, ends) if most > len(ends) else some
    found = []
    for size in sorted({ascending[0], ascending[len(ascending) // 2], ascending[-1]}):
        own = inner[np.linspace(0, len(inner) - 1, size).astype(np.int64)]
        others = np.setdiff1d(some, own) if most > size else some
        fillings = [np.resize(filling, width - size) for filling in (own[:1], others, *ends[:, np.newaxis])]
        found.append([(size, np.concatenate([own, filling])) for filling in fillings])
    return [one for of_sizes in zip(*found, strict=True) for one in of_sizes]


def _ends(loop: LocalSteps, server: ServerState, rows: np.ndarray) -> np.ndarray:
    """Those of the rows that have the least and the most loss, and the smallest and the largest inputs."""
    x, y = (t[torch.from_numpy(rows).to(t.device)] for t in (loop.data.x_train, loop.data.y_train))
    scores = [x.abs().flatten(1).sum(1)]
    loop.load(server)
    loop.model.train()
    with torch.no_grad():
        for loss in (loop.data.criterion, lambda out, y: loop.step.algorithm.loss(out, y, loop.data.criterion)):
            try:
                scores.append(loss(loop.model(x.clone()), y))
            except torch.OutOfMemoryError:
                raise
            except Exception:  # what a loss of the user's own takes is its own affair
                continue
    return np.unique([rows[end] for score in scores if _is_ranking(score, rows) for end in _first_and_last(score)])


def _is_ranking(score: Tensor, rows: np.ndarray) -> bool:
    return score.shape == rows.shape and not score.is_complex() and bool(torch.isfinite(score).all())


def _first_and_last(score: Tensor) -> tuple[int, int]:
    return int(score.argmin()), int(score.argmax())
