import pytest
import torch

from flgo_hydra.federated.algorithm.fedavg import FedAvg

from .by_hand import by_hand
from .federation import Federation, Trained
from .proof import Found, Law, Proof, same


def reference(f: Federation) -> Found:
    """McMahan et al., AISTATS 2017, Algorithm 1."""
    w, servers = f.start, []
    for visits in f.rounds():
        mean = {name: 0.0 * p for name, p in w.items()}
        for visit in visits:
            own = w
            for x, y in visit.batches:
                g = f.gradient(own, lambda p, x=x, y=y: f.loss(p, x, y))
                own = {name: p - f.lr * g[name] for name, p in own.items()}
            mean = {name: m + visit.weight * own[name] for name, m in mean.items()}
        w = mean
        servers.append(w)
    return Found(servers)


def hand() -> None:
    # round 1: the clients come to 0.7 and 0.4; round 2, from 0.6: gradients -4 and -2.8, to 1 and 0.88
    weights, _, _ = by_hand(FedAvg, 2, 1)
    assert weights == pytest.approx([(2 * 0.7 + 0.4) / 3, (2 * 1.0 + 0.88) / 3], abs=1e-12)


def is_centralized(ours: Trained, f: Federation) -> None:
    """With one step a round, on all samples of all clients, a round is a step of gradient descent on them together."""
    x, y = (torch.cat([f.client(k)[part] for k in range(f.num_clients)]) for part in (0, 1))
    w = f.start
    for mine in ours.servers:
        g = f.gradient(w, lambda p: f.loss(p, x, y))
        w = {name: p - f.lr * g[name] for name, p in w.items()}
        same(mine, w, "server", 1e-12)


def is_sgd(ours: Trained, f: Federation) -> None:
    """The server's model is the one client's, trained by `torch.optim` without a break."""
    model = f.built()
    sgd = torch.optim.SGD(model.parameters(), lr=f.lr)
    for mine, visits in zip(ours.servers, f.rounds(), strict=True):
        for x, y in visits[0].batches:
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            sgd.step()
        same(mine, {name: p.detach() for name, p in model.named_parameters()}, "server", 1e-12)


PROOF = Proof(
    method=FedAvg,
    numbers={},
    reference=reference,
    laws={
        "one full step a round is gradient descent on all samples": Law(
            settings={"batch_size": -1, "num_steps": 1, "proportion": 1.0}, holds=is_centralized
        ),
        "one client is local SGD": Law(settings={"sizes": (9,), "proportion": 1.0}, holds=is_sgd),
    },
    by_hand=hand,
    paper="McMahan et al., AISTATS 2017",
)
