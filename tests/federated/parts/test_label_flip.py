"""Wrong labels."""

import numpy as np
import pytest

from flgo_hydra.federated.parts.label_flip import LabelFlip
from flgo_hydra.federated.refused import Refused


def test_classes_are_mirrored():
    x, y = LabelFlip().data(np.ones((3, 2)), np.array([0, 4, 9]), 10)
    assert y.tolist() == [9, 5, 0] and x.shape == (3, 2)


def test_a_regression_has_none():
    with pytest.raises(Refused, match="the task is a regression"):
        LabelFlip().data(np.ones((3, 2)), np.ones((3, 1)), None)
