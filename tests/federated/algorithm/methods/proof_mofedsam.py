import pytest

from flgo_hydra.federated.algorithm.fedcm import FedCM
from flgo_hydra.federated.algorithm.fedsam import FedSAM
from flgo_hydra.federated.algorithm.mofedsam import MoFedSAM

from .by_hand import by_hand
from .federation import Federation
from .proof import Found, Law, Proof


def reference(f: Federation, rho: float, beta: float, eta: float) -> Found:
    """Qu et al., ICML 2022, Algorithm 2."""
    w, servers = f.start, []
    delta = {name: 0.0 * p for name, p in w.items()}
    for visits in f.rounds("uniform"):
        total, steps = {name: 0.0 * p for name, p in w.items()}, 0
        for visit in visits:
            own = w
            for x, y in visit.batches:

                def loss(p, x=x, y=y):
                    return f.loss(p, x, y)

                g = f.gradient(own, loss)
                length = sum(float((t * t).sum()) for t in g.values()) ** 0.5
                g = f.gradient({name: p + rho * g[name] / length for name, p in own.items()}, loss)
                own = {name: p - f.lr * (beta * g[name] + (1 - beta) * delta[name]) for name, p in own.items()}
                steps += 1
            total = {name: t + own[name] - w[name] for name, t in total.items()}
        delta = {name: -t / (f.lr * steps) for name, t in total.items()}
        w = {name: p + eta * total[name] / len(visits) for name, p in w.items()}
        servers.append(w)
    return Found(servers, server={"direction": delta})


def hand() -> None:
    # At -0.1, the gradients are -7.5 and -4.2: changes 0.375 and 0.21, Delta = -2.925, w = 0.2925.
    # At 0.1925, -6.0375 and -3.615: -3.01875 - 1.4625 and -1.8075 - 1.4625.
    weights, _, _ = by_hand(MoFedSAM, 2, 1, rho=0.1, beta=0.5, eta=1.0)
    assert weights == pytest.approx([0.2925, 0.2925 + 0.3875625], abs=1e-12)


PROOF = Proof(
    method=MoFedSAM,
    numbers={"rho": 0.2, "beta": 0.4, "eta": 1.2},
    reference=reference,
    laws={
        "rho=0 is FedCM": Law({"rho": 0.0}, same_as=FedCM, with_numbers={"alpha": 0.4, "eta": 1.2}),
        "beta=1 is FedSAM": Law(
            {"beta": 1.0, "eta": 1.0}, {"aggregate": "uniform"}, same_as=FedSAM, with_numbers={"rho": 0.2}
        ),
    },
    by_hand=hand,
    paper="Qu et al., ICML 2022",
    weighting="uniform",
)
