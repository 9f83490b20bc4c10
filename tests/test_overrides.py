"""Python values survive Hydra's grammar."""

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from flgo_hydra.overrides import as_text, override

VALUES = [
    None, True, False, 0, -1, 0.1, 1e-30, 1e30, "fedavg", "./mnist_iid", "true", "Null", "1e-3", "", "a b", "it's",
    'say "x"', "back\\slash", "ends in \\", "\\'", "a,b", "${x", "ü", "naïve", "[1]",
    [1, "a b", [None]], {"a": 1, "b_c": [0.5, "d e"]},
    [["lr=0.1", "task.path='my data'"]],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_written_is_read_again(value):
    parsed = OverridesParser.create().parse_overrides([override("key", value)])[0]
    assert not parsed.is_sweep_override()
    assert _plain(parsed.value()) == value and type(_plain(parsed.value())) is type(value)


def _plain(value):
    """Without the parser's own kinds of text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return getattr(value, "text", value)


def test_numbers_of_numpy_are_numbers():
    assert as_text(np.float64(0.5)) == "0.5" and as_text(np.int64(3)) == "3" and as_text(np.array([1, 2])) == "[1,2]"


def test_what_no_config_holds_is_refused():
    with pytest.raises(ValueError, match="cannot hold .* a object"):
        as_text(object())
    with pytest.raises(ValueError, match="A key of a config is a word of letters, digits and _, but got 'a b'"):
        as_text({"a b": 1})
