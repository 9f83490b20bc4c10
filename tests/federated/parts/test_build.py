"""Parts from a config."""

import pytest

from flgo_hydra.federated.parts.base import Hostile, Transport
from flgo_hydra.federated.parts.build import build_parts, of_part

HERE = "flgo_hydra.federated.parts"
TOP = {"_target_": f"{HERE}.top_k.TopK", "share": 0.3}
FLIP = {"_target_": f"{HERE}.sign_flip.SignFlip", "scale": 2.0}
MEDIAN = {"_target_": f"{HERE}.median.Median"}


class Named(Transport):
    def __init__(self, entry):
        self.entry = entry


class Own(Hostile):
    """Says nothing of its numbers, but each has a share."""


def test_numbers_come_with_each_call_and_the_rest_goes_to_the_constructor():
    parts, numbers = build_parts({"a": {"_target_": f"{__name__}.Named", "entry": "x", "k": 2}, "b": TOP})
    assert [name for name, _ in parts] == ["a", "b"] and parts[0].part.entry == "x"
    assert numbers == {"parts.a.k": 2, "parts.b.share": 0.3}
    assert of_part("a", {**numbers, "lr": 0.1}) == {"k": 2} and of_part("b", numbers) == {"share": 0.3}


@pytest.mark.parametrize(
    "config, message",
    [
        ({"a": {"_target_": f"{HERE}.top_k.Top"}}, r"`parts.a._target_=.*top_k.Top`: the module .* has no 'Top'"),
        ({"a": {"_target_": f"{HERE}.build.Named"}}, "must be a subclass of one of Selection, Hostile, Transport, Ser"),
        ({"a": {**TOP, "name": "x"}}, r"`parts.a`: TopK\(\) cannot be called|`parts.a`: TopK"),
        ({"a": FLIP}, r"`parts.a.share` must be given, a number of SignFlip: `\+parts.a.share=…`"),
        ({"a": {**FLIP, "share": 1.5}}, "`0 <= parts.a.share <= 1` must hold, but got 1.5"),
        ({"a": {**TOP, "share": 7}}, "`0 <= parts.a.share <= 1` must hold, but got 7"),
        ({"a": {**TOP, "shares": 0.1}}, "There is no `parts.a.shares`: TopK has share"),
        ({"a": {**MEDIAN, "share": 0.1}}, "There is no `parts.a.share`: Median has no numbers"),
        (
            {"a": {"_target_": f"{__name__}.Own", "share": 3}},
            "`0 <= parts.a.share <= 1`, the share of hostile clients, must hold, but got 3",
        ),
        ({"a": MEDIAN, "b": MEDIAN}, "`parts.a` and `parts.b`: only one of them makes one message of all"),
    ],
)
def test_what_is_no_part(config, message):
    with pytest.raises(ValueError, match=message):
        build_parts(config)
