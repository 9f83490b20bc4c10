"""Text from a config, a metric's name or an error, as it may stand in a terminal, a table or a spreadsheet."""

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
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


def csv_cell(text: str) -> str:
    """Without what a spreadsheet would compute: a text that begins a formula gets a quote before it."""
    text = printable(text)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def shortened(text: str, most: int = 100_000) -> str:
    """A text that any file and terminal takes, without its middle where it is very long."""
    plain = text.encode(errors="backslashreplace").decode()
    if len(plain) <= most:
        return plain
    return f"{plain[: most // 2]}\n… ({len(plain) - most} characters left out) …\n{plain[-(most // 2) :]}"
