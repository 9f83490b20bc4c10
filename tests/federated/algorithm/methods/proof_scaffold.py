import pytest

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.scaffold import Scaffold

from .by_hand import by_hand
from .federation import Federation, Trained, train
from .proof import Found, Law, Proof, same


def reference(f: Federation, eta: float) -> Found:
    """Karimireddy et al., ICML 2020, Algorithm 1 with option II."""
    x, servers = f.start, []
    zero = {name: 0.0 * p for name, p in x.items()}
    c, own_c = zero, [zero] * f.num_clients
    for visits in f.rounds("uniform"):
        dx, dc = zero, zero
        for visit in visits:
            y, c_i = x, own_c[visit.k]
            for features, labels in visit.batches:
                g = f.gradient(y, lambda p, a=features, b=labels: f.loss(p, a, b))
                y = {name: p - f.lr * (g[name] - c_i[name] + c[name]) for name, p in y.items()}
            steps = len(visit.batches)
            plus = {name: c_i[name] - c[name] + (p - y[name]) / (steps * f.lr) for name, p in x.items()}
            dx = {name: t + (y[name] - x[name]) / len(visits) for name, t in dx.items()}
            dc = {name: t + (plus[name] - c_i[name]) / len(visits) for name, t in dc.items()}
            own_c[visit.k] = plus
        x = {name: p + eta * dx[name] for name, p in x.items()}
        c = {name: t + len(visits) / f.num_clients * dc[name] for name, t in c.items()}
        servers.append(x)
    return Found(servers, states=[{"control": one} for one in own_c], server={"control": c})


def hand() -> None:
    # round 1: to 0.7 and 0.4, c_1 = -7, c_2 = -4, c = -5.5, w = 0.55
    # round 2: gradients 2.75 - 7 = -4.25 and 1.1 - 4 = -2.9; -4.25 + 7 - 5.5 = -2.75 and -2.9 + 4 - 5.5 = -4.4
    # c_1 = -7 + 5.5 - 2.75 = -4.25, c_2 = -4 + 5.5 - 4.4 = -2.9: the gradients at 0.55, as they are after one step
    weights, server, clients = by_hand(Scaffold, 2, 1, eta=1.0)
    assert weights == pytest.approx([0.55, 0.55 + (0.275 + 0.44) / 2], abs=1e-12)
    kept = [clients.get(k)["control"]["weight"].item() for k in (0, 1)]
    assert kept == pytest.approx([-4.25, -2.9], abs=1e-12)
    assert server.state["control"]["weight"].item() == pytest.approx((-4.25 - 2.9) / 2, abs=1e-12)


def c_is_the_mean(ours: Trained, f: Federation) -> None:
    for name, c in ours.server["control"].items():
        mean = sum(state["control"][name] for state in ours.states) / f.num_clients
        assert float((mean - c).abs().max()) < 1e-12
    assert any(float(t.abs().max()) > 1e-3 for t in ours.server["control"].values())


def begins_as_fedavg(ours: Trained, f: Federation) -> None:
    same(ours.servers[0], train(FedAvg, {}, f).servers[0], "server after round 1", 1e-12)


PROOF = Proof(
    method=Scaffold,
    numbers={"eta": 0.8},
    reference=reference,
    laws={
        "c is the mean of all clients' c_i": Law(holds=c_is_the_mean),
        "whatever the aggregate": Law(settings={"aggregate": "weighted_com"}, holds=c_is_the_mean),
        "the first round is FedAvg's": Law({"eta": 1.0}, {"aggregate": "uniform"}, holds=begins_as_fedavg),
        "one client is FedAvg": Law({"eta": 1.0}, {"sizes": (9,), "proportion": 1.0, "num_rounds": 1}, same_as=FedAvg),
        "one step of each client a round is FedAvg": Law(
            {"eta": 1.0},
            {"batch_size": -1, "num_steps": 1, "proportion": 1.0, "aggregate": "uniform"},
            same_as=FedAvg,
        ),
    },
    by_hand=hand,
    paper="Karimireddy et al., ICML 2020",
    weighting="uniform",
)
