"""Standard output and error of a command that depend neither on who reads them nor on what they can hold.

What is printed is not what a run or a sweep is for: it ends as it would have ended. Where it is (a report, a help
page), `whole` and `wholly` say that it is lost. Every command's entry calls `keep_going` first, or `wholly`.
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from flgo_hydra.record.plain_text import printable, shortened
from flgo_hydra.record.secrets import masked

_NOBODY_READS = (errno.EPIPE, errno.EIO)
"""a pipe's reader has gone (`| head`); the terminal has been closed"""


class Stream:
    """A text stream that nothing printed brings to an end.

    A character that its encoding has not is spelt out. A text that cannot be written is lost, and what follows it too,
    but for a file, where there may be room again, and a slow reader.
    """

    refused = ""
    """why a text was lost; empty where none was, or where its reader has had enough"""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._give_up(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if error.errno not in _NOBODY_READS:
            self.refused = error.strerror or str(error)
        if isinstance(error, BlockingIOError):
            return
        with contextlib.suppress(OSError, ValueError):  # it is no file, or there is none to be had
            number = self._stream.fileno()
            if stat.S_ISREG(os.fstat(number).st_mode):
                return
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)  # which processes that start from now on inherit
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_going() -> None:
    """Makes this process's standard streams such; one that was closed (`>&-`) leads to nowhere. May be called again."""
    _fill_numbers()
    sys.stdout, sys.stderr = _kept(sys.stdout), _kept(sys.stderr)


@contextlib.contextmanager
def going_on() -> Iterator[None]:
    """While open, they are such: a Python program's own streams are its own again afterwards."""
    before = sys.stdout, sys.stderr
    keep_going()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def whole(status: int) -> int:
    """The status of a command whose product is what it has printed: 1, with a sentence, where some of it is lost."""
    sys.stdout.flush()
    why = getattr(sys.stdout, "refused", "")
    if status or not why:
        return status
    return tell_error(
        f"What was to be printed is lost, since standard output cannot be written: {why}. Give the same command again "
        "with an output that can, `> FILE` or `| less`."
    )


def wholly(command: Callable[[], int]) -> int:
    """Runs such a command, and returns its status."""
    keep_going()
    try:
        status = command()
    except SystemExit as stop:  # argparse's
        if not isinstance(stop.code, int | None):
            raise
        status = stop.code or 0
    return whole(status)


def tell_error(why: str) -> int:
    """Says why nothing came of a command, in one line that no terminal obeys and with no password; returns its status.

    Every refusal is printed here.
    """
    print(f"error: {printable(masked(shortened(why)))}", file=sys.stderr)
    return 1


def _kept(stream: TextIO | None) -> Any:
    if isinstance(stream, Stream):
        return stream
    kept = Stream(open(os.devnull, "w", encoding="utf-8") if stream is None else stream)
    kept.refused = "it is closed" if stream is None else ""
    return kept


def _fill_numbers() -> None:
    """Opens what was closed of the files 0, 1 and 2: else the next one opened gets what is printed, or is taken for it
    by a process that starts."""
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(number, True)
        os.close(number)
