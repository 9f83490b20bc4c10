import pytest

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedcm import FedCM

from .by_hand import by_hand
from .federation import Federation, Trained
from .proof import Found, Law, Proof


def reference(f: Federation, alpha: float, eta: float) -> Found:
    """Xu et al. 2021, Algorithm 2, whose eta_g is eta eta_l K; K is the mean number of steps."""
    x, servers = f.start, []
    delta = {name: 0.0 * p for name, p in x.items()}
    for visits in f.rounds("uniform"):
        total, steps = {name: 0.0 * p for name, p in x.items()}, 0
        for visit in visits:
            own = x
            for features, labels in visit.batches:
                g = f.gradient(own, lambda p, a=features, b=labels: f.loss(p, a, b))
                own = {name: p - f.lr * (alpha * g[name] + (1 - alpha) * delta[name]) for name, p in own.items()}
                steps += 1
            total = {name: t + x[name] - own[name] for name, t in total.items()}
        delta = {name: t / (f.lr * steps) for name, t in total.items()}
        x = {name: p - eta * f.lr * (steps / len(visits)) * delta[name] for name, p in x.items()}
        servers.append(x)
    return Found(servers, server={"direction": delta})


def hand() -> None:
    # round 1: -3.5 and -2, changes 0.35 and 0.2, Delta = -2.75; round 2: gradients -5.625 and -3.45,
    # -2.8125 - 1.375 and -1.725 - 1.375, of mean -3.64375
    weights, server, _ = by_hand(FedCM, 2, 1, alpha=0.5, eta=1.0)
    assert weights == pytest.approx([0.275, 0.275 + 0.364375], abs=1e-12)
    assert server.state["direction"]["weight"].item() == pytest.approx(-3.64375, abs=1e-12)
    # two steps: -3.5 and -2.625, -2 and -1.8, whose mean is Delta
    weights, server, _ = by_hand(FedCM, 1, 2, alpha=0.5, eta=2.0)
    assert weights == pytest.approx([2 * (0.6125 + 0.38) / 2], abs=1e-12)
    assert server.state["direction"]["weight"].item() == pytest.approx(-(3.5 + 2.625 + 2 + 1.8) / 4, abs=1e-12)


def is_momentum(ours: Trained, f: Federation) -> None:
    """With one step a round Delta is the momentum of gradient descent: alpha g + (1 - alpha) Delta."""
    x = f.start
    delta = {name: 0.0 * p for name, p in x.items()}
    for mine in ours.servers:
        every = [f.gradient(x, lambda p, k=k: f.loss(p, *f.client(k))) for k in range(f.num_clients)]
        for name in delta:
            delta[name] = 0.4 * sum(g[name] for g in every) / f.num_clients + 0.6 * delta[name]
        x = {name: p - f.lr * delta[name] for name, p in x.items()}
        assert all(float((mine[name] - p).abs().max()) < 1e-12 for name, p in x.items())


PROOF = Proof(
    method=FedCM,
    numbers={"alpha": 0.4, "eta": 1.2},
    reference=reference,
    laws={
        "alpha=1 is FedAvg": Law({"alpha": 1.0, "eta": 1.0}, {"aggregate": "uniform"}, same_as=FedAvg),
        "one full step a round is gradient descent with momentum": Law(
            {"eta": 1.0}, {"batch_size": -1, "num_steps": 1, "proportion": 1.0}, holds=is_momentum
        ),
    },
    by_hand=hand,
    paper="Xu et al., 2021",
    weighting="uniform",
)
