"""What a job and its launcher say to each other: two pipes of their own, apart from stdout and stderr.

Up goes a line of JSON a message, a newline before and after it. A line that does not read as a message is dropped:
a job killed in the middle of a write, or a stranger's bytes, cost that line and nothing else. Down goes a
single byte, `STOP`. The end of the downward pipe is the life line: when it closes, the launcher is gone
and the job ends its whole process group. What is large (the job, its result) travels in an unnamed file.
"""

import json
import os
import select
import signal
import threading
from collections.abc import Callable
from typing import Any

STOP = b"s"
_MAX_LINE_BYTES = 16 * 2**20
_READ_BYTES = 2**16


class Channel:
    """A job's end. Messages of forked grandchildren are not sent: they are not the job."""

    def __init__(self, message_fd: int, control_fd: int, file_fd: int) -> None:
        self._message_fd = message_fd
        self._control_fd = control_fd
        self._file_fd = file_fd
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._is_stopping = threading.Event()
        self.has_been_told_to_stop = False

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message. Never raises."""
        if os.getpid() != self._pid:
            return
        left = memoryview(b"\n" + _encode(message) + b"\n")
        with self._lock:
            try:
                while left:
                    left = left[os.write(self._message_fd, left) :]
            except OSError:
                pass  # the launcher is gone: the life line ends this process

    def is_stopping(self) -> bool:
        """True when the launcher asked for a stop; that the job heard it is remembered."""
        self.has_been_told_to_stop |= self._is_stopping.is_set()
        return self._is_stopping.is_set()

    def read_payload(self) -> bytes:
        """Returns what the launcher put into the file."""
        with open(self._file_fd, "rb", closefd=False) as file:
            file.seek(0)
            return file.read()

    def write_result(self, result: bytes) -> None:
        """Puts the result where the payload was."""
        with open(self._file_fd, "wb", closefd=False) as file:
            file.seek(0)
            file.truncate()
            file.write(result)

    def watch(self, every_s: float, look: Callable[[], None]) -> None:
        """Starts the thread that hears `STOP` and the end of the life line, and calls `look` now and then."""
        threading.Thread(target=self._watch, args=(every_s, look), name="flgo_hydra", daemon=True).start()

    def _watch(self, every_s: float, look: Callable[[], None]) -> None:
        poll = select.poll()
        poll.register(self._control_fd, select.POLLIN)
        while True:
            if not poll.poll(every_s * 1000):
                look()
            elif os.read(self._control_fd, 1) == STOP:
                self._is_stopping.set()
            else:
                os.killpg(os.getpgid(0), signal.SIGKILL)


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
            messages += filter(None, map(parse, lines))
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


def parse(line: bytes) -> dict[str, Any] | None:
    """Returns the message a line holds, or None."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("kind"), str) else None
