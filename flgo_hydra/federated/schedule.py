"""The learning rate of a round, and the number of local steps of a client."""

import functools
import math
import re
from dataclasses import dataclass

import numpy as np


def lr_at(schedule: str, lr: float, decay: float, round_num: int, num_rounds: int) -> float:
    """The learning rate of round `round_num` (from 1), under FLGo's schedules and cosine.

    Where FLGo's code departs from its documentation, this follows the documentation: FLGo's divide_by_round jumps
    from lr to lr/3, and its ratiostep decays in every round but the ones meant.

    Args:
        schedule: constant; step (times `decay` each round); step_<k> (on entering rounds k, 2k, …);
            multistep_<a>_<b>… (on entering a, b, …); ratiostep_<q> (every q * num_rounds rounds);
            divide_by_round (lr / round); cosine (to 0 after the last round).
    """
    if schedule == "constant":
        return lr
    if schedule == "divide_by_round":
        return lr / round_num
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * (round_num - 1) / num_rounds))
    if schedule == "step":
        return float(lr * decay ** (round_num - 1))
    kind, *numbers = schedule.split("_")
    if kind == "step":
        num_decays = round_num // int(numbers[0])
    elif kind == "multistep":
        num_decays = sum(round_num >= int(entered) for entered in numbers)
    else:
        assert re.fullmatch(r"ratiostep_\S+", schedule)
        num_decays = round_num // max(1, int(num_rounds * float(numbers[0]) + 1e-9))
    return float(lr * decay**num_decays)


def resolve_batch_size(batch_size: float, num_samples: int) -> int:
    """Samples of a local step of a client with `num_samples`: -1 is all of them, below 1 a share of them."""
    if batch_size == -1:
        return num_samples
    if batch_size < 1:
        return max(1, int(num_samples * batch_size + 1e-9))
    return min(int(batch_size), num_samples)


def count_steps(num_samples: int, batch_size: int, num_epochs: int, num_steps: int | None) -> int:
    """Local steps of a round: `num_steps` where it is given, else whole epochs with their partial last batch."""
    return num_steps if num_steps is not None else num_epochs * math.ceil(num_samples / batch_size)


@dataclass(frozen=True)
class Order:
    """The samples that a client takes in the local steps of a round, one step after another."""

    rows: np.ndarray
    """of the training samples, int64 of shape (samples of all steps,)"""
    sizes: tuple[int, ...]
    """samples of each step; the last batch of an epoch may be smaller than the others"""
    whole: tuple[int, int] | None = None
    """the first and last of the client's training samples, where all of them are taken, in an epoch or more"""

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.sizes)

    def batches(self) -> list[np.ndarray]:
        """The rows of each step."""
        return np.split(self.rows, np.cumsum(self.sizes)[:-1])


@functools.cache
def batch_sizes(num_samples: int, batch_size: int, num_steps: int) -> tuple[int, ...]:
    """Samples of each step, epoch after epoch."""
    full, rest = divmod(num_samples, batch_size)
    epoch = (batch_size,) * full + ((rest,) if rest else ())
    return (epoch * -(-num_steps // len(epoch)))[:num_steps]
