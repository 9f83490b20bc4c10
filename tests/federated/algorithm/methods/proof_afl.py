import pytest

from flgo_hydra.federated.algorithm.afl import AFL
from flgo_hydra.federated.algorithm.fedavg import FedAvg

from .by_hand import by_hand
from .federation import Federation, Trained
from .proof import Found, Law, Proof


def project(v: list[float]) -> list[float]:
    """The point of the simplex nearest to v: by bisection on theta, sum of max(v - theta, 0) = 1."""
    low, high = min(v) - 1, max(v)
    for _ in range(200):
        theta = (low + high) / 2
        low, high = (theta, high) if sum(max(x - theta, 0) for x in v) > 1 else (low, theta)
    return [max(x - low, 0) for x in v]


def reference(f: Federation, gamma: float) -> Found:
    """Mohri et al., ICML 2019: w descends on sum_k lambda_k F_k, by each client's local steps, and lambda ascends."""
    w, servers = f.start, []
    weights = [1 / f.num_clients] * f.num_clients
    for visits in f.rounds("uniform"):
        losses = [float(f.loss(w, *f.client(k))) for k in range(f.num_clients)]
        mean = {name: 0.0 * p for name, p in w.items()}
        for visit in visits:
            own = w
            for x, y in visit.batches:
                g = f.gradient(own, lambda p, x=x, y=y: f.loss(p, x, y))
                own = {name: p - f.lr * g[name] for name, p in own.items()}
            mean = {name: m + weights[visit.k] * own[name] for name, m in mean.items()}
        w = mean
        weights = project([a + gamma * loss for a, loss in zip(weights, losses, strict=True)])
        servers.append(w)
    return Found(servers)


def hand() -> None:
    # At 0 the losses are 5 and 4: lambda goes from (0.5, 0.5) to (1.0, 0.9), which is projected to (0.55, 0.45). The
    # gradients at 0.55 are -4.25 and -2.9.
    first, second = 0.5 * 0.7 + 0.5 * 0.4, 0.55 + 0.1 * (0.55 * 4.25 + 0.45 * 2.9)
    # There the losses are (0.45^2 + 1.9^2) / 2 and 1.45^2: (0.740625, 0.66025), less 0.2004375 each.
    third = second + 0.1 * (0.5401875 * (7 - 5 * second) + 0.4598125 * (4 - 2 * second))
    weights, _, _ = by_hand(AFL, 3, 1, gamma=0.1)
    assert weights == pytest.approx([first, second, third], abs=1e-12)
    # A long step goes to a corner: client 0's alone.
    weights, _, _ = by_hand(AFL, 2, 1, gamma=2.0)
    assert weights == pytest.approx([first, first + 0.1 * 4.25], abs=1e-12)


def is_the_worst_clients(ours: Trained, f: Federation) -> None:
    """After a long step the last round's lambda is 1 for the client of the largest loss in the round before."""
    losses = [float(f.loss(f.start, *f.client(k))) for k in range(f.num_clients)]
    theta = ours.server["lambda"]["theta"]
    weights = [max(float(state["lambda"]["v"] - theta), 0.0) for state in ours.states]
    assert weights == pytest.approx([float(loss == max(losses)) for loss in losses], abs=1e-9)


PROOF = Proof(
    method=AFL,
    numbers={"gamma": 0.3},
    reference=reference,
    laws={
        "gamma=0 is FedAvg with aggregate=uniform": Law({"gamma": 0.0}, {"aggregate": "uniform"}, same_as=FedAvg),
        "a long step is to the worst client": Law({"gamma": 1e3}, {"num_rounds": 2}, holds=is_the_worst_clients),
    },
    by_hand=hand,
    paper="Mohri et al., ICML 2019",
    settings={"proportion": 1.0},
    weighting="uniform",
    option={"sample": "full"},
)
