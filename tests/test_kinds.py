from enum import Enum
from pathlib import Path
from typing import Any, Optional, Union

import pytest

from flgo_hydra.config.option import EngineConf
from flgo_hydra.kinds import Written, in_words, is_open, no_keys_below, wrong_item, wrong_type


class _Colour(Enum):
    RED = 1
    BLUE = 2


@pytest.mark.parametrize(
    "kind, words",
    [
        (int, "a whole number"),
        (float, "a number"),
        (bool, "true or false"),
        (str, "a text"),
        (Path, "a path"),
        (Optional[int], "a whole number or null"),  # noqa: UP045  # OmegaConf's own hints
        (int | None, "a whole number or null"),
        (Union[int, float], "a number"),  # noqa: UP007
        (int | str, "a whole number or a text"),
        (list[int], "a list of whole numbers"),
        (list[Any], "a list"),
        (dict[str, Any], "keys with values, {key: value}"),
        (_Colour, "one of RED, BLUE"),
        (EngineConf, "keys with values (backend, compile, dual, graph)"),
        (Any, ""),
        (int | Any, ""),
    ],
)
def test_in_words(kind: Any, words: str) -> None:
    assert in_words(kind) == words


def test_sentences() -> None:
    assert (
        wrong_type("a.b", "how many", int, True, "x")
        == "`a.b` (how many) must be a whole number, or null, but got 'x'."
    )
    assert wrong_type("a", "", int, False, 3.0) == "`a` must be a whole number, but got 3.0. Write 3."
    assert wrong_type("a", "", int, False, None) == "`a` must be a whole number, but got null."
    assert wrong_type("a", "", list[int], False, Written("{b: 1}")).endswith("but got {b: 1}.")
    assert wrong_item("a", "", list[float], "[1]", "x") == "`a` must be a list of numbers, but got 'x' at [1]."
    assert "There is no `a.b`: `a` must be a text, and has no keys below it." in no_keys_below(
        "a", "", str, False, "a.b"
    )


def test_is_open() -> None:
    assert is_open(dict[str, int]) and not is_open(EngineConf) and not is_open(list[int])
