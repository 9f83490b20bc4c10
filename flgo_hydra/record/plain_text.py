"""Text from a config, a metric's name or an error, as it may stand in a terminal, a table or a spreadsheet.

What others say (an error, its traceback, why a run was pruned, a warning) may be of any length, and hold halves of
characters that no file takes. It is made `plain` where it enters a record of ours, by the record's own class, so that
whoever writes one, or reads one that somebody else has written, has texts that every file, table and study takes.
"""

import re
import traceback
from typing import Any

MOST = 2**16
"""characters of a text of others"""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MOST_OF_LINE = 500
_MARK = 60
"""characters that say that some are left out, at most"""
_FORMULA = re.compile(r"[=@\t\r]|[+-].*[(|!]")
_NUMBER = re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?", re.IGNORECASE)


def printable(text: str, keeps_lines: bool = False) -> str:
    """What a terminal would obey is spelt out: escapes, line ends, marks that turn the direction of writing.

    Args:
        keeps_lines: a line end, or a tab, stays one.
    """
    if text.isprintable():
        return text
    return _CONTROL.sub(
        lambda m: m[0] if keeps_lines and m[0] in "\n\t" else m[0].encode("unicode_escape").decode(), text
    )


def first_line(text: str) -> str:
    """The first line of a text, as a terminal takes it, cut where it is longer than a few lines there."""
    line = printable(text.partition("\n")[0])
    return line if len(line) <= _MOST_OF_LINE else f"{line[: _MOST_OF_LINE - 1]}…"


def csv_cell(text: str) -> str:
    """Without what a spreadsheet would compute: a text that begins a formula gets a quote before it."""
    text = printable(text)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def shortened(text: str, most: int = MOST) -> str:
    """A text that any file and terminal takes, without its middle where it is very long; twice is as once."""
    if len(text) <= most and len(whole := _spelt(text)) <= most:
        return whole
    half = (most - _MARK) // 2
    begin, end = _spelt(text[:half])[:half], _spelt(text[-half:])[-half:]
    return f"{begin}\n… (cut: it has {len(text)} characters) …\n{end}"


def _spelt(text: str) -> str:
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def plain(value: Any, most: int = MOST) -> Any:
    """A value of JSON's, all texts in it `shortened`."""
    if isinstance(value, str):
        return shortened(value, most)
    if isinstance(value, dict):
        return {plain(key, most): plain(one, most) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(one, most) for one in value)
    return value


def make_plain(record: object, *names: str) -> None:
    """Makes fields of a record plain, while it is made: for `__post_init__`.

    Args:
        names: of the fields with texts of others.
    """
    for name in names:
        object.__setattr__(record, name, plain(getattr(record, name)))


def message_of(error: BaseException) -> str:
    """What an error says, shortened; a user's own kind may fail to say anything."""
    try:
        return shortened(str(error))
    except Exception:
        return "(its message cannot be shown)"


def traceback_of(error: BaseException) -> str:
    """The same with where it was raised, and its causes."""
    try:
        return shortened("".join(traceback.format_exception(error)))
    except Exception as failed:
        return f"{type(error).__qualname__}: {message_of(error)}\n(no traceback: {message_of(failed)})\n"


def shown(value: object) -> str:
    """A value of a user's, as Python writes it, shortened."""
    try:
        return shortened(repr(value))
    except Exception:
        return f"<{type(value).__qualname__}>"
