"""What every run of the zoo is held to."""

import re

import pytest
import torch

from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_rounds

from . import runs

QUICK = ["auto", "fused"]
FASTER = ["auto", "recorded", "vmap", "fused"]
SLOW = [form for form in runs.ENGINES if form not in QUICK]
TOLERANCE = {"float64": 1e-12, "float32": 1e-4}
"""Largest difference between ours and the plain loop after some 20 steps, as a share of the number where it is above 1.
float32 rounds to 6e-8, and each step's rounding is carried on and grows: what is more than rounding is 1e-3 and more.
"""


def unfixed(name, form, known):
    """The mark of a fault that is known: it must fail, so that the list cannot outlive the fault."""
    return [pytest.mark.xfail(strict=True, reason=known[name, form])] if (name, form) in known else []


def each(zoo, forms=(*QUICK, *SLOW), known=None):
    """A parameter for each entry and form. Slow is what `auto` does not take, and `fused` where runs go apart."""

    def one(name, form):
        is_quick = form == "auto" or (form == "fused" and isinstance(zoo, dict) and "fused" in zoo[name].forms)
        slow = [] if is_quick else [pytest.mark.slow]
        return pytest.param(name, form, id=f"{name}-{form}", marks=[*unfixed(name, form, known or {}), *slow])

    return pytest.mark.parametrize("name, form", [one(name, form) for name in zoo for form in forms])


def hold(case, form, folder, monkeypatch, dtype="float64", expect="exact", comes_on=False, keeps=None):
    """The form gives the plain loop's numbers, or the expected sentence, and leaves no trace.

    Args:
        comes_on: the form must be the one that ran.
        keeps: what the model keeps in Python.
    """
    if expect != "exact":
        with pytest.raises(ValueError, match=expect):
            _run(case, form, folder, monkeypatch, dtype)
        for file in folder.glob("**/rounds.jsonl"):
            assert len(read_rounds(RunPaths(file.parent))) <= 1, "refused after round 1 had begun"
        return
    plain = [runs.plain(case, dtype, **(point if form == "fused" else {})) for point in runs.POINTS]
    torch.manual_seed(1234)  # else they are where the run before has left them
    before = runs.generators()
    ours = _run(case, form, folder, monkeypatch, dtype)
    if form != "fused":  # several run as one in a worker of ours only
        assert _same_generators(before, runs.generators()), "the process's generators are not as they were"
    arrays = runs.arrays_of_case(case, dtype)
    for one, end in zip(ours, plain, strict=False):
        found = runs.differences(end, one.end)
        wrong = {part: size for part, size in found.items() if not size <= TOLERANCE[dtype]}
        assert not wrong, f"{wrong}, {one.text} {one.end.note}"
        data = one.data
        same = [(data.x_train, arrays.x), (data.y_train, arrays.y), (data.valid.x, arrays.x_valid)]
        same += [(data.test.x, arrays.x_test), (data.valid.y, arrays.y_valid), (data.test.y, arrays.y_test)]
        assert all(torch.equal(a, b.to(a.dtype)) for a, b in same), "the data have changed"
        note = one.end.note
        if comes_on:
            assert _is_on(form, one), f"{form} did not come on: {one.text} {note}"
        if keeps is not None and note.get("backend") == "loop" and not note["compiled_batch_sizes"]:
            assert keeps(one.end.model) == keeps(end.model), "trials have left a trace in the model"


def _run(case, form, folder, monkeypatch, dtype):
    if form == "fused":
        return runs.fused(case, folder, monkeypatch, dtype)
    return [runs.alone(case, folder, monkeypatch, dtype, form)]


def _is_on(form, ran):
    note = ran.end.note
    if form == "fused":
        return not ran.text
    if form == "recorded":
        return note["backend"] == "loop" and len(note["compiled_batch_sizes"]) > 0
    if form.startswith("vmap"):
        return note["backend"] == "vmap" and (form != "vmap" or note["compiled_with_masks"])
    return not any(re.match("why_not", key) for key in note) or form == "plain"


def _same_generators(before, after):
    (torch_before, numpy_before, python_before), (torch_after, numpy_after, python_after) = before, after
    same_numpy = all(
        (a == b).all() if hasattr(a, "all") else a == b for a, b in zip(numpy_before, numpy_after, strict=True)
    )
    return torch.equal(torch_before, torch_after) and same_numpy and python_before == python_after
