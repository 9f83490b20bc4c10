"""Methods that keep a part of the model with each client: what travels, what stays, and whose it is."""

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedbn import FedBN
from flgo_hydra.federated.algorithm.fedper import FedPer
from flgo_hydra.federated.algorithm.fedrep import FedRep
from flgo_hydra.federated.algorithm.lgfedavg import LGFedAvg
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

BODY, HEAD = {"0.weight", "0.bias", "1.weight", "1.bias"}, {"3.weight", "3.bias"}


def model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def train(data, algorithm, rounds, build=LoopBackend, num_steps=3, **numbers):
    made = model()
    step = LocalStep(algorithm, build_optimizer("momentum"))
    backend = build(made, data, step, LocalWork(-1, 1, num_steps, seed=0))
    server = first = server_state(made, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), len(data.offsets) - 1)
    sizes = np.diff(data.offsets)
    for r in range(1, rounds + 1):
        cohort = sample_cohort(sizes, 1.0, "full", "other", algorithm.weighting, np.random.default_rng(r))
        server = backend.train(server, clients, cohort, {"lr": 0.1, **numbers}, r)
    return first, server, clients


@pytest.mark.parametrize(
    "algorithm, private",
    [
        (FedPer(), HEAD),
        (FedPer("3"), HEAD),
        (FedRep(), HEAD),
        (LGFedAvg(), BODY),
        (FedBN(), {"1.weight", "1.bias"}),
    ],
)
def test_what_stays_with_the_clients_never_changes_on_the_server(ragged, algorithm, private):
    first, server, clients = train(ragged, algorithm, 2, head_share=0.5)
    assert algorithm.private == private
    for name, p in first.params.items():
        assert torch.equal(p, server.params[name]) == (name in private), name
    own = [clients.get(k)["own"] for k in (0, 1)]
    assert own[0].keys() == private and all(not torch.equal(own[0][name], own[1][name]) for name in private)
    personal = algorithm.personal(server.params, clients.get(0))
    assert all(torch.equal(p, own[0].get(name, server.params[name])) for name, p in personal.items())


@pytest.mark.parametrize("algorithm", [FedPer(), LGFedAvg(), FedBN()])
def test_a_first_round_trains_as_fedavg_does(ragged, algorithm):
    """All begin at the untrained model: what travels is FedAvg's, whatever stays."""
    _, plain, _ = train(ragged, FedAvg(), 1)
    _, server, _ = train(ragged, algorithm, 1)
    for name in plain.params.keys() - algorithm.private:
        torch.testing.assert_close(server.params[name], plain.params[name], rtol=0, atol=1e-14)


def test_fedrep_trains_its_head_first_and_then_its_body(ragged):
    """One of two steps each: the head's from the untrained model, the body's under the new head."""
    algorithm = FedRep()
    first, server, clients = train(ragged, algorithm, 1, num_steps=2, head_share=0.5)
    made = model()
    bodies = []
    for k in range(len(ragged.offsets) - 1):
        made.load_state_dict(first.params)
        x, y = ragged.client(k)
        for part in (HEAD, BODY):
            names, params = zip(*((n, p) for n, p in made.named_parameters() if n in part), strict=True)
            grads = torch.autograd.grad(ragged.mean_criterion(made(x), y), params)
            with torch.no_grad():
                for p, g in zip(params, grads, strict=True):
                    p -= 0.1 * g  # a momentum's first step
            if part is HEAD:
                own = clients.get(k)["own"]
                for name, p in zip(names, params, strict=True):
                    torch.testing.assert_close(own[name], p.detach(), rtol=0, atol=1e-14)
        bodies.append({n: p.detach().clone() for n, p in made.named_parameters() if n in BODY})
    shares = np.diff(ragged.offsets) / ragged.offsets[-1]
    for name in BODY:
        mean = sum(share * body[name] for share, body in zip(shares, bodies, strict=True))
        torch.testing.assert_close(server.params[name], mean, rtol=0, atol=1e-13)


@pytest.mark.parametrize("algorithm", [FedRep(), FedBN()])
def test_side_by_side_as_one_after_another(ragged, algorithm):
    def side_by_side(*args):
        return VmapBackend(*args, lanes=3)

    ends = [train(ragged, algorithm, 3, build, head_share=0.4) for build in (LoopBackend, side_by_side)]
    for name, p in ends[0][1].params.items():
        torch.testing.assert_close(ends[1][1].params[name], p, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "algorithm, made, message",
    [
        (FedPer("head"), model(), "The head is `algorithm.head=head` of the model, which it has not"),
        (FedPer(), nn.Linear(3, 2), "The head is the last linear layer of the model, which it has not"),
        (FedPer("0"), nn.Sequential(nn.Linear(3, 2)), "which is all that it trains"),
        (FedPer(), nn.Sequential(nn.Conv2d(1, 1, 3)), "the last linear layer of the model, which it has not"),
        (FedBN(), nn.Sequential(nn.Linear(3, 2)), "the model has none to train"),
    ],
)
def test_models_that_lack_what_a_method_keeps(algorithm, made, message):
    with pytest.raises(Refused, match=message):
        algorithm.bind(made)
