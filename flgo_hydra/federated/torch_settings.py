"""torch's settings that decide numbers beside a run's config: a process, or an imported module, may have changed them.

A run begins with torch's own, whoever ran before it in the process, and leaves them as they were.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

_KINDS = ("cpu", "cuda")


def reset() -> None:
    """Gives torch the settings that a new process has."""
    import torch

    _set(torch, torch.float32, "highest", (False, False), dict.fromkeys(_KINDS, False), False)


@contextlib.contextmanager
def torch_kept() -> Iterator[None]:
    """Leaves torch's settings as they were; where torch is not imported yet there is nothing to keep."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = now()
    try:
        yield
    finally:
        put_back(before)


def now() -> tuple[Any, ...]:
    """The settings, as `put_back` takes them."""
    import torch

    precision, benchmark = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    return torch.get_default_dtype(), precision, _determinism(torch), _autocast(torch), benchmark


def put_back(settings: tuple[Any, ...]) -> None:
    """Gives torch these settings."""
    import torch

    _set(torch, *settings)


def _set(
    torch: Any, dtype: Any, precision: str, determinism: tuple[bool, bool], autocast: dict[str, bool], benchmark: bool
) -> None:
    torch.set_default_dtype(dtype)
    torch.set_float32_matmul_precision(precision)
    if _determinism(torch) != determinism:  # to set it imports torch's compiler, which takes a second
        torch.use_deterministic_algorithms(determinism[0], warn_only=determinism[1])
    for kind, is_on in autocast.items():
        if torch.is_autocast_enabled(kind) != is_on:
            torch.set_autocast_enabled(kind, is_on)
    if torch.backends.cudnn.benchmark != benchmark:
        torch.backends.cudnn.benchmark = benchmark


def _determinism(torch: Any) -> tuple[bool, bool]:
    """Whether it is asked for, and whether it only warns."""
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _autocast(torch: Any) -> dict[str, bool]:
    return {kind: torch.is_autocast_enabled(kind) for kind in _KINDS}
