import pytest
import torch

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.finetune import Finetune

from .by_hand import by_hand
from .federation import Federation, Trained
from .laws import mean_of
from .proof import Found, Law, Proof, same


def reference(f: Federation) -> Found:
    """FedAvg; a client uses what it made of the server's model in its last visit, or the last server's."""
    w, servers = f.start, []
    own = [None] * f.num_clients
    for visits in f.rounds():
        ends = []
        for visit in visits:
            model = w
            for x, y in visit.batches:
                g = f.gradient(model, lambda p, x=x, y=y: f.loss(p, x, y))
                model = {name: p - f.lr * g[name] for name, p in model.items()}
            own[visit.k] = model
            ends.append(model)
        w = mean_of(visits, ends, w)
        servers.append(w)
    return Found(servers, [w if one is None else one for one in own])


def hand() -> None:
    # the mean of 0.7 and 0.4 is 0.6, where the gradients are -4 and -2.8
    weights, server, clients = by_hand(Finetune, 2, 1)
    assert weights == pytest.approx([0.6, (2 * 1.0 + 0.88) / 3], abs=1e-12)
    own = [Finetune().personal(server.params, clients.get(k))["weight"].item() for k in (0, 1)]
    assert own == pytest.approx([1.0, 0.88], abs=1e-12)


def only_the_tuned_differ(ours: Trained, f: Federation) -> None:
    came = {v.k for visits in f.rounds() for v in visits}
    assert len(came) < f.num_clients
    for k, own in enumerate(ours.personal):
        is_servers = all(torch.equal(p, ours.servers[-1][name]) for name, p in own.items())
        assert is_servers == (k not in came)


def mean_is_the_servers(ours: Trained, f: Federation) -> None:
    (*_, visits) = f.rounds()
    same(mean_of(visits, [ours.personal[v.k] for v in visits], f.start), ours.servers[-1], "the mean", 1e-12)


PROOF = Proof(
    method=Finetune,
    numbers={},
    reference=reference,
    laws={
        "the server's model is FedAvg's": Law(same_as=FedAvg),
        "who has never taken part uses the server's": Law(
            settings={"num_rounds": 1, "proportion": 0.5}, holds=only_the_tuned_differ
        ),
        "where all take part, the server's is the mean of their own": Law(
            settings={"proportion": 1.0}, holds=mean_is_the_servers
        ),
    },
    by_hand=hand,
    paper="Wang et al., 2019",
)
