"""torch's settings that decide numbers beside a run's config: a process, or an imported module, may have changed them.

A run begins with torch's own, whoever ran before it in the process, and leaves them as they were.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


def reset() -> None:
    """Gives torch the settings that a new process has."""
    import torch

    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    for kind in ("cpu", "cuda"):
        torch.set_autocast_enabled(kind, False)


@contextlib.contextmanager
def torch_kept() -> Iterator[None]:
    """Leaves torch's settings as they were; where torch is not imported yet there is nothing to keep."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        yield
        return
    dtype, precision = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")}
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(is_deterministic, warn_only=warns_only)
        for kind, is_on in autocast.items():
            torch.set_autocast_enabled(kind, is_on)
