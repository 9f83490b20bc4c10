"""The forkserver's process as its launcher sees it: started, set up, heard, ended.

It may be started early: `python -m flgo_hydra -m` does so before it imports Hydra, so that the server imports torch
on another core while the grid is composed and checked. What only the launcher knows comes later, in `set_up`.
"""

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PRELOAD = ("torch", "numpy.random")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_CODE = (
    "import json, sys; settings = json.loads(sys.argv[-1]); sys.path[:] = settings['sys_path']; "
    "from flgo_hydra.launch.processes import forkserver; forkserver.main(settings)"
)
_SHUTDOWN_S = 5.0
_MOST_FILES = 2**16

_early: "ServerProcess | None" = None


class ServerProcess:
    """A forkserver under way."""

    def __init__(self, preload: Sequence[str], env: Mapping[str, str], prepare: Sequence[str] = ()) -> None:
        """Starts the process.

        Args:
            preload: modules it imports at once.
            env: set for it, hence before torch is imported.
            prepare: functions (`module:function`) it calls at once.
        """
        raise_file_limit()
        self.env = dict(env)
        self._output = os.fdopen(os.memfd_create("flgo_hydra server", os.MFD_CLOEXEC), "w+b")
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = {
            "fd": theirs.fileno(),
            "parent": os.getpid(),
            "sys_path": _sys_path(),
            "preload": list(preload),
            "prepare": list(prepare),
        }
        flags = [f"-W{option}" for option in sys.warnoptions] + ["-O"] * sys.flags.optimize
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-c", _CODE, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **self.env},
                start_new_session=True,  # so that Ctrl-C reaches the launcher only
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def set_up(self, preload: Sequence[str], entry: str, task: Mapping[str, Any] | None) -> None:
        """Says what it shall start jobs with; it is ready when it says so.

        Args:
            preload: further modules it imports once.
            entry: `module:function` called in each new process.
            task: fields of a TaskReference, or None.
        """
        message = {"sys_path": _sys_path(), "preload": list(preload), "entry": entry, "task": task}
        try:
            self.socket.send(json.dumps(message).encode())
        except (BrokenPipeError, ConnectionError):
            pass  # it has died: who reads from the socket finds out

    def wait(self) -> str:
        """Waits for its end, and returns how it ended, with its last words."""
        status = self._process.wait()
        self._output.seek(0)
        said = self._output.read().decode(errors="replace").strip()[-2000:]
        *before, last = said.splitlines() or [""]
        # The last line says what was wrong; of a traceback the rest says where.
        told = f": {last}" if last else ""
        return f"the forkserver ended with status {status}{told}" + (f"\n{said}" if before else "")

    def close(self) -> None:
        """Ends it: a forkserver whose socket closes kills its jobs and leaves."""
        self.socket.close()
        try:
            self._process.wait(_SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()


def raise_file_limit() -> None:
    """Lets this process, and what it starts, open as many files as it may: a job holds three here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox may not allow it
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def worker_env(num_threads: int) -> dict[str, str]:
    """The environment of workers: a user's own setting of a variable counts as much as ours, so it stays."""
    threads = {name: os.environ.get(name, str(num_threads)) for name in _THREAD_VARIABLES}
    # Lets an app ask torch for GPUs when it is imported, without starting CUDA in the forkserver.
    return threads | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def start_early(preload: Sequence[str], prepare: Sequence[str], num_threads: int = 1) -> None:
    """Starts a forkserver that the first launcher of this process takes, if it fits.

    Args:
        num_threads: of a job; one where slots and threads are left to us, on whatever machine.
    """
    global _early
    take_early({})  # of a command before, in the same process, that was refused before it had a launcher
    _early = ServerProcess(preload, worker_env(num_threads), prepare)


def take_early(env: Mapping[str, str]) -> ServerProcess | None:
    """Returns the forkserver that was started early, once; None where there is none with this environment."""
    global _early
    server, _early = _early, None
    if server is not None and server.env != dict(env):
        server._process.kill()
        server.close()
        return None
    return server


def _sys_path() -> list[str]:
    return [entry or os.getcwd() for entry in sys.path]
