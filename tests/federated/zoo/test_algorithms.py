"""Each algorithm of the zoo in each form, in float64: the plain loop's numbers, or the expected sentence."""

import pytest

from .algorithms import ALGORITHMS
from .checks import each, hold

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


@each(ALGORITHMS)
def test_the_numbers_are_the_plain_loops(name, form, tmp_path, monkeypatch):
    entry = ALGORITHMS[name]
    kind = "vmap" if form.startswith("vmap") else form
    hold(entry.case, form, tmp_path, monkeypatch, "float64", entry.expect, kind in entry.forms)


def test_the_zoo_is_as_large_as_it_says():
    assert len(ALGORITHMS) >= 20
    assert len({entry.why for entry in ALGORITHMS.values()}) == len(ALGORITHMS)
