"""Every random draw has an address: (seed, purpose, round, client).

The same address gives the same numbers, whatever was drawn before. So a run is the same alone, in a grid, resumed
from a checkpoint, or batched with others.
"""

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What a generator is for. The numbers are part of every result: never reuse or renumber one."""

    INITIAL_WEIGHTS = 1
    COHORT = 2
    BATCH_ORDER = 3
    LOCAL_NOISE = 4  # dropout and whatever else a model draws while it trains


def address(seed: int, purpose: Purpose, round_num: int = 0, client: int = 0) -> list[int]:
    return [seed, int(purpose), round_num, client]


def numpy_generator(seed: int, purpose: Purpose, round_num: int = 0, client: int = 0) -> np.random.Generator:
    return np.random.default_rng(address(seed, purpose, round_num, client))


def torch_seed(seed: int, purpose: Purpose, round_num: int = 0, client: int = 0) -> int:
    """A seed for torch's own generators, in [0, 2**63)."""
    words = np.random.SeedSequence(address(seed, purpose, round_num, client)).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def seed_torch(value: int, device: torch.device) -> None:
    """Seeds the generators that a model's dropout draws from: the CPU's and the device's."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)
