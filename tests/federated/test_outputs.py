"""The one form of a model's outputs, and the one sentence about others."""

import pytest
import torch

from flgo_hydra.federated.outputs import hold_form

LABELS, TARGETS, PAIRS = torch.tensor([0, 2, 1]), torch.ones(3, 1), torch.ones(3, 2)


@pytest.mark.parametrize(
    "outputs, targets",
    [
        (torch.ones(3, 3), LABELS),
        (torch.ones(3, 5), LABELS),  # more than there are classes
        (torch.full((3, 3), torch.nan), LABELS),  # a matter of training
        (torch.ones(3, 3, dtype=torch.bfloat16), LABELS),
        (torch.ones(3, 1), TARGETS),
        (torch.ones(3, 2), PAIRS),
    ],
)
def test_what_fits(outputs, targets):
    hold_form(outputs, targets, 3)


@pytest.mark.parametrize(
    "outputs, targets, words",
    [
        (torch.ones(3), TARGETS, ["(3, 1)", "float32 of shape (3,)", "reshape(len(x), 1)"]),
        (torch.ones(3, 1, 1), TARGETS, ["shape (3, 1, 1)", "reshape(len(x), 1)"]),
        (torch.ones(1, 1), TARGETS, ["shape (1, 1)", "num_outputs"]),
        (torch.ones(()), TARGETS, ["shape ()"]),
        (torch.ones(3, 3), TARGETS, ["shape (3, 3)", "should have 1 outputs"]),
        (torch.ones(3, 1), PAIRS, ["(3, 2)", "shape (3, 1)"]),
        (torch.ones(3, 1, dtype=torch.int64), TARGETS, ["int64", "argmax"]),
        (torch.ones(3, 1, dtype=torch.complex64), TARGETS, ["complex64", "real"]),
        ((torch.ones(3, 3), torch.ones(3)), LABELS, ["(3, 3)", "a tuple of 2", "the tensor alone"]),
        ({"logits": torch.ones(3, 3)}, LABELS, ["a dict with 'logits'"]),
        (None, LABELS, ["None"]),
        (torch.ones(3, 1, 3), LABELS, ["shape (3, 1, 3)", "reshape(len(x), 3)"]),
        (torch.ones(3, 2), LABELS, ["shape (3, 2)", "should have 3 outputs"]),
        (torch.ones(3), LABELS, ["shape (3,)"]),
        (torch.ones(1, 3), LABELS, ["shape (1, 3)"]),
        (torch.ones(3, 3, dtype=torch.int64), LABELS, ["int64"]),
        (torch.ones(3, 3, dtype=torch.bool), LABELS, ["bool"]),
    ],
)
def test_what_does_not(outputs, targets, words):
    with pytest.raises(ValueError, match="The model must return a floating-point tensor") as error:
        hold_form(outputs, targets, 3)
    assert all(word in str(error.value) for word in ["for a batch of 3 samples", *words]), error.value
