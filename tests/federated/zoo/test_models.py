"""Each model of the zoo in each form, in float64: the plain loop's numbers, or the expected sentence."""

import pytest

from . import hidden  # noqa: F401 - into the zoo
from .checks import each, hold
from .models import MODELS

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # torch's, of vmap
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),  # torch's, in any loop
]
_DISK = "runs that go apart follow one another, and files that one has written are there for the next"
KNOWN = {(name, "fused"): _DISK for name in ("ByFile", "ByDatabase", "ByFolder")}


@each(MODELS, known=KNOWN)
@pytest.mark.few(10)
def test_the_numbers_are_the_plain_loops(name, form, tmp_path, monkeypatch):
    model = MODELS[name]
    kinds = {"recorded": "recorded", "vmap": "vmap", "vmap, plain steps": "vmap", "fused": "fused"}
    comes_on = kinds.get(form) in model.forms
    hold(model.case, form, tmp_path, monkeypatch, "float64", model.expect, comes_on, model.keeps)


def test_the_zoo_is_as_large_as_it_says():
    assert len(MODELS) >= 60
    assert all(model.why for model in MODELS.values())
    assert len({model.why for model in MODELS.values()}) == len(MODELS)
