from functools import partial

import pytest

from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.pfedme import PFedMe

from .by_hand import by_hand
from .federation import Federation, train
from .proof import Found, Law, Proof, same

TWO = partial(PFedMe, "2")


def reference(f: Federation, lam: float, inner_lr: float, beta: float) -> Found:
    """Dinh et al., NeurIPS 2020, Algorithm 1, theta by two gradients."""
    w, servers = f.start, []
    own = [w] * f.num_clients
    for visits in f.rounds("uniform"):
        sums = {name: 0.0 * p for name, p in w.items()}
        for visit in visits:
            local = theta = w
            for x, y in visit.batches:
                for _ in range(2):

                    def objective(p, x=x, y=y, local=local):
                        away = sum((p[name] - q).square().sum() for name, q in local.items())
                        return f.loss(p, x, y) + lam / 2 * away

                    g = f.gradient(theta, objective)
                    theta = {name: p - inner_lr * g[name] for name, p in theta.items()}
                local = {name: p - f.lr * lam * (p - theta[name]) for name, p in local.items()}
            own[visit.k] = theta
            sums = {name: s + local[name] for name, s in sums.items()}
        w = {name: (1 - beta) * p + beta * sums[name] / len(visits) for name, p in w.items()}
        servers.append(w)
    return Found(servers, own, [{"own": theta} for theta in own])


def hand() -> None:
    # lambda = 2. Client 0: theta to 0.7 and 0.91, w to 0.182; theta to 1.0094 and 1.03922, w to 0.353444.
    # Client 1: theta to 0.4 and 0.64, w to 0.128; theta to 0.8096 and 0.91136, w to 0.284672.
    weights, _, clients = by_hand(TWO, 1, 2, lam=2.0, inner_lr=0.1, beta=2.0)
    assert weights == pytest.approx([0.353444 + 0.284672], abs=1e-12)
    own = [clients.get(k)["own"]["weight"].item() for k in (0, 1)]
    assert own == pytest.approx([1.03922, 0.91136], abs=1e-12)


class Averaged(PFedMe):
    """The server's model is the clients' mean."""

    update_server = Algorithm.update_server


def stays(ours, federation) -> None:
    same(ours.servers[-1], federation.start, "server", 0.0)


def is_even_fedavg(ours, federation) -> None:
    one = train(partial(PFedMe, "1"), {"lam": 4.0, "inner_lr": 0.25, "beta": 1.0}, federation)
    fedavg = train(FedAvg, {}, federation)
    for mine, theirs in zip(one.servers, fedavg.servers, strict=True):
        same(mine, theirs, "server", 1e-12)


PROOF = Proof(
    method=TWO,
    numbers={"lam": 3.0, "inner_lr": 0.1, "beta": 1.5},
    reference=reference,
    laws={
        "beta=1 is the clients' mean": Law(
            {"beta": 1.0}, {"aggregate": "uniform"}, partial(Averaged, "2"), {"lam": 3.0, "inner_lr": 0.1}
        ),
        "lam=0 leaves the server's model": Law({"lam": 0.0}, holds=stays),
        "K=1, inner_lr=1/lam, one local step is FedAvg of even weights": Law(
            settings={"num_steps": 1, "aggregate": "uniform"}, holds=is_even_fedavg
        ),
    },
    by_hand=hand,
    paper="Dinh et al., NeurIPS 2020",
    weighting="uniform",
)
