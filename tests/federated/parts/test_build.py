"""Parts from a config."""

import pytest

from flgo_hydra.federated.parts.base import Transport
from flgo_hydra.federated.parts.build import build_parts, of_part

HERE = "flgo_hydra.federated.parts"
TOP = {"_target_": f"{HERE}.top_k.TopK", "share": 0.3}
FLIP = {"_target_": f"{HERE}.sign_flip.SignFlip", "scale": 2.0}
MEDIAN = {"_target_": f"{HERE}.median.Median"}


class Named(Transport):
    def __init__(self, entry):
        self.entry = entry


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
        ({"a": FLIP}, "`0 <= parts.a.share <= 1`, the share of hostile clients, must hold, but got None"),
        ({"a": {**FLIP, "share": 1.5}}, "must hold, but got 1.5"),
        ({"a": MEDIAN, "b": MEDIAN}, "`parts.a` and `parts.b`: only one of them makes one message of all"),
    ],
)
def test_what_is_no_part(config, message):
    with pytest.raises(ValueError, match=message):
        build_parts(config)
