"""What is read back from a folder is right, or a defect that says what is wrong and where."""

import dataclasses
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flgo_hydra.record.schema import Defect, made_of, parse_object, parse_rounds, read_bytes

GOOD = b'{"round": 0, "valid_loss": 2.5}\n{"round": 2, "valid_loss": null}\n'
PATH = Path("rounds.jsonl")


def rounds_of(content: bytes) -> list[dict[str, float]]:
    return list(parse_rounds(PATH, content))


def test_rounds_come_back_in_order_with_nan_for_null():
    first, second = rounds_of(GOOD)
    assert first == {"round": 0, "valid_loss": 2.5}
    assert second["round"] == 2 and math.isnan(second["valid_loss"])


@pytest.mark.parametrize("end", [b"", b'{"round": 3, "va', b"\0\0\0\0", b"{", b"\xff\xfe"])
def test_a_last_line_that_was_torn_off_is_left_out(end):
    assert len(rounds_of(GOOD + end)) == 2


def test_a_last_line_without_its_end_counts_if_it_is_whole():
    assert len(rounds_of(GOOD + b'{"round": 3}')) == 3


@pytest.mark.parametrize(
    "line, why",
    [
        (b'{"kind": "end"}', "`kind` is a text, not a number"),
        (b'{"valid_loss": 1.0}', "has no round"),
        (b'{"round": "3"}', "`round` is a text, not a number"),
        (b'{"round": true}', "`round` is true, not a number"),
        (b'{"round": 3.5}', "has no round"),
        (b'{"round": -1}', "has no round"),
        (b'{"round": null}', "has no round"),
        (b'{"round": 2}', "has round 2 after round 2"),
        (b'{"round": 1}', "has round 1 after round 2"),
        (b"[1]", "is a list, not an object"),
        (b"3", "is a number, not an object"),
        (b"", "is no JSON"),
        (b'{"round": 3, "va', "is no JSON"),
        (b"\0\0\0", "is no JSON"),
        (b"\xff", "is no JSON"),
        (b'{"round": 1e400}', "`round` is no number that a file of ours can hold"),
        (b'{"round": 3, "valid_loss": 1e400}', "`valid_loss` is no number"),
        (b'{"round": 3, "valid_loss": NaN}', "is no JSON"),
        (b'{"round": 3, "valid_loss": -Infinity}', "is no JSON"),
        (b'{"round": 3, "valid_loss": [1.0]}', "`valid_loss` is a list, not a number"),
        (b'{"round": 3, "valid_loss": {}}', "`valid_loss` is an object, not a number"),
        (b'{"round": ' + b"9" * 30 + b"}", "`round` is no number"),
        (b'{"round": ' + b"9" * 5000 + b"}", "is no JSON"),
        (b"[" * 100_000, "is nested too deeply|is no JSON"),
    ],
)
def test_a_line_that_is_none_of_ours_is_named(line, why):
    with pytest.raises(Defect, match=f"^rounds.jsonl .line 3. ({why})") as defect:
        rounds_of(GOOD + line + b"\n" + b'{"round": 9}\n')
    assert defect.value.path == PATH and "\n" not in str(defect.value)


@dataclasses.dataclass
class Inner:
    name: str
    is_on: bool = False


@dataclasses.dataclass
class Outer:
    count: int
    share: float
    best: dict[str, float]
    inner: Inner
    memory: float | None = None
    texts: list[str] = dataclasses.field(default_factory=list)
    rest: dict[str, Any] = dataclasses.field(default_factory=dict)


OUTER: dict[str, Any] = {"count": 1, "share": 0.5, "best": {"a": 1.5}, "inner": {"name": "x"}}


def test_an_object_has_its_types():
    made = made_of(PATH, Outer, {**OUTER, "unknown": 1, "best": {"a": None, "b": 2}, "rest": {"deep": [1, "x", None]}})
    assert made.count == 1 and math.isnan(made.best["a"]) and made.best["b"] == 2 and made.inner == Inner("x")
    assert made.rest == {"deep": [1, "x", None]}


@pytest.mark.parametrize(
    "change, why",
    [
        ({"count": 1.5}, "`count` is a number, not a whole number"),
        ({"count": True}, "`count` is true, not a whole number"),
        ({"count": 2**80}, "`count` is no number"),
        ({"count": None}, "`count` is null, not a whole number"),
        ({"share": "0.5"}, "`share` is a text, not a number"),
        ({"share": math.inf}, "`share` is no number"),
        ({"best": [1.0]}, "`best` is a list, not an object"),
        ({"best": {"a": "1"}}, "`best`, `a` is a text, not a number"),
        ({"inner": "x"}, "`inner` is a text, not an object"),
        ({"inner": {}}, "has no `name`"),
        ({"inner": {"name": "x", "is_on": 1}}, "`is_on` is a number, not true or false"),
        ({"memory": "much"}, "`memory` is a text, not a number"),
        ({"texts": "one"}, "`texts` is a text, not a list"),
        ({"texts": [1]}, "`texts` is a number, not a text"),
        ({"rest": {"deep": [math.inf]}}, "`rest`, `deep` is no number"),
    ],
)
def test_a_value_of_another_type_is_named(change, why):
    with pytest.raises(Defect, match=f"^rounds.jsonl {why}"):
        made_of(PATH, Outer, {**OUTER, **change})


def test_a_value_that_is_missing_is_named():
    with pytest.raises(Defect, match="^rounds.jsonl has no `share`$"):
        made_of(PATH, Outer, {key: value for key, value in OUTER.items() if key != "share"})


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": NaN}', b'"x"', b"{}{}"])
def test_what_is_no_object(text):
    with pytest.raises(Defect):
        parse_object(PATH, text)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    "make, why",
    [
        (Path.mkdir, "is a folder"),
        (fifo, "is no plain file"),
        (lambda path: path.symlink_to("nowhere"), "is a link to a file that is not there"),
        (loop, "cannot be read: Too many levels"),
        (lambda path: path.symlink_to("/dev/zero"), "is no plain file"),
        (lambda path: path.symlink_to("/"), "is a folder"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**40), "has 1099511627776 bytes"),
    ],
)
def test_what_is_no_file_of_ours_is_neither_read_nor_waited_for(tmp_path: Path, make: Callable[[Path], object], why):
    make(tmp_path / "result.json")
    signal.alarm(20)  # a pipe is opened when somebody writes to it: never
    try:
        with pytest.raises(Defect, match=f"result.json {why}"):
            read_bytes(tmp_path / "result.json")
    finally:
        signal.alarm(0)


def test_no_file_is_no_defect(tmp_path: Path):
    assert read_bytes(tmp_path / "result.json") is None
    (tmp_path / "file").touch()
    assert read_bytes(tmp_path / "file" / "result.json") is None
    (tmp_path / "kept").write_text(json.dumps({"a": 1}))
    (tmp_path / "link").symlink_to("kept")  # as git-annex leaves them
    assert read_bytes(tmp_path / "link") == b'{"a": 1}'
