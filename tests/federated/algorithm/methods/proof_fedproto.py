import pytest
import torch
from torch import nn

from flgo_hydra.federated.algorithm.ditto import Ditto
from flgo_hydra.federated.algorithm.fedproto import FedProto
from flgo_hydra.federated.refused import Refused

from .federation import Federation, train
from .proof import Found, Law, Proof, same


def reference(f: Federation, lam: float, distance: str = "classes") -> Found:
    """Tan et al., AAAI 2022, Algorithm 1, of `mlp()`: prototypes in dicts by class."""
    own = [f.start] * f.num_clients
    prototypes: dict[int, torch.Tensor] = {}

    def features(p, x):
        return torch.tanh(x @ p["0.weight"].T + p["0.bias"])

    def means(z, y):
        return {j: z[y == j].mean(0) for j in y.unique().tolist()}

    for visits in f.rounds():
        received: dict[int, list] = {}
        for visit in visits:
            for x, y in visit.batches:

                def objective(p, x=x, y=y):
                    z = features(p, x)
                    if distance == "samples":
                        some = [(z[i] - prototypes[j]) for i, j in enumerate(y.tolist()) if j in prototypes]
                        away = sum(one.square().mean() for one in some) / len(y)
                    else:
                        away = sum(
                            (c - prototypes[j]).square().sum() for j, c in means(z, y).items() if j in prototypes
                        )
                    return f.loss(p, x, y) + lam * away

                g = f.gradient(own[visit.k], objective)
                own[visit.k] = {name: p - f.lr * g[name] for name, p in own[visit.k].items()}
            x, y = f.client(visit.k)
            for j, c in means(features(own[visit.k], x), y).items():
                received.setdefault(j, []).append((int((y == j).sum()), c))
        for j, of_clients in received.items():
            total = sum(n for n, _ in of_clients)
            prototypes[j] = sum(n / total * c for n, c in of_clients)
    mean = torch.zeros(3, 4, dtype=torch.float64)
    for j, c in prototypes.items():
        mean[j] = c
    is_known = torch.tensor([float(j in prototypes) for j in range(3)], dtype=torch.float64)
    server = {"prototypes": {"mean": mean, "is_known": is_known}}
    return Found([f.start] * f.num_rounds, own, [{"own": p} for p in own], server)


class Through(nn.Module):
    """One feature, which is a weight times x; two classes, whose outputs are 0 at first."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False)
        nn.init.ones_(self.body.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head(self.body(x))


def small(**settings) -> Federation:
    """Client 0 has (1, class 0) and (3, class 0), client 1 (6, class 0); nobody has class 1."""
    f = Federation(sizes=(2, 1), model=Through, batch_size=-1, num_epochs=1, proportion=1.0, **settings)
    x = torch.tensor([[1.0], [3.0], [6.0]], dtype=torch.float64)
    data = {**vars(f.data), "x_train": x, "y_train": torch.zeros(3, dtype=torch.int64), "num_classes": 2}
    object.__setattr__(f, "data", type(f.data)(**data))
    return f


def hand() -> None:
    # Round 1: there are no prototypes and the head is 0, so bodies stay 1 and heads move by 0.1 (1/2, -1/2) times the
    # mean of x: (0.1, -0.1) and (0.3, -0.3). Prototypes of class 0: 2 of two samples and 6 of one, (2 2 + 6) / 3.
    ours = train(FedProto, {"lam": 1.0}, small(num_rounds=1))
    assert [s["own"]["body.weight"].item() for s in ours.states] == [1.0, 1.0]
    heads = [s["own"]["head.weight"].flatten().tolist() for s in ours.states]
    assert heads == [pytest.approx([0.1, -0.1], abs=1e-12), pytest.approx([0.3, -0.3], abs=1e-12)]
    assert ours.server["prototypes"]["mean"].flatten().tolist() == pytest.approx([10 / 3, 0.0], abs=1e-12)
    assert ours.server["prototypes"]["is_known"].tolist() == [1.0, 0.0]
    # Round 2, with a lambda that all else is small beside: (2 v - 10/3)^2 has the slope
    # 4 (2 - 10/3) = -16/3 at v = 1, (6 v - 10/3)^2 has 12 (6 - 10/3) = 32.
    ours = train(FedProto, {"lam": 1e6}, small(num_rounds=2))
    moved = [(s["own"]["body.weight"].item() - 1) / 1e6 for s in ours.states]
    assert moved == pytest.approx([1.6 / 3, -3.2], abs=1e-6)
    with pytest.raises(Refused, match="the last linear layer of the model, which it has not"):
        FedProto().bind(nn.Sequential(nn.Conv2d(1, 1, 3)))


def is_local_training(ours, federation) -> None:
    local = train(Ditto, {"lam": 0.0}, federation)
    for k, own in enumerate(ours.personal):
        same(own, local.personal[k], f"client {k}'s own model", 1e-12)


PROOF = Proof(
    method=FedProto,
    numbers={"lam": 0.8},
    reference=reference,
    laws={"lam=0 is local training": Law({"lam": 0.0}, holds=is_local_training)},
    by_hand=hand,
    paper="Tan et al., AAAI 2022",
)
