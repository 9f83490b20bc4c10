"""What a terminal would obey and a spreadsheet compute is spelt out; the rest stays."""

import pytest

from flgo_hydra.record.plain_text import csv_cell, printable


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
