import pytest

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedavgm import FedAvgM

from .by_hand import by_hand
from .federation import Federation
from .proof import Found, Law, Proof


def reference(f: Federation, beta: float, eta: float) -> Found:
    """Hsu et al. 2019: Delta w the weighted sum of w - w_k; v <- beta v + Delta w; w <- w - v (here - eta v)."""
    w, servers = f.start, []
    v = {name: 0.0 * p for name, p in w.items()}
    for visits in f.rounds():
        change = {name: 0.0 * p for name, p in w.items()}
        for visit in visits:
            own = w
            for x, y in visit.batches:
                g = f.gradient(own, lambda p, x=x, y=y: f.loss(p, x, y))
                own = {name: p - f.lr * g[name] for name, p in own.items()}
            change = {name: t + visit.weight * (w[name] - own[name]) for name, t in change.items()}
        v = {name: beta * t + change[name] for name, t in v.items()}
        w = {name: p - eta * v[name] for name, p in w.items()}
        servers.append(w)
    return Found(servers)


def hand() -> None:
    # FedAvg would come to 0.6, and from there to 0.96: v = 0.6, and 0.5 * 0.6 + 0.36
    weights, _, _ = by_hand(FedAvgM, 2, 1, beta=0.5, eta=1.0)
    assert weights == pytest.approx([0.6, 0.6 + 0.66], abs=1e-12)


PROOF = Proof(
    method=FedAvgM,
    numbers={"beta": 0.7, "eta": 0.8},
    reference=reference,
    laws={
        "beta=0 is FedAvg": Law({"beta": 0.0, "eta": 1.0}, same_as=FedAvg),
        "the first round is FedAvg's": Law({"eta": 1.0}, {"num_rounds": 1}, same_as=FedAvg),
    },
    by_hand=hand,
    paper="Hsu et al., 2019",
)
