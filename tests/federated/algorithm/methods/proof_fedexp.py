from functools import partial

import pytest

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedexp import FedExP

from .by_hand import by_hand
from .federation import Federation, Trained, train
from .proof import Found, Law, Proof, same


def reference(f: Federation, eps: float) -> Found:
    """Jhunjhunwala et al., ICLR 2023, Algorithm 1, with the weights p_i of clients, as the paper's experiments."""
    w, servers = f.start, []
    for visits in f.rounds():
        mean, squares = {name: 0.0 * p for name, p in w.items()}, 0.0
        for visit in visits:
            own = w
            for x, y in visit.batches:
                g = f.gradient(own, lambda p, x=x, y=y: f.loss(p, x, y))
                own = {name: p - f.lr * g[name] for name, p in own.items()}
            change = {name: w[name] - p for name, p in own.items()}
            mean = {name: t + visit.weight * change[name] for name, t in mean.items()}
            squares += visit.weight * sum(float((t * t).sum()) for t in change.values())
        eta = max(1.0, squares / (2 * (sum(float((t * t).sum()) for t in mean.values()) + eps)))
        last, w = w, {name: p - eta * mean[name] for name, p in w.items()}
        servers.append({name: (p + last[name]) / 2 for name, p in w.items()})
    return Found(servers, server={"iterate": w})


def hand() -> None:
    # lr 0.26: changes 1.82 and 1.04, w = 1.56; there of gradients 0.8 and -0.88, -0.208 and 0.2288, mean -0.0624
    eta = (2 * 0.208**2 + 0.2288**2) / 3 / (2 * (0.0624**2 + 0.001))
    assert eta > 4
    last = 1.56 - 0.0624 * eta
    weights, _, _ = by_hand(FedExP, 2, 1, lr=0.26, eps=0.001)
    assert weights == pytest.approx([0.78, (1.56 + last) / 2], abs=1e-12)
    weights, _, _ = by_hand(partial(FedExP, average=False), 2, 1, lr=0.26, eps=0.001)
    assert weights == pytest.approx([1.56, last], abs=1e-12)


def iterates_are_fedavgs(ours: Trained, f: Federation) -> None:
    theirs = train(FedAvg, {}, f).servers
    same(ours.server["iterate"], theirs[-1], "last iterate", 1e-12)
    mean = {name: (p + theirs[-2][name]) / 2 for name, p in theirs[-1].items()}
    same(ours.servers[-1], mean, "model", 1e-12)


def last_iterates_are_the_same(ours: Trained, f: Federation) -> None:
    alone = train(partial(FedExP, average=False), {"eps": 1e-3}, f)
    same(alone.servers[-1], ours.server["iterate"], "last iterate", 0.0)


def goes_further(ours: Trained, f: Federation) -> None:
    """Round 1 goes in FedAvg's direction, and further."""
    ours_first = train(partial(FedExP, average=False), {"eps": 1e-9}, f).servers[0]
    theirs = train(FedAvg, {}, f).servers[0]
    ratios = [(ours_first[name] - f.start[name]) / (p - f.start[name]) for name, p in theirs.items()]
    eta = float(ratios[0].flatten()[0])
    assert eta > 1.05
    assert all(float((r - eta).abs().max()) < 1e-6 for r in ratios)


PROOF = Proof(
    method=FedExP,
    numbers={"eps": 1e-3},
    reference=reference,
    laws={
        "a large eps is FedAvg": Law({"eps": 1e6}, holds=iterates_are_fedavgs),
        "one client is FedAvg": Law(settings={"sizes": (9,), "proportion": 1.0}, holds=iterates_are_fedavgs),
        "the mean of iterates is evaluated, and changes none": Law(holds=last_iterates_are_the_same),
        "clients that differ make longer steps": Law(
            settings={"sizes": (3, 3, 3, 3, 3, 3), "proportion": 1.0}, holds=goes_further
        ),
    },
    by_hand=hand,
    paper="Jhunjhunwala et al., ICLR 2023",
    # some rounds have eta > 1
    settings={"sizes": (3, 4, 2, 5, 3, 4, 2, 3)},
)
