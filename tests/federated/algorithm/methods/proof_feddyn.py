import pytest

from flgo_hydra.federated.algorithm.feddyn import FedDyn
from flgo_hydra.federated.algorithm.fedprox import FedProx

from .by_hand import by_hand
from .federation import Federation, Trained, train
from .proof import Found, Law, Proof, same


def reference(f: Federation, alpha: float) -> Found:
    """Acar et al., ICLR 2021, Algorithm 1; each client's objective is minimised by its steps of SGD."""
    theta, servers = f.start, []
    h = {name: 0.0 * p for name, p in theta.items()}
    grads = [h] * f.num_clients
    for visits in f.rounds("uniform"):
        ends = []
        for visit in visits:
            own, g_k = theta, grads[visit.k]
            for x, y in visit.batches:

                def objective(p, x=x, y=y, g_k=g_k, theta=theta):
                    linear = sum((g_k[name] * t).sum() for name, t in p.items())
                    away = sum((t - theta[name]).square().sum() for name, t in p.items())
                    return f.loss(p, x, y) - linear + alpha / 2 * away

                g = f.gradient(own, objective)
                own = {name: p - f.lr * g[name] for name, p in own.items()}
            ends.append(own)
            grads[visit.k] = {name: t - alpha * (own[name] - theta[name]) for name, t in g_k.items()}
        h = {name: t - alpha / f.num_clients * sum(own[name] - theta[name] for own in ends) for name, t in h.items()}
        theta = {name: sum(own[name] for own in ends) / len(ends) - h[name] / alpha for name in theta}
        servers.append(theta)
    return Found(servers, states=[{"g": one} for one in grads], server={"h": h})


def hand() -> None:
    # round 1: changes 0.7 and 0.4, g = -0.35 and -0.2, h = -0.275, w = 0.55 + 0.55
    # round 2: -1.5 + 0.35 and -1.8 + 0.2, changes 0.115 and 0.16, g = -0.4075 and -0.28, h = -0.34375
    weights, server, clients = by_hand(FedDyn, 2, 1, alpha=0.5)
    assert weights == pytest.approx([1.1, 1.1 + 0.1375 + 0.6875], abs=1e-12)
    assert server.state["h"]["weight"].item() == pytest.approx(-0.34375, abs=1e-12)
    assert [clients.get(k)["g"]["weight"].item() for k in (0, 1)] == pytest.approx([-0.4075, -0.28], abs=1e-12)


def h_is_the_mean(ours: Trained, f: Federation) -> None:
    for name, h in ours.server["h"].items():
        mean = sum(state["g"][name] for state in ours.states) / f.num_clients
        assert float((mean - h).abs().max()) < 1e-12
    assert any(float(t.abs().max()) > 1e-3 for t in ours.server["h"].values())


def begins_as_fedprox_twice(ours: Trained, f: Federation) -> None:
    """With everyone, h = -alpha times the mean change, which the server adds once more."""
    theirs = train(FedProx, {"mu": 0.3}, f).servers[0]
    same(ours.servers[0], {name: 2 * p - f.start[name] for name, p in theirs.items()}, "server after round 1", 1e-12)


PROOF = Proof(
    method=FedDyn,
    numbers={"alpha": 0.3},
    reference=reference,
    laws={
        "h is the mean of all clients' g_k": Law(holds=h_is_the_mean),
        "also of five clients with momentum": Law(
            settings={"sizes": (5, 9, 1, 4, 8), "momentum": 0.5}, holds=h_is_the_mean
        ),
        "the first round is twice FedProx's": Law(
            settings={"proportion": 1.0, "aggregate": "uniform"}, holds=begins_as_fedprox_twice
        ),
    },
    by_hand=hand,
    paper="Acar et al., ICLR 2021",
    weighting="uniform",
)
