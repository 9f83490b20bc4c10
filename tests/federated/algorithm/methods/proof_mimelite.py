import pytest

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.mimelite import MimeLite

from .by_hand import by_hand
from .federation import Federation, Trained
from .proof import Found, Law, Proof


def reference(f: Federation, beta: float) -> Found:
    """Karimireddy et al., NeurIPS 2021, Algorithm 1, MimeLite with SGD with momentum."""
    x, servers = f.start, []
    m = {name: 0.0 * p for name, p in x.items()}
    for visits in f.rounds("uniform"):
        ends, full = [], []
        for visit in visits:
            y = x
            for features, labels in visit.batches:
                g = f.gradient(y, lambda p, a=features, b=labels: f.loss(p, a, b))
                y = {name: p - f.lr * ((1 - beta) * g[name] + beta * m[name]) for name, p in y.items()}
            ends.append(y)
            full.append(f.gradient(x, lambda p, k=visit.k: f.loss(p, *f.client(k))))
        m = {name: (1 - beta) * sum(g[name] for g in full) / len(full) + beta * t for name, t in m.items()}
        x = {name: sum(y[name] for y in ends) / len(ends) for name in x}
        servers.append(x)
    return Found(servers, server={"m": m})


def hand() -> None:
    # two steps: -3.5 and -2.625, -2 and -1.8, to 0.6125 and 0.38; the full gradients at 0 are -7 and -4
    weights, server, _ = by_hand(MimeLite, 1, 2, beta=0.5)
    assert weights == pytest.approx([0.49625], abs=1e-12)
    assert server.state["m"]["weight"].item() == pytest.approx(-2.75, abs=1e-12)
    # one step: to 0.275; there -5.625 and -3.45, -2.8125 - 1.375 and -1.725 - 1.375
    weights, _, _ = by_hand(MimeLite, 2, 1, beta=0.5)
    assert weights == pytest.approx([0.275, 0.275 + 0.364375], abs=1e-12)


def is_momentum(ours: Trained, f: Federation) -> None:
    """With one full step a round it is gradient descent with momentum."""
    x = f.start
    m = {name: 0.0 * p for name, p in x.items()}
    for mine in ours.servers:
        every = [f.gradient(x, lambda p, k=k: f.loss(p, *f.client(k))) for k in range(f.num_clients)]
        m = {name: 0.3 * sum(g[name] for g in every) / len(every) + 0.7 * t for name, t in m.items()}
        x = {name: p - f.lr * m[name] for name, p in x.items()}
        assert all(float((mine[name] - p).abs().max()) < 1e-12 for name, p in x.items())


PROOF = Proof(
    method=MimeLite,
    numbers={"beta": 0.7},
    reference=reference,
    laws={
        "beta=0 is FedAvg": Law({"beta": 0.0}, {"aggregate": "uniform"}, same_as=FedAvg),
        "one full step a round is gradient descent with momentum": Law(
            settings={"batch_size": -1, "num_steps": 1, "proportion": 1.0}, holds=is_momentum
        ),
    },
    by_hand=hand,
    paper="Karimireddy et al., NeurIPS 2021",
    weighting="uniform",
)
