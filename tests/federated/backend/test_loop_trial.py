"""Recorded steps are used only where they do what plain steps do."""

import pytest
import torch
from torch import nn

from flgo_hydra.config.option import AUTO
from flgo_hydra.federated.algorithm.ditto import Ditto
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend.cannot import Cannot
from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.backend.loop_trial import record_alike
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state


class Counting(nn.Module):
    """Does something else each time."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(5, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * self.calls


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


def record(data, model, algorithm, **numbers):
    ours = LocalSteps(model, data, LocalStep(algorithm, build_optimizer("sgd")), LocalWork(3, 1, None, seed=0))
    server = server_state(model, algorithm)
    with torch.random.fork_rng():
        record_alike(ours, ours.copy(), [3], server, {"lr": 0.1, **numbers}, AUTO)
    return ours


@pytest.mark.parametrize("algorithm, numbers", [(FedAvg(), {}), (Ditto(), {"lam": 0.5})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_programs_that_do_what_plain_steps_do(ragged, make_ragged_task, make_mlp, algorithm, numbers, dtype):
    from flgo_hydra.federated.data.on_device import to_data

    data = to_data(make_ragged_task(), torch.device("cpu"), dtype)
    ours = record(data, make_mlp(2).to(dtype), algorithm, **numbers)
    assert ours.recorded is not None and ours.recorded.sizes == [3]


@pytest.mark.parametrize("model", [Counting(), Branching()])
def test_what_a_recording_does_not_repeat_is_found(ragged, model):
    with pytest.raises(Cannot):
        record(ragged, model.double(), FedAvg())
