"""A federation small enough to compute by hand: two clients, three samples, the model y = w x."""

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.federated.data.on_device import Data, to_data
from flgo_hydra.federated.data.task import Task

CPU = torch.device("cpu")


def by_hand_task() -> Task:
    """Client 0 holds (1, 1) and (2, 3), client 1 holds (1, 2); squared error."""
    x = np.array([[1.0], [2.0], [1.0]], np.float32)
    y = np.array([[1.0], [3.0], [2.0]], np.float32)
    return Task(
        name="by_hand",
        x_train=x,
        y_train=y,
        train_offsets=np.array([0, 2, 3]),
        x_valid=x[:2],
        y_valid=y[:2],
        valid_offsets=np.array([0, 1, 2]),
        x_test=x,
        y_test=y,
        num_classes=None,
    )


def ragged_task(sizes: tuple[int, ...] = (7, 3, 12, 1), num_classes: int = 3, seed: int = 0) -> Task:
    """Clients of different sizes with random samples of 5 features."""
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    x = rng.normal(size=(total + 8, 5)).astype(np.float32)
    y = rng.integers(0, num_classes, total + 8)
    return Task(
        name="ragged",
        x_train=x[:total],
        y_train=y[:total],
        train_offsets=np.cumsum([0, *sizes]),
        x_valid=x[total : total + 4],
        y_valid=y[total : total + 4],
        valid_offsets=np.array([0, 1, 2, *[4] * len(sizes)][: len(sizes)] + [4]),  # from the fourth on they have none
        x_test=x[total + 4 :],
        y_test=y[total + 4 :],
        num_classes=num_classes,
    )


def line() -> nn.Module:
    """y = w x, with w = 0 at first."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model.double()


def small_mlp(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.fixture
def by_hand() -> Data:
    return to_data(by_hand_task(), CPU, torch.float64)


@pytest.fixture
def ragged() -> Data:
    return to_data(ragged_task(), CPU, torch.float64)


@pytest.fixture
def make_line():
    return line


@pytest.fixture
def make_mlp():
    return small_mlp


@pytest.fixture
def make_ragged_task():
    return ragged_task
