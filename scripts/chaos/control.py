"""The page of shared memory that tells the processes of a sweep what is to go wrong (`shim/sitecustomize.py`)."""

import itertools
import json
from pathlib import Path
from typing import Any

SIZE = 4096
_HEAD = 8


class Control:
    """Writes the page.

    Settings are {"fail": {"errno", "calls", "who", "under", "every"}, "slow": {"seconds", "calls", "who", "under"},
    "clock": seconds}: calls are names of functions of `os`, who is parent, jobs or all, under is where the files lie,
    and of the calls that it is about each `every`th fails.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._numbers = itertools.count(1)
        self._settings: dict[str, Any] = {}
        path.write_bytes(bytes(SIZE))

    def set(self, name: str, value: Any) -> None:
        """Changes one setting; None takes it away."""
        self._settings = {key: one for key, one in self._settings.items() if key != name}
        if value is not None:
            self._settings[name] = value
        text = json.dumps(self._settings).encode() if self._settings else b""
        assert len(text) <= SIZE - _HEAD
        with open(self.path, "r+b", buffering=0) as file:  # in place: it is mapped
            file.seek(_HEAD)
            file.write(text.ljust(SIZE - _HEAD, b"\0"))
            file.seek(0)
            file.write(next(self._numbers).to_bytes(_HEAD, "little"))

    def clear(self) -> None:
        for name in list(self._settings):
            self.set(name, None)
