import math

import pytest
import torch

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedlc import FedLC

from .by_hand import by_hand, classes, logits
from .federation import Federation, Trained, train
from .laws import mean_of
from .proof import Found, Law, Proof, same


def reference(f: Federation, tau: float) -> Found:
    """Zhang et al., ICML 2022: -log(e^(f_y - tau n_y^(-1/4)) / sum_c e^(f_c - tau n_c^(-1/4))), over the classes that a
    client has."""
    w, servers = f.start, []
    for visits in f.rounds():
        ends = []
        for visit in visits:
            labels = f.client(visit.k)[1].tolist()
            n = {c: labels.count(c) for c in sorted(set(labels))}
            model = w
            for x, y in visit.batches:

                def objective(p, x=x, y=y, n=n):
                    total = 0.0
                    for row, label in zip(f.outputs(p, x), y.tolist(), strict=True):
                        calibrated = {c: row[c] - tau * n[c] ** -0.25 for c in n}
                        total = total + torch.logsumexp(torch.stack(list(calibrated.values())), 0) - calibrated[label]
                    return total / len(y)

                g = f.gradient(model, objective)
                model = {name: p - f.lr * g[name] for name, p in model.items()}
            ends.append(model)
        w = mean_of(visits, ends, w)
        servers.append(w)
    return Found(servers)


def hand() -> None:
    # Client 0 has 16 samples of class 0 and one of class 1: margins of 2 ln 2 / 2 and 2 ln 2 leave 1/2 and 1/4 of e^f,
    # and nothing of class 2. Its gradient at 0 is (2/3 - 16/17, 1/3 - 1/17, 0). Client 1 has one class, and nothing to
    # learn.
    task = classes([0] * 16 + [1], [2])
    _, server, _ = by_hand(FedLC, 1, 1, model_of=logits, task=task, lr=1.0, tau=2 * math.log(2))
    found = server.params["weight"].flatten().tolist()
    assert found == pytest.approx([17 / 18 * (16 / 17 - 2 / 3), 17 / 18 * (1 / 17 - 1 / 3), 0.0], abs=1e-12)


def absent_classes_stay(ours: Trained, f: Federation) -> None:
    """What the head knows of a class that nobody has."""
    f.data.y_train.clamp_(max=1)
    mine = train(FedLC, {"tau": 0.8}, f)
    assert all(torch.equal(mine.servers[-1][name][2], f.start[name][2]) for name in ("2.weight", "2.bias"))
    assert not torch.equal(mine.servers[-1]["2.weight"][1], f.start["2.weight"][1])


def even_counts_are_fedavg(ours: Trained, f: Federation) -> None:
    """Where a client has as many samples of each class, margins are the same for all."""
    y = torch.tensor([0, 1, 2] * 2 + [2, 1, 0])
    f.data.y_train.copy_(y)
    mine, theirs = train(FedLC, {"tau": 2.0}, f), train(FedAvg, {}, f)
    same(mine.servers[-1], theirs.servers[-1], "server", 1e-12)


PROOF = Proof(
    method=FedLC,
    numbers={"tau": 0.8},
    reference=reference,
    laws={
        "tau=0 is FedAvg": Law({"tau": 0.0}, same_as=FedAvg),
        "even counts of labels are FedAvg": Law(settings={"sizes": (6, 3)}, holds=even_counts_are_fedavg),
        "classes that nobody has are left alone": Law(holds=absent_classes_stay),
    },
    by_hand=hand,
    paper="Zhang et al., ICML 2022",
)
