"""How long a call takes on a device."""

import time
from collections.abc import Callable

import torch


def seconds_of(call: Callable[[], object], device: torch.device, num_times: int = 5) -> float:
    """The shortest of a few calls."""
    shortest = float("inf")
    for _ in range(num_times):
        _wait(device)
        begin = time.perf_counter()
        call()
        _wait(device)
        shortest = min(shortest, time.perf_counter() - begin)
    return shortest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
