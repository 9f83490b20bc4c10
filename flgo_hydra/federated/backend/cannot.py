"""Why a form of training cannot take the place of plain steps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Cannot(RuntimeError):
    """It does not do what plain steps do, or nobody can say so. The text stands in `result.json`.

    Whoever catches it takes a plainer form.
    """


@contextmanager
def cannot(what: str = "") -> Iterator[None]:
    """Whatever fails inside, but for want of memory, is why a form cannot be taken.

    Where plain steps fail likewise, they will say it again.

    Args:
        what: comes before the reason.
    """
    try:
        yield
    except (Cannot, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise Cannot(f"{what}{one_line(error)}") from error


def one_line(error: Exception) -> str:
    """The error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.200}"
