"""Gives a sweep's command: with its output in a file, a pipe or a terminal, and with what it is to be found by."""

import fcntl
import os
import pty
import resource
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from sweeps import FOLDER, Sweep

ROOT = Path(__file__).resolve().parents[2]
SHIM = Path(__file__).resolve().parent / "shim"
MARK = "CHAOS_MARK"


def typed(sweep: Sweep, more: Sequence[str] = ()) -> list[str]:
    return [sys.executable, "-m", "flgo_hydra", "-m", *sweep.arguments, *more]


def resumed(more: Sequence[str] = ()) -> list[str]:
    return [sys.executable, "-m", "flgo_hydra.resume", FOLDER, *more]


def environment(home: Path, mark: str, page: Path | None) -> dict[str, str]:
    """Caches and temporary files in a folder of its own; the shim where there is a page of faults."""
    env = {key: value for key, value in os.environ.items() if key not in (MARK, "CHAOS_PAGE", "PYTHONPATH")}
    env |= {MARK: mark, "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(home / "tmp"), "PYTHONHASHSEED": "0"}
    paths = [str(ROOT)]
    if page is not None:
        env["CHAOS_PAGE"] = str(page)
        paths = [str(SHIM), *paths]
    return env | {"PYTHONPATH": os.pathsep.join(paths)}


def signals_as_in_a_shell() -> None:
    """Whoever ran the soak with nohup, or in the background, has had some ignored; a sweep would inherit that."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


class Command:
    """A command under way. What it prints comes into a file, as long as somebody reads it."""

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        log: Path,
        output: str = "file",
        limits: Mapping[int, int] | None = None,
    ) -> None:
        """Starts it.

        Args:
            output: file, pipe or terminal (it is the command's controlling one).
            limits: of resources.
        """
        self.log = log
        self.terminal: int | None = None
        is_terminal = output == "terminal"

        def prepare() -> None:
            signals_as_in_a_shell()
            for number, limit in (limits or {}).items():
                resource.setrlimit(number, (limit, limit))
            if is_terminal:
                fcntl.ioctl(1, termios.TIOCSCTTY, 0)

        file = open(log, "wb", buffering=0)  # noqa: SIM115  # the reader's thread closes it
        theirs: int | BinaryIO = file
        if output == "pipe":
            self.terminal, theirs = os.pipe()
        elif is_terminal:
            self.terminal, theirs = pty.openpty()
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(
            list(arguments),
            cwd=cwd,
            env=dict(env),
            stdin=theirs if is_terminal else null,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=prepare,
        )
        self.pid = self.process.pid
        if self.terminal is None:
            file.close()
        else:
            assert isinstance(theirs, int)
            os.close(theirs)
            # A descriptor of its own: who closes the other one closes the last but this, which ends with it.
            self._reader = threading.Thread(target=_copy, args=(self.terminal, file), daemon=True)
            self._reader.start()

    @property
    def status(self) -> int | None:
        return self.process.poll()

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")


def _copy(fd: int, file: BinaryIO) -> None:
    import select

    with file:
        while True:
            try:
                # Not in `read`, which would hold the terminal open while another thread closes it.
                if select.select([fd], [], [], 0.2)[0]:
                    data = os.read(fd, 65536)
                    if not data:
                        return
                    file.write(data)
            except (OSError, ValueError):  # closed, by whoever meant it; or the command has ended
                return
