"""A client's local steps in a working model, held to `torch.optim`."""

import pytest
import torch
from torch import nn

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

ROWS = [torch.tensor([0, 3, 5]), torch.tensor([1, 2, 9]), torch.tensor([4, 4, 7])]
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, lr=0.1),
}


def steps_of(data, model, optimizer="sgd"):
    step = LocalStep(FedAvg(), build_optimizer(optimizer, 0.9 if optimizer == "momentum" else 0.0))
    return LocalSteps(model, data, step, LocalWork(3, 1, None, seed=0))


def after(steps, server, batches, hyper):
    return steps.after(batches, server, steps.client_at_trial(server, 0, hyper), hyper)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_as_torch_optim(ragged, make_mlp, optimizer):
    steps, hyper = steps_of(ragged, make_mlp(1), optimizer), {"lr": 0.1}
    found = after(steps, server_state(make_mlp(1), FedAvg()), ROWS, hyper)
    theirs = make_mlp(1)
    optim = OPTIMIZERS[optimizer](theirs.parameters())
    for rows in ROWS:
        optim.zero_grad()
        nn.functional.cross_entropy(theirs(ragged.x_train[rows]), ragged.y_train[rows]).backward()
        optim.step()
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(found[name], p.detach(), rtol=0, atol=1e-13)


def test_each_client_begins_anew(ragged, make_mlp):
    steps, server, hyper = steps_of(ragged, make_mlp(1), "momentum"), server_state(make_mlp(1), FedAvg()), {"lr": 0.1}
    first = after(steps, server, ROWS, hyper)
    second = after(steps, server, ROWS, hyper)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_copy_has_its_own_model_and_no_programs(ragged, make_mlp):
    steps, server = steps_of(ragged, make_mlp(1)), server_state(make_mlp(1), FedAvg())
    copy = steps.copy()
    assert copy.recorded is None and copy.model is not steps.model
    steps.load(server)
    after(copy, server, ROWS, {"lr": 0.1})
    assert all(torch.equal(p, server.params[name]) for name, p in steps.params.items())


def test_sizes_are_those_of_all_clients_batches(ragged, make_mlp):
    assert steps_of(ragged, make_mlp(1)).all_sizes() == {3, 1}  # of 7, 3, 12 and 1 samples in threes
