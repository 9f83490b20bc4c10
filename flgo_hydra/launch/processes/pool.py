"""OS processes, one a job, started warm by a forkserver of our own.

The pool starts, hears, signals and buries processes. It decides nothing: what runs, where and how often is the
queue's. It waits on pipes only: the forkserver tells the ends of jobs, so a grandchild that still holds a
dead job's pipe keeps nobody waiting. Every pipe's other end is closed here as soon as the forkserver has it.

Linux only: it relies on fork, SOCK_SEQPACKET and the parent-death signal.
"""

import contextlib
import dataclasses
import json
import os
import select
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from flgo_hydra.launch.processes.channel import PRUNE, STOP, MessageReader, make_file, read_result
from flgo_hydra.launch.processes.server_process import ServerProcess, take_early
from flgo_hydra.launch.processes.task_reference import TaskReference
from flgo_hydra.machine_errors import CannotStart

_MOST_UNREADY = 3
"""Times in a row that the forkserver may end before it is ready."""
_GATHER_S = 0.005
_WINDOW_S = 0.1
_CROWD_PER_S = 200


@dataclass(frozen=True)
class Started:
    """A process runs."""

    token: int
    pid: int


@dataclass(frozen=True)
class Message:
    """A process said something."""

    token: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A process is gone, with all it said before."""

    token: int
    # exit status; -n: killed by signal n; None: it never ran, or the forkserver died with it
    status: int | None
    # largest resident memory the kernel saw; None: unknown
    peak_memory_mib: float | None
    # its result; empty: it left none
    result: bytes
    # why it never ran; empty: it ran
    error: str = ""
    # the machine did not let it start
    is_refused: bool = False


@dataclass
class _Process:
    reader: MessageReader
    control_fd: int
    file: IO[bytes]
    pid: int | None = None
    kill_at: float | None = None


class Crowd:
    """Whether messages come so fast that they are better read in batches."""

    def __init__(self) -> None:
        self._num = 0
        self._since_s = 0.0
        self._is_crowded = False

    def count(self, num: int) -> None:
        self._num += num

    def is_crowded(self, now_s: float) -> bool:
        """Decided anew after each tenth of a second."""
        if now_s - self._since_s >= _WINDOW_S:
            self._is_crowded = self._num > _CROWD_PER_S * (now_s - self._since_s)
            self._num, self._since_s = 0, now_s
        return self._is_crowded


@dataclass
class Pool:
    """Starts processes and tells what becomes of them.

    Args:
        entry: `module:function` called with a `Channel` in each new process; its int is the exit status. Where the
            module has a `prepare`, the forkserver calls it once.
        preload: modules the forkserver imports once.
        task: a task function the forkserver looks up once, so that its modules are there too.
        env: set for the forkserver, hence before torch is imported, and for every job.
        group_entry: the same for several jobs in one process, called with their channels.
        clock: seconds, for the grace between SIGTERM and SIGKILL.
    """

    entry: str
    preload: Sequence[str] = ()
    task: TaskReference | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    group_entry: str = ""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._processes: dict[int, _Process] = {}
        self._next_token = 0
        self._server: ServerProcess | None = None
        self._num_unready = 0
        self._events: list[Started | Message | Ended] = []
        self._crowd = Crowd()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)

    def warm(self) -> None:
        """Starts the forkserver, if it is not there: its imports take a second or two, and need not be waited for."""
        if self._server is None:
            self._start_server()

    def start(self, payload: bytes, log: Path, cwd: str | None = None, env: Mapping[str, str] | None = None) -> int:
        """Starts a process and returns its token.

        Args:
            payload: what the entry function reads from its channel.
            log: gets all the process writes to stdout and stderr, after what is there already.
            env: set for this process only.
        """
        return self.start_group([payload], log, cwd, env, is_group=False)[0]

    def start_group(
        self,
        payloads: Sequence[bytes],
        log: Path,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        is_group: bool = True,
    ) -> list[int]:
        """Starts one process for several jobs, and returns their tokens.

        Each has its own channel, hence its messages, its result, and its requests to stop; they start and end
        together. A group may be of one, too.

        Raises:
            OSError: it cannot be started, for want of something or because of its folder; nothing is left of it.
        """
        self.warm()
        assert self._server is not None
        tokens = list(range(self._next_token + 1, self._next_token + 1 + len(payloads)))
        self._next_token = tokens[-1]
        log.parent.mkdir(parents=True, exist_ok=True)
        request = {
            "start": tokens,
            "entry": self.group_entry if is_group else self.entry,
            "is_group": is_group,
            "cwd": cwd or os.getcwd(),
            "env": {**self.env, **(env or {})},
        }
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            fds = [theirs.enter_context(open(log, "ab")).fileno()]
            processes: dict[int, _Process] = {}
            for token, payload in zip(tokens, payloads, strict=True):
                file = ours.enter_context(make_file(payload))
                message_read, message_write = os.pipe()
                theirs.callback(os.close, message_write)
                ours.callback(os.close, message_read)
                control_read, control_write = os.pipe()
                theirs.callback(os.close, control_read)
                ours.callback(os.close, control_write)
                processes[token] = _Process(MessageReader(message_read), control_write, file)
                fds += [message_write, control_read, file.fileno()]
            for token, process in processes.items():
                self._selector.register(process.reader.fd, selectors.EVENT_READ, token)
                ours.callback(self._selector.unregister, process.reader.fd)
            # Where the forkserver is gone, `wait` notices and reports these with the others.
            with contextlib.suppress(ConnectionError):
                socket.send_fds(self._server.socket, [json.dumps(request).encode()], fds)
            self._processes |= processes
            ours.pop_all()  # all are there: from now on they are closed when a process is buried
        return tokens

    def request_stop(self, token: int) -> None:
        """Asks a process to end at its next round boundary."""
        if token in self._processes:
            with contextlib.suppress(OSError):
                os.write(self._processes[token].control_fd, STOP)

    def request_prune(self, token: int, reason: str) -> None:
        """Asks a process to end for good at its next round boundary, and says why (a line, at most 500 bytes)."""
        if token in self._processes:
            line = " ".join(reason.split()).encode(errors="backslashreplace")[:500]
            with contextlib.suppress(OSError):
                os.write(self._processes[token].control_fd, PRUNE + line + b"\n")

    def end(self, token: int, grace_s: float) -> None:
        """Sends SIGTERM to a process and its children, and SIGKILL when they are still there `grace_s` later."""
        if token in self._processes and self._processes[token].kill_at is None:
            self._signal(token, signal.SIGTERM)
            self._processes[token].kill_at = self.clock() + grace_s

    def wake(self) -> None:
        """Makes a `wait` under way, or the next one, return. May be called in a signal handler."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"w")

    def wait(self, timeout_s: float | None = None) -> list[Started | Message | Ended]:
        """Returns what has happened, waiting for it up to `timeout_s` (None: as long as it takes)."""
        deadline = None if timeout_s is None else self.clock() + timeout_s
        while True:
            now = self.clock()
            for token, process in self._processes.items():
                if process.kill_at is not None and process.kill_at <= now:
                    self._signal(token, signal.SIGKILL)
                    process.kill_at = float("inf")
            ends = [p.kill_at for p in self._processes.values() if p.kill_at is not None]
            until = min([*ends, *([] if deadline is None else [deadline])], default=None)
            is_endless = until is None or until == float("inf")
            wait_s = None if is_endless or until is None else max(0.0, until - now)
            if self._crowd.is_crowded(now):
                self._let_messages_gather(_GATHER_S if wait_s is None else wait_s)
                wait_s = 0.0
            ready = self._selector.select(wait_s)
            is_awake = self._read(ready)
            events, self._events = self._events, []
            if events or is_awake or (deadline is not None and self.clock() >= deadline):
                return events

    def _let_messages_gather(self, most_s: float) -> None:
        """Waits for a moment, or for what is no message, so that one look finds many of them.

        Each message that finds this process waiting would wake it, and the kernel would let it run in place of the
        worker that has just sent it.
        """
        others = select.poll()
        others.register(self._wake_read, select.POLLIN)
        if self._server is not None:
            others.register(self._server.socket, select.POLLIN)
        others.poll(1000 * max(0.0, min(_GATHER_S, most_s)))

    def close(self) -> None:
        """Kills what still runs and ends the forkserver."""
        if self._server is not None:
            self._stop_server()
        for token in list(self._processes):
            self._bury(token, None, None)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _read(self, ready: list[tuple[selectors.SelectorKey, int]]) -> bool:
        """Turns what can be read into events. True when `wake` was called."""
        is_awake = False
        # The forkserver's socket first: a start comes before what the job says. An end reads what it said before.
        for key, _ in sorted(ready, key=lambda item: item[0].data != "server"):
            if key.data == "server":
                self._read_server()
            elif key.data is None:
                with contextlib.suppress(BlockingIOError):
                    while os.read(self._wake_read, 4096):
                        is_awake = True
            elif key.data in self._processes:
                self._read_messages(key.data)
        return is_awake

    def _read_messages(self, token: int) -> None:
        reader = self._processes[token].reader
        messages, may_come = reader.read()
        self._crowd.count(len(messages))
        self._events += [Message(token, values) for values in messages]
        if not may_come:
            with contextlib.suppress(KeyError):
                self._selector.unregister(reader.fd)

    def _read_server(self) -> None:
        assert self._server is not None
        while True:
            try:
                data = self._server.socket.recv(2**16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                return self._lose_server()
            told = json.loads(data)
            if "started" in told:
                for token in told["started"]:
                    self._processes[token].pid = told["pid"]
                    self._events.append(Started(token, told["pid"]))
            elif "ended" in told:
                for token in told["ended"]:
                    self._bury(
                        token, told["status"], told.get("peak_memory_mib"), told.get("error", ""), "error" in told
                    )
            else:
                self._is_ready, self._num_unready = True, 0

    def _bury(
        self,
        token: int,
        status: int | None,
        peak_memory_mib: float | None,
        error: str = "",
        is_refused: bool = False,
    ) -> None:
        self._read_messages(token)
        process = self._processes.pop(token)
        with contextlib.suppress(KeyError):
            self._selector.unregister(process.reader.fd)
        os.close(process.reader.fd)
        os.close(process.control_fd)
        with process.file as file:
            result = read_result(file)
        self._events.append(Ended(token, status, peak_memory_mib, result, error, is_refused))

    def _signal(self, token: int, number: int) -> None:
        assert self._server is not None
        with contextlib.suppress(OSError):
            self._server.socket.send(json.dumps({"signal": token, "number": int(number)}).encode())

    def _start_server(self) -> None:
        self._server = take_early(self.env) or ServerProcess(self.preload, self.env)
        self._is_ready = False
        self._server.set_up(self.preload, self.entry, None if self.task is None else dataclasses.asdict(self.task))
        self._selector.register(self._server.socket, selectors.EVENT_READ, "server")

    def _stop_server(self) -> None:
        assert self._server is not None
        self._selector.unregister(self._server.socket)
        self._server.close()
        self._server = None

    def _lose_server(self) -> None:
        """The forkserver died: its jobs die with it, are reported, and the next start makes a new one."""
        assert self._server is not None
        error = self._server.wait()
        for process in self._processes.values():
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
        if not self._is_ready:
            self._num_unready += 1
            if self._num_unready > _MOST_UNREADY:
                raise CannotStart(str(error))
            self.preload, self.task = (), None  # an import may have killed it: let the jobs import
        self._stop_server()
        for token in list(self._processes):
            self._bury(token, None, None, error)
