"""Every random draw has an address: (seed, purpose, round, client).

The same address gives the same numbers, whatever was drawn before. So a run is the same alone, in a grid, resumed
from a checkpoint, or batched with others.
"""

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_INDEX_BITS = 24


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


def permutations(
    seed: int, purpose: Purpose, round_num: int, clients: np.ndarray, num_epochs: int, num_samples: int
) -> NDArray[np.int64]:
    """Random orders of `num_samples` samples: of each client, in each epoch, whoever the other clients are.

    A client's address seeds a SplitMix64 generator (Steele, Lea and Flood, Fast Splittable Pseudorandom Number
    Generators, OOPSLA 2014); the samples are sorted by its numbers. So the orders of a whole cohort are a few
    operations on arrays: making a generator of numpy's for each client would take longer than a GPU needs to train it.

    Returns:
        int64 of shape (clients, num_epochs, num_samples).
    """
    assert num_samples < 1 << _INDEX_BITS
    state = np.zeros(len(clients), np.uint64)
    for part in (np.uint64(seed % 2**64), np.uint64(purpose), np.uint64(round_num), clients.astype(np.uint64)):
        state = _mix(state + _GAMMA + part)
    counts = np.arange(1, num_epochs * num_samples + 1, dtype=np.uint64)
    keys = _mix(state[:, np.newaxis] + _GAMMA * counts).reshape(len(clients), num_epochs, num_samples)
    keys = keys << np.uint64(_INDEX_BITS) | np.arange(num_samples, dtype=np.uint64)
    keys.sort(axis=-1)
    keys &= np.uint64((1 << _INDEX_BITS) - 1)
    found: NDArray[np.int64] = keys.view(np.int64)
    return found


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function: a bijection of 64 bits in which each bit depends on all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


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
