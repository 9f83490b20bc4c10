"""What a terminal would obey and a spreadsheet compute is spelt out; the rest stays."""

import pytest

from flgo_hydra.record.plain_text import (
    MOST,
    csv_cell,
    first_line,
    message_of,
    plain,
    printable,
    shortened,
    traceback_of,
)


@pytest.mark.parametrize(
    "text, plain",
    [
        ("lr=0.1", "lr=0.1"),
        ("größer → 木", "größer → 木"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp", "\\u202egnp"),
        ("\0", "\\x00"),
        ("half \udc80", "half \\udc80"),
    ],
)
def test_what_a_terminal_would_obey(text, plain):
    assert printable(text) == plain and "\n" not in plain


def test_lines_may_stay():
    assert printable("a\n\tb\x1b\r", keeps_lines=True) == "a\n\tb\\x1b\\r"


@pytest.mark.parametrize("text", ["=1+1", "=cmd|' /C calc'!A0", "@SUM(A1)", "+HYPERLINK(1)", "-cmd|x", "=x\n"])
def test_what_a_spreadsheet_would_compute(text):
    assert csv_cell(text).startswith("'")


@pytest.mark.parametrize("text", ["0.1", "-1e-05", "+3", "-inf", "+model.extra", "fedavg", "[1, 2]", "", "-", "a=1"])
def test_what_it_would_not(text):
    assert csv_cell(text) == text


@pytest.mark.parametrize("text", ["x" * (MOST + 1), "\udc80" * 20_000, "木" * 10**6, "a" + "\ud800b" * 10**6])
def test_a_long_text_keeps_its_beginning_and_its_end(text):
    cut = shortened(text)
    spelt = text.encode(errors="backslashreplace").decode()
    assert len(cut) <= MOST and cut[:30_000] == spelt[:30_000] and cut[-30_000:] == spelt[-30_000:]
    assert " characters) …" in cut and shortened(cut) == cut


def test_a_text_of_the_most_characters_stays():
    assert shortened("ö" * MOST) == "ö" * MOST


def test_texts_within_a_value():
    value = {"a\udc80": ["b\ud800", 1, None, ("c", 2.5)], "d": "e" * 10**6}
    made = plain(value)
    assert made["a\\udc80"] == ["b\\ud800", 1, None, ("c", 2.5)] and len(made["d"]) <= MOST


def test_an_error_that_cannot_be_shown():
    class Odd(Exception):
        def __str__(self):
            raise RuntimeError("no")

    assert message_of(Odd()) == "(its message cannot be shown)" and "Odd" in traceback_of(Odd())
    assert message_of(ValueError("\udc80")) == "\\udc80" and traceback_of(ValueError("\udc80")).endswith("\\udc80\n")


def test_one_line_for_a_terminal():
    assert first_line("a\x1b\nb") == "a\\x1b" and len(first_line("x" * 10**6)) == 500
