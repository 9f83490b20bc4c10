"""Relative paths mean where the command was typed.

With `hydra.job.chdir=true` a job works in its own folder, which is what its code writes to. What a config names lies
where the command was typed all the same: data, weights, caches, FLGo's folders, and what a user's source reads when it
is called. So whatever reads what a config names does so in `entered()`; a sweep's parent, which checks a task before
any job runs, stands there anyway.
"""

import contextlib
import os
from collections.abc import Iterator

_folder: str | None = None


@contextlib.contextmanager
def known(folder: str | None) -> Iterator[None]:
    """Says where the command was typed, for the job that runs in the block; None: in the current folder."""
    global _folder
    before, _folder = _folder, folder
    try:
        yield
    finally:
        _folder = before


@contextlib.contextmanager
def entered() -> Iterator[None]:
    """Runs the block where the command was typed, if that folder is still there."""
    here = os.getcwd()
    if _folder is None or _folder == here or not os.path.isdir(_folder):
        yield
        return
    os.chdir(_folder)
    try:
        yield
    finally:
        os.chdir(here)
