"""Each model of the zoo in each form, in float64: the plain loop's numbers, or the expected sentence."""

import pytest

from .checks import QUICK, SLOW, each, hold
from .models import MODELS

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

EVERY = (*QUICK, *SLOW)
KNOWN = {
    "batch_norm_untracked": (EVERY, "the model's multiplications are counted with a single sample"),
    "Properties": (EVERY, "a copy that has lost `__slots__` is believed when it fails"),
    "TrainReturnsNothing": (EVERY, "`model.eval()` is expected to return the model"),
    "ComplexParameter": (EVERY, "the model is cast to the run's dtype, complex parameters too"),
    "scripted": (EVERY, "a script module takes no hooks that count its multiplications"),
    "GlobalState": (EVERY, "trials count, and do not see a global of the model's module"),
    "ClassCounter": (EVERY, "trials count, and do not see an attribute of the class"),
    "CountsCalls": (("fused",), "runs that part after round 0 begin with a new model's Python state"),
    "Empty": (("auto", "vmap", "vmap, plain steps", "fused"), "a parameter without elements divides by zero"),
}


@each(MODELS, KNOWN)
def test_the_numbers_are_the_plain_loops(name, form, tmp_path, monkeypatch):
    model = MODELS[name]
    kinds = {"recorded": "recorded", "vmap": "vmap", "vmap, plain steps": "vmap", "fused": "fused"}
    comes_on = kinds.get(form) in model.forms
    hold(model.case, form, tmp_path, monkeypatch, "float64", model.expect, comes_on, model.keeps)


def test_the_zoo_is_as_large_as_it_says():
    assert len(MODELS) >= 60
    assert all(model.why for model in MODELS.values())
    assert len({model.why for model in MODELS.values()}) == len(MODELS)
