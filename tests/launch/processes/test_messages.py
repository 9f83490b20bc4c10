"""No message of a job harms the sweep that hears it: wrong values are dropped, long texts are cut."""

import json

import pytest

from flgo_hydra.launch.processes.messages import parse
from flgo_hydra.record.plain_text import MOST

ROUND = {"kind": "round", "round": 3, "num_rounds": 9, "best": 0.5, "metrics": {"valid_loss": 0.5}}


def heard(**values):
    return parse(json.dumps(values).encode())


def test_what_is_right_stays():
    assert heard(**ROUND) == ROUND
    memory = {"kind": "memory", "memory_mib": 12.5, "context_mib": 0}
    assert heard(**memory) == memory
    assert heard(kind="mine", text="a\nb", memory_mib=-1) == {"kind": "mine", "text": "a\nb", "memory_mib": -1}


@pytest.mark.parametrize("wrong", [float("inf"), float("nan"), -1, 1e300, 10**40, "12", True, None, [], {}])
@pytest.mark.parametrize("key", ["memory_mib", "context_mib"])
def test_memory_is_a_number_of_a_machine(key, wrong):
    assert heard(**{"kind": "memory", key: wrong}) == {"kind": "memory"}


@pytest.mark.parametrize(
    "key, wrong",
    [
        *[(key, wrong) for key in ("round", "num_rounds", "best_round") for wrong in (-1, 1.5, 10**40, "1", True)],
        *[("metrics", wrong) for wrong in ([], "x", {"valid_loss": "low"}, {"valid_loss": 10**40}, {"a": {}})],
        ("best", "low"),
        ("monitor", "valid_loss"),
    ],
)
def test_a_round_has_numbers(key, wrong):
    told = heard(**{**ROUND, key: wrong})
    assert told == {name: value for name, value in ROUND.items() if name != key}


def test_a_loss_that_is_not_finite_is_told():
    line = b'{"kind": "round", "round": 1, "best": Infinity, "metrics": {"valid_loss": NaN}}'
    assert repr(parse(line)["metrics"]["valid_loss"]) == "nan"


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b"1", b'{"kind": 1}', b'{"kind": "end"}', b'{"kind": "end", "status": 1}']
)
def test_what_is_no_message(line):
    assert parse(line) is None


def test_deep_nesting_is_no_message():
    assert parse(b"[" * 200_000) is None


def test_an_error_is_cut_and_spelt_out():
    error = {
        "type": 3,
        "message": "m" * 10**6 + "\udc80",
        "traceback": ["x"],
        "chain": [["a", "b" * 10**6], "c", ["d"]],
    }
    told = heard(kind="end", status="failed", error=error)["error"]
    assert told["type"] == "3" and len(told["message"]) <= MOST and "characters) …" in told["message"]
    assert told["message"].encode().endswith(b"\\udc80") and told["traceback"] == "['x']"
    assert [name for name, _ in told["chain"]] == ["a"] and len(told["chain"][0][1]) <= MOST
    assert heard(kind="end", status="failed", error="text")["error"] is None


def test_texts_are_plain_whatever_says_them():
    assert heard(kind="mine", text="\udc80", more=["\ud800", {"a": "x" * 10**6}])["text"] == "\\udc80"
    assert heard(**{**ROUND, "metrics": {"m\udc80": 0.5}})["metrics"] == {"m\\udc80": 0.5}
    why = heard(kind="end", status="apart", why="w" * 10**6 + "\udc80")["why"]  # into an environment
    assert len(why) <= 2000 and why.endswith("\\udc80")
