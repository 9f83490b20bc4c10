import pytest

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.qfedavg import QFedAvg

from .by_hand import by_hand
from .federation import Federation
from .proof import Found, Law, Proof


def reference(f: Federation, q: float) -> Found:
    """Li et al., ICLR 2020, Algorithm 2, L = 1 / lr."""
    w, servers, big_l = f.start, [], 1 / f.lr
    for visits in f.rounds("uniform"):
        deltas, hs = [], []
        for visit in visits:
            loss = float(f.loss(w, *f.client(visit.k)))
            own = w
            for x, y in visit.batches:
                g = f.gradient(own, lambda p, x=x, y=y: f.loss(p, x, y))
                own = {name: p - f.lr * g[name] for name, p in own.items()}
            d = {name: big_l * (p - own[name]) for name, p in w.items()}
            square = sum(float(t.square().sum()) for t in d.values())
            deltas.append({name: loss**q * t for name, t in d.items()})
            hs.append(q * loss ** (q - 1) * square + big_l * loss**q)
        w = {name: p - sum(delta[name] for delta in deltas) / sum(hs) for name, p in w.items()}
        servers.append(w)
    return Found(servers)


def hand() -> None:
    # At 0 the losses are 5 and 4; one step of either client goes along its gradient, -7 and -4, and L is 10.
    weights, _, _ = by_hand(QFedAvg, 1, 1, q=1.0)
    assert weights == pytest.approx([(5 * 7 + 4 * 4) / (49 + 10 * 5 + 16 + 10 * 4)], abs=1e-12)
    weights, _, _ = by_hand(QFedAvg, 1, 1, q=2.0)
    assert weights == pytest.approx([(25 * 7 + 16 * 4) / (2 * 5 * 49 + 250 + 2 * 4 * 16 + 160)], abs=1e-12)


PROOF = Proof(
    method=QFedAvg,
    numbers={"q": 1.7},
    reference=reference,
    laws={
        "q=0 is FedAvg with aggregate=uniform": Law({"q": 0.0}, {"aggregate": "uniform"}, same_as=FedAvg),
        "aggregate=uniform changes nothing": Law(
            settings={"aggregate": "uniform"}, same_as=QFedAvg, with_numbers={"q": 1.7}
        ),
    },
    by_hand=hand,
    paper="Li et al., ICLR 2020",
    weighting="uniform",
)
