"""The process that starts jobs warm: it has imported torch and the app once, and forks one process a job.

multiprocessing has a forkserver too. Ours is one of its own because that one is shared by the whole program (whose
preload list wins?), imports the user's `__main__` in every child, gives no exit status but to its own `Process`
objects, lets children outlive a killed parent and leaves grandchildren alone. What both must keep: no CUDA
context and no second thread in the server, or its children inherit broken ones.

The launcher is at the other end of a socket that keeps messages apart (SOCK_SEQPACKET). It sends
    {"entry": …, "task": …, "preload": […], "sys_path": […]}            once, see `ServerProcess.set_up`
    {"start": tokens, "entry": "module:function", "is_group": …, "cwd": …, "env": {…}} with open files (`_become_job`)
    {"signal": token, "number": …}                                      to the job's process group
and hears {"ready": …}, {"started": tokens, "pid": …} and {"ended": tokens, "status": …, "peak_memory_mib": …}.
A process has several tokens where it runs several jobs as one program.
Only the server signals and reaps: a process id cannot be another's before it has been waited for.
When the socket closes, the launcher is gone: the server kills every job's group and leaves. It adopts what jobs leave
behind (a daemon of a user's code, in a session of its own), and kills that when no job is left.
"""

import atexit
import contextlib
import ctypes
import errno
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from flgo_hydra.launch.processes.channel import Channel
from flgo_hydra.launch.processes.task_reference import TaskReference, load_task
from flgo_hydra.streams import keep_going

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_KILLING_S = 3.0
_MOST_FILES = 253  # what Linux sends at once
_NO_TASK = 121
"""Exit status of a child whose entry function cannot be imported: our own mistake, never a job's."""


def main(settings: dict[str, Any]) -> None:
    """Runs the server in this process; in a forked child, runs the job.

    Args:
        settings: `fd` of the socket, `parent` process id, and what is done before the launcher has said more:
            `preload`, module names, and `prepare`, functions. Begun again: also `setup`, said already.
    """
    sock = socket.socket(fileno=settings["fd"])
    sock.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to answer
    # The only signal that also wakes a server that somebody has stopped; what it finds then is a closed socket.
    die_with_parent(settings["parent"], signal.SIGCONT)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    sys.argv = ["flgo_hydra"]
    gc.disable()  # nothing that imports make is garbage; looking for it takes a seventh of their time
    _import(settings["preload"])
    for name in settings["prepare"]:
        _call(name)
    setup = settings.get("setup") or _read_setup(sock)
    if setup is None:
        os._exit(0)
    sys.path[:] = setup["sys_path"]
    _import(setup["preload"])
    _call(f"{setup['entry'].partition(':')[0]}:prepare")
    if setup["task"] is not None:
        with contextlib.suppress(BaseException):
            task = load_task(TaskReference(**setup["task"]))
            # An app may say what its jobs import: a function `preload` in the task function's module.
            getattr(sys.modules[task.__module__], "preload", lambda: None)()
    if setup["task"] is not None and _holds_cuda():
        # The app starts CUDA when it is imported. Begin again without it; the jobs import it themselves.
        bare = settings | {"prepare": [], "setup": setup | {"task": None}}
        sock.set_inheritable(True)
        os.execv(sys.executable, [*sys.orig_argv[:-1], json.dumps(bare)])
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()  # else each child's first collection copies every page the server holds
    gc.enable()
    _leave(_Server(sock, settings["parent"]).serve() or (lambda: 0))


def _import(names: Sequence[str]) -> None:
    for name in names:
        with contextlib.suppress(BaseException):  # the job imports it again and shows the error as its own
            importlib.import_module(name)


def _call(name: str) -> None:
    """Calls `module:function`, where there is one."""
    module, _, function = name.partition(":")
    with contextlib.suppress(BaseException):
        getattr(importlib.import_module(module), function, lambda: None)()


def _read_setup(sock: socket.socket) -> dict[str, Any] | None:
    """What the launcher says first; None when it has gone without a word."""
    try:
        said = sock.recv(2**20)
    except ConnectionError:
        return None
    return json.loads(said) if said else None


def _leave(job: Callable[[], int]) -> None:
    """Runs the job and ends the process as the interpreter would, but for tearing modules down.

    With torch imported that takes 0.25 s and returns memory that the kernel takes back anyway.
    """
    status = 1
    try:
        status = job()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as multiprocessing's children do
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status & 0xFF)


def _holds_cuda() -> bool:
    """True when this process has opened the driver for computing: a fork of it could not use CUDA."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith("/dev/nvidia-uvm"):
                return True
    return False


def die_with_parent(parent_pid: int, signal_number: int) -> None:
    """Has the kernel send this process a signal when its parent ends (Linux; elsewhere the life line must do)."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != parent_pid:
            os._exit(1)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def children(pid: int) -> list[int]:
    """The processes whose parent is this one."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
                if int(fields[1]) == pid and fields[0] != "Z":
                    found.append(int(name))
    return found


class _Job:
    """What a child does after the fork, when the server's frames are gone from its stack."""

    def __init__(self, entry: str, is_group: bool, channels: list[Channel]) -> None:
        self.entry, self.is_group, self.channels = entry, is_group, channels

    def __call__(self) -> int:
        module_name, _, name = self.entry.partition(":")
        try:
            function = getattr(importlib.import_module(module_name), name)
        except (ImportError, AttributeError) as error:
            print(f"flgo_hydra cannot start a job: {error!r}", file=sys.stderr)
            return _NO_TASK
        try:
            return int(function(self.channels if self.is_group else self.channels[0]) or 0)
        finally:
            for channel in self.channels:
                channel.flush()


class _Server:
    def __init__(self, sock: socket.socket, parent_pid: int) -> None:
        self._sock = sock
        self._parent_pid = parent_pid
        self._pid = os.getpid()
        self._tokens: dict[int, list[int]] = {}  # of process ids
        self._is_orphan = False
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)

    def serve(self) -> _Job | None:
        """Serves until the launcher is gone; in a forked child, returns its job."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGCONT):
            signal.signal(number, self._on_death_of_parent)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._sock, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._tell({"ready": self._pid})
        while not self._is_orphan:
            for key, _ in self._selector.select():
                if key.fd == self._wake_read:
                    with contextlib.suppress(BlockingIOError):
                        while os.read(self._wake_read, 4096):
                            pass
                else:
                    job = self._hear()
                    if job is not None:
                        return job
            self._reap()
        for pid in self._tokens:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self._kill_adopted()
        return None

    def _kill_adopted(self) -> None:
        """Kills whatever has become this process's child: first those, then what they leave behind."""
        deadline = time.monotonic() + _KILLING_S
        while (left := children(self._pid)) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            for pid in left:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _on_death_of_parent(self, *_: object) -> None:
        # The kernel also sends it when only the launcher's thread that started us has ended.
        self._is_orphan |= os.getppid() != self._parent_pid

    def _hear(self) -> _Job | None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, 2**20, _MOST_FILES)
        except ConnectionError:
            data, fds = b"", []
        if not data:
            self._is_orphan = True
            return None
        request = json.loads(data)
        if "signal" in request:
            for pid, tokens in self._tokens.items():
                if request["signal"] in tokens:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, request["number"])
            return None
        try:
            if len(fds) != 1 + 3 * len(request["start"]):  # the kernel drops what does not fit into this process
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            pid = os.fork()
        except OSError as error:
            self._tell({"ended": request["start"], "status": None, "error": f"could not be started: {error}"})
            pid = -1
        if pid == 0:
            return self._become_job(request, fds)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.setpgid(pid, pid)  # here and in the child: whoever comes first
            self._tokens[pid] = request["start"]
        return None

    def _become_job(self, request: dict[str, Any], fds: list[int]) -> _Job:
        """Turns the forked copy of the server into a process of its own.

        Args:
            fds: the log; then for each job the messages' pipe, the control pipe and the file of the payload.
        """
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGCONT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(PermissionError):
            os.setpgid(0, 0)
        die_with_parent(self._pid, signal.SIGKILL)
        self._tell({"started": request["start"], "pid": os.getpid()})  # before it says anything else
        self._selector.close()
        self._sock.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        log_fd, *others = fds
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log_fd, 1), (log_fd, 2)):
            os.dup2(source, target)
        os.close(null)
        os.close(log_fd)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(  # type: ignore[union-attr]
                encoding="utf-8", errors="backslashreplace", line_buffering=True
            )
        keep_going()
        # What the imports want done at the end is the server's to do: torch's alone takes 20 ms.
        for finalizer in list(getattr(weakref.finalize, "_registry", ())):
            finalizer.atexit = False
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        channels = [Channel(*others[i : i + 3]) for i in range(0, len(others), 3)]
        return _Job(request["entry"], request["is_group"], channels)

    def _reap(self) -> None:
        """Tells the ends of jobs. What is left of an ended job's group is killed before its number is free again."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                break
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(ended.si_pid, signal.SIGKILL)
            _, status, usage = os.wait4(ended.si_pid, 0)
            tokens = self._tokens.pop(ended.si_pid, None)
            if tokens is not None:
                status = os.waitstatus_to_exitcode(status)
                self._tell({"ended": tokens, "status": status, "peak_memory_mib": usage.ru_maxrss / 1024})
        if not self._tokens:  # what is left is no job's any more
            self._kill_adopted()

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self._sock.send(json.dumps(message).encode())
        except OSError:
            self._is_orphan = True
