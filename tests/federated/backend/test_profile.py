"""What a local step computes, counted by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.federated.backend.profile import take_profile
from flgo_hydra.federated.data.on_device import Data, HeldOut
from flgo_hydra.federated.model import cnn, mlp


def data_of(shape):
    x, y = torch.rand(12, *shape), torch.arange(12) % 10
    held = HeldOut(x[:2], y[:2], torch.full((2,), 0.5, dtype=torch.float64))
    return Data(x, y, [0, 12], held, held, is_classification=True)


def test_products_of_dense_layers():
    """Forward and the weights' gradient of both layers, and the hidden layer's gradient."""
    amount = take_profile(mlp((784,), 10, [200]), data_of((784,))).at(10)
    assert amount.dense == 10 * (2 * 784 * 200 + 3 * 200 * 10)
    assert (amount.convs, amount.conv, amount.layers) == (0, 0, 0)


def test_products_of_convolutions():
    amount = take_profile(cnn((1, 28, 28), 10, [32, 64], 512), data_of((1, 28, 28))).at(10)
    first, second = 28 * 28 * 32 * 25, 14 * 14 * 64 * 32 * 25
    assert amount.conv == 10 * (2 * first + 3 * second)  # nobody asks for the samples' gradient
    assert amount.dense == 10 * 3 * (3136 * 512 + 5120)
    assert (amount.convs, amount.layers) == (5, 4)  # two pools, both ways


def test_work_is_a_number_a_step_and_a_number_a_sample():
    profile = take_profile(nn.Sequential(nn.Flatten(), nn.Linear(8, 10), nn.BatchNorm1d(10)), data_of((8,)))
    assert profile.at(20).ops == profile.at(2).ops > 0
    small, large, larger = (profile.at(batch).bytes for batch in (10, 20, 30))
    assert larger - large == pytest.approx(large - small) and large > small
    assert not profile.is_random
    assert take_profile(nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(8, 10)), data_of((8,))).is_random


def test_a_model_of_few_samples_and_of_none_that_vary():
    assert np.isfinite(take_profile(nn.Linear(8, 10), data_of((8,))).at(1).bytes)
