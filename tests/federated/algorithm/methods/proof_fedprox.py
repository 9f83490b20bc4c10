import pytest

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedprox import FedProx

from .by_hand import by_hand
from .federation import Federation
from .proof import Found, Law, Proof


def reference(f: Federation, mu: float) -> Found:
    """Li et al., MLSys 2020, equation 2: each client minimises F_k(w) + mu / 2 ||w - w^t||^2."""
    w, servers = f.start, []
    for visits in f.rounds():
        mean = {name: 0.0 * p for name, p in w.items()}
        for visit in visits:
            own = w
            for x, y in visit.batches:
                anchor = w

                def objective(p, x=x, y=y, anchor=anchor):
                    away = sum((p[name] - a).square().sum() for name, a in anchor.items())
                    return f.loss(p, x, y) + mu / 2 * away

                g = f.gradient(own, objective)
                own = {name: p - f.lr * g[name] for name, p in own.items()}
            mean = {name: m + visit.weight * own[name] for name, m in mean.items()}
        w = mean
        servers.append(w)
    return Found(servers)


def hand() -> None:
    # first steps to 0.7 and 0.4; the second gradients, -3.5 and -3.2, become -2.8 and -2.8
    weights, _, _ = by_hand(FedProx, 1, 2, mu=1.0)
    assert weights == pytest.approx([(2 * 0.98 + 0.68) / 3], abs=1e-12)


PROOF = Proof(
    method=FedProx,
    numbers={"mu": 0.7},
    reference=reference,
    laws={"mu=0 is FedAvg": Law({"mu": 0.0}, same_as=FedAvg)},
    by_hand=hand,
    paper="Li et al., MLSys 2020",
)
