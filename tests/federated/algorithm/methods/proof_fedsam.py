import pytest

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedsam import FedSAM

from .by_hand import by_hand
from .federation import Federation
from .laws import mean_of
from .proof import Found, Law, Proof


def reference(f: Federation, rho: float) -> Found:
    """Qu et al., ICML 2022, Algorithm 1: w - lr g~, g~ the gradient at w + rho g / ||g||."""
    w, servers = f.start, []
    for visits in f.rounds():
        ends = []
        for visit in visits:
            own = w
            for x, y in visit.batches:
                g = f.gradient(own, lambda p, x=x, y=y: f.loss(p, x, y))
                norm = sum(float(t.square().sum()) for t in g.values()) ** 0.5
                up = {name: p + rho * g[name] / norm for name, p in own.items()}
                g = f.gradient(up, lambda p, x=x, y=y: f.loss(p, x, y))
                own = {name: p - f.lr * g[name] for name, p in own.items()}
            ends.append(own)
        w = mean_of(visits, ends, w)
        servers.append(w)
    return Found(servers)


def hand() -> None:
    # At 0 both gradients are below 0, so both look at -0.1: -7.5 and -4.2.
    weights, _, _ = by_hand(FedSAM, 1, 1, rho=0.1)
    assert weights == pytest.approx([(2 * 0.75 + 0.42) / 3], abs=1e-12)


PROOF = Proof(
    method=FedSAM,
    numbers={"rho": 0.2},
    reference=reference,
    laws={"rho=0 is FedAvg": Law({"rho": 0.0}, same_as=FedAvg)},
    by_hand=hand,
    paper="Qu et al., ICML 2022",
)
