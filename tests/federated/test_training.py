"""What a cohort's training does beyond the algorithm: buffers, frozen parameters, noise."""

import numpy as np
import torch
from torch import nn

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state


def one_round(data, model, aggregate="other", seed=0):
    backend = LoopBackend(model, data, LocalStep(FedAvg(), build_optimizer("sgd")), LocalWork(-1, 1, 1, seed))
    server = server_state(model, FedAvg())
    sizes = np.diff(data.offsets)
    cohort = sample_cohort(sizes, 1.0, "full", aggregate, "samples", np.random.default_rng(0))
    return server, backend.train(server, ClientStates({}, len(sizes)), cohort, {"lr": 0.1}, 1)


def test_running_statistics_are_averaged_and_counters_stay_whole(ragged):
    """One full-batch step a client moves the running mean to 0.1 times the client's mean."""
    data = ragged
    # the last client has one sample, of which there is no variance
    data = type(data)(data.x_train[:22], data.y_train[:22], data.offsets[:4], data.valid, data.test, True)
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    _, after = one_round(data, model)
    means = torch.stack([data.client(k)[0].mean(0) for k in range(3)])
    weights = torch.tensor([7, 3, 12], dtype=torch.float64) / 22
    torch.testing.assert_close(after.buffers["0.running_mean"], 0.1 * weights @ means, rtol=0, atol=1e-12)
    assert after.buffers["0.num_batches_tracked"].dtype == torch.int64
    assert after.buffers["0.num_batches_tracked"].item() == 1


def test_frozen_parameters_stay_and_are_part_of_the_model(ragged, make_mlp):
    model = make_mlp()
    model[0].weight.requires_grad_(False)
    before, after = one_round(ragged, model)
    assert set(before.params) == {"0.bias", "2.weight", "2.bias"}
    # The mean over clients of what nobody changes is itself, to rounding.
    torch.testing.assert_close(after.buffers["0.weight"], before.buffers["0.weight"], rtol=0, atol=1e-12)
    assert not torch.equal(after.params["0.bias"], before.params["0.bias"])


def test_a_parameter_that_is_not_used_keeps_its_value(ragged):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            return self.used(x)

    model = Unused().double()
    before, after = one_round(ragged, model)
    torch.testing.assert_close(after.params["idle.weight"], before.params["idle.weight"], rtol=0, atol=1e-12)


def test_dropout_depends_on_the_address_and_not_on_what_was_drawn_before(ragged):
    def build():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()

    _, first = one_round(ragged, build())
    torch.rand(7)
    _, again = one_round(ragged, build())
    _, other = one_round(ragged, build(), seed=1)
    assert torch.equal(first.params["0.weight"], again.params["0.weight"])
    assert not torch.equal(first.params["0.weight"], other.params["0.weight"])


def test_the_servers_state_is_not_the_working_model(ragged, make_mlp):
    """The model one evaluates may change; the state a checkpoint keeps must not follow."""
    model = make_mlp()
    before, after = one_round(ragged, model)
    kept = after.params["0.weight"].clone()
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(after.params["0.weight"], kept)
    assert not torch.equal(before.params["0.weight"], kept)
