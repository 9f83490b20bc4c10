"""What a job and its launcher say to each other: two pipes of their own, apart from stdout and stderr.

Up goes a line of JSON a message, a newline before and after it. A line that does not read as a message is dropped:
a job killed in the middle of a write, or a stranger's bytes, cost that line and nothing else. A job never waits for
its launcher: what the pipe does not take is kept, and a thread sends it on as the launcher reads (a launcher that
writes to a slow database may be seconds behind). Down goes a single byte, `STOP`, or `PRUNE` and a line that says why.
The end of the downward pipe is the life line: when it closes, the launcher is gone
and the job ends its whole process group. What is large (the job, its result) travels in an unnamed file.
"""

import contextlib
import json
import os
import select
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import IO, Any

from flgo_hydra.launch.processes.messages import parse

STOP = b"s"
# What the file of a job begins with: first what it is given, then, if it comes to that, what it leaves.
_PAYLOAD, _RESULT = b"flgo_hydra payload\n", b"flgo_hydra result\n"
PRUNE = b"p"
_MOST_KEPT = 20_000
"""Messages kept for a launcher that does not read; then the oldest go. What matters is in the job's files."""
_MAX_LINE_BYTES = 16 * 2**20
_READ_BYTES = 2**16
_MOST_RESULT_BYTES = 2**30


class Channel:
    """A job's end. Messages of forked grandchildren are not sent: they are not the job."""

    def __init__(self, message_fd: int, control_fd: int, file_fd: int) -> None:
        self._message_fd = message_fd
        self._control_fd = control_fd
        self._file_fd = file_fd
        self._pid = os.getpid()
        os.set_blocking(message_fd, False)
        self._to_send: deque[bytes] = deque(maxlen=_MOST_KEPT)
        self._rest = b""  # of the message being sent
        self._is_full = False  # then a thread waits for the pipe
        self._sending = threading.Lock()
        self._is_stopping = threading.Event()
        self._prune_reason: str | None = None
        self.has_been_told_to_stop = False
        self.has_been_told_to_prune = False

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message. Never waits, never raises."""
        if os.getpid() == self._pid:
            self._to_send.append(b"\n" + _encode(message) + b"\n")
            self._push()

    def flush(self) -> None:
        """Waits until the launcher has been sent everything, or is gone."""
        if os.getpid() == self._pid:
            self._wait_and_send()

    def _push(self) -> None:
        """Sends what the pipe takes now. Whoever sends already looks again when it is done."""
        while (self._to_send or self._rest) and not self._is_full and self._sending.acquire(blocking=False):
            try:
                if not self._send_some():
                    with contextlib.suppress(RuntimeError):  # no more threads: the next message tries again
                        threading.Thread(target=self._wait_and_send, name="flgo_hydra messages", daemon=True).start()
                        self._is_full = True
                    return
            finally:
                self._sending.release()

    def _wait_and_send(self) -> None:
        poll = select.poll()
        poll.register(self._message_fd, select.POLLOUT)
        is_done = False
        while not is_done:
            poll.poll()
            with self._sending:
                is_done = self._send_some()
                self._is_full = not is_done
        self._push()  # what came between the last look and now

    def _send_some(self) -> bool:
        """True when everything has been sent; False when the pipe is full. For the holder of the lock."""
        try:
            while self._to_send or self._rest:
                self._rest = self._rest or self._to_send.popleft()
                self._rest = self._rest[os.write(self._message_fd, self._rest) :]
        except BlockingIOError:
            return False
        except OSError:  # the launcher is gone: the life line ends this process
            self._rest = b""
            self._to_send.clear()
        return True

    def is_stopping(self) -> bool:
        """True when the launcher asked for a stop; that the job heard it is remembered."""
        self.has_been_told_to_stop |= self._is_stopping.is_set()
        return self._is_stopping.is_set()

    def prune_reason(self) -> str | None:
        """Why the launcher wants the job to end as pruned, or None; that the job heard it is remembered."""
        self.has_been_told_to_prune |= self._prune_reason is not None
        return self._prune_reason

    def read_payload(self) -> bytes:
        """Returns what the launcher put into the file."""
        with open(self._file_fd, "rb", closefd=False) as file:
            file.seek(0)
            return file.read().removeprefix(_PAYLOAD)

    def write_result(self, result: bytes) -> None:
        """Puts the result where the payload was."""
        with open(self._file_fd, "wb", closefd=False) as file:
            file.seek(0)
            file.truncate()
            file.write(_RESULT + result)

    def watch(self, every_s: float, look: Callable[[], None]) -> None:
        """Starts the thread that hears `STOP` and the end of the life line, and calls `look` now and then."""
        threading.Thread(target=self._watch, args=(every_s, look), name="flgo_hydra", daemon=True).start()

    def _watch(self, every_s: float, look: Callable[[], None]) -> None:
        poll = select.poll()
        poll.register(self._control_fd, select.POLLIN)
        while True:
            if not poll.poll(every_s * 1000):
                look()
                continue
            command = os.read(self._control_fd, 1)
            if command == STOP:
                self._is_stopping.set()
            elif command == PRUNE:
                reason = b""
                while not reason.endswith(b"\n"):  # it was written at once
                    reason += os.read(self._control_fd, 1) or b"\n"
                self._prune_reason = reason.decode(errors="replace").strip()
            else:
                os.killpg(os.getpgid(0), signal.SIGKILL)


def make_file(payload: bytes) -> IO[bytes]:
    """Returns an unnamed file with what a job is given, in memory: no disk of anybody's can be full."""
    file = os.fdopen(os.memfd_create("flgo_hydra job", os.MFD_CLOEXEC), "w+b")
    try:
        file.write(_PAYLOAD + payload)
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def read_result(file: IO[bytes]) -> bytes:
    """Returns what the job has left in its file; nothing where it never came to that."""
    file.seek(0)
    content = file.read(_MOST_RESULT_BYTES)
    return content.removeprefix(_RESULT) if content.startswith(_RESULT) else b""


class MessageReader:
    """The launcher's end of a job's messages: bytes in, whole messages out."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._rest = b""

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """Returns the messages that have come, and whether more may come. Never waits."""
        messages: list[dict[str, Any]] = []
        while True:
            try:
                data = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                return messages, True
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > _MAX_LINE_BYTES:
                self._rest = b""
            messages += filter(None, map(parse, filter(None, lines)))
            if not data:
                return messages, False


def _encode(message: dict[str, Any]) -> bytes:
    """Returns one line; numbers of numpy and torch become numbers, what JSON does not know its text."""

    def plain(value: Any) -> Any:
        return value.item() if hasattr(value, "item") else str(value)

    try:
        return json.dumps(message, default=plain, skipkeys=True).encode()
    except Exception as error:  # a user's value may fail in any way, and a report is not worth the job
        return json.dumps({"kind": "unreadable", "of": str(message.get("kind")), "why": repr(error)}).encode()
