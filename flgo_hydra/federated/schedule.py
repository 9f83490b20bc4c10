"""The learning rate of a round, and the number of local steps of a client."""

import math
import re

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


def batch_order(num_samples: int, batch_size: int, num_steps: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Sample indices of each local step, a new permutation of the samples in each epoch.

    Returns:
        `num_steps` int64 arrays; the last batch of an epoch may be smaller than `batch_size`.
    """
    steps: list[np.ndarray] = []
    while len(steps) < num_steps:
        order = rng.permutation(num_samples)
        steps.extend(order[i : i + batch_size] for i in range(0, num_samples, batch_size))
    return steps[:num_steps]
