"""A machine's /proc and /sys, as a test wants them."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def lay(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Writes files below the test's own folder, which stands for `/`, and returns it."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write
