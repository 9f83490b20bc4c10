"""Every random draw has an address: (seed, purpose, round, client).

The same address gives the same numbers, whatever was drawn before. So a run is the same alone, in a grid, resumed
from a checkpoint, or batched with others.

Our own code draws from generators of its own. A user's draws from those of the process: torch's, `numpy.random` and
`random`. `seed_all` seeds all three wherever a user's code begins, and `generators_kept` gives them back to whoever
called. A generator that a user makes without a seed (`np.random.default_rng()`) is beyond reach.
"""

import contextlib
import random
import sys
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # tasks are built, and their sources' draws seeded, where torch has no business
    import torch

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_INDEX_BITS = 24


class Purpose(IntEnum):
    """What a generator is for. The numbers are part of every result: never reuse or renumber one."""

    INITIAL_WEIGHTS = 1
    COHORT = 2
    BATCH_ORDER = 3
    LOCAL_NOISE = 4  # dropout and whatever else a model draws while it trains, and a client when it finishes
    EVALUATION = 5  # what a model draws while it is evaluated
    OWN_METRICS = 6  # a user's own, and the making of their object (round 0)
    SERVER = 7  # an algorithm's draws on the server, and the making of its first state (round 0)
    PARTS = 8  # which clients are hostile (round 0)


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
    """A seed for the process's generators (`seed_all`), in [0, 2**63)."""
    return seed_at(address(seed, purpose, round_num, client))


def seed_at(address: list[int]) -> int:
    """The same, of any address."""
    words = np.random.SeedSequence(address).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def seed_all(value: int, device: "torch.device | None" = None) -> None:
    """Seeds the generators that a user's code, or a model's dropout, draws from: torch's of the CPU and of the device,
    `numpy.random` and `random`.

    Where torch is not imported there is nothing of torch's to seed.
    """
    # A short seed takes numpy a fifth of the time of a long one: this may be done for each client of a round.
    np.random.seed(value & 0xFFFFFFFF)
    random.seed(value)
    if "torch" in sys.modules:
        seed_torch(value, device)


def seed_torch(value: int, device: "torch.device | None" = None) -> None:
    """Seeds torch's generators alone: all that layers of torch's and ours draw from. A seventh of `seed_all`'s time."""
    torch = sys.modules["torch"]
    torch.default_generator.manual_seed(value)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed(value)
    elif device is not None and device.type == "mps":
        torch.mps.manual_seed(value)


def generators_now() -> tuple[Any, ...]:
    """Where the generators stand that a user's code draws from, to be compared."""
    kind, keys, *rest = np.random.get_state()
    of_torch = sys.modules["torch"].get_rng_state().numpy().tobytes() if "torch" in sys.modules else b""
    return random.getstate(), kind, np.asarray(keys).tobytes(), tuple(rest), of_torch


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Leaves the process's generators, those of GPUs in use included, as they were."""
    torch = sys.modules.get("torch")
    of_numpy, of_python = np.random.get_state(), random.getstate()
    of_torch = None if torch is None else torch.get_rng_state()
    of_cuda = torch.cuda.get_rng_state_all() if torch is not None and torch.cuda.is_initialized() else None
    of_mps = torch.mps.get_rng_state() if torch is not None and torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
        if torch is not None:
            torch.set_rng_state(of_torch)
        elif "torch" in sys.modules:
            sys.modules["torch"].seed()  # imported meanwhile: as a new process finds it
        if torch is not None and of_cuda is not None:
            torch.cuda.set_rng_state_all(of_cuda)
        if torch is not None and of_mps is not None:
            torch.mps.set_rng_state(of_mps)
