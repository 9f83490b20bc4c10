import pytest

from flgo_hydra.federated.algorithm.ditto import Ditto
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.local_training import LocalTraining

from .by_hand import by_hand
from .federation import Federation
from .laws import own_is_own_of, own_is_servers_of, stays_on_the_server
from .proof import Found, Law, Proof


def reference(f: Federation) -> Found:
    """SGD of each client from where its last visit ended."""
    own = [f.start for _ in range(f.num_clients)]
    for visits in f.rounds():
        for visit in visits:
            for x, y in visit.batches:
                g = f.gradient(own[visit.k], lambda p, x=x, y=y: f.loss(p, x, y))
                own[visit.k] = {name: p - f.lr * g[name] for name, p in own[visit.k].items()}
    return Found([f.start] * f.num_rounds, own, [{"own": one} for one in own])


def hand() -> None:
    # 0.7 and 0.4 after the first round; then the gradients are -3.5 and -3.2
    weights, _, clients = by_hand(LocalTraining, 2, 1)
    assert weights == [0.0, 0.0]
    own = [clients.get(k)["own"]["weight"].item() for k in (0, 1)]
    assert own == pytest.approx([1.05, 0.72], abs=1e-12)


PROOF = Proof(
    method=LocalTraining,
    numbers={},
    reference=reference,
    laws={
        "one client is FedAvg's": Law(settings={"sizes": (9,)}, holds=own_is_servers_of(FedAvg)),
        "own models are Ditto's with lam=0": Law(holds=own_is_own_of(Ditto, lam=0.0)),
        "the server's model stays untrained": Law(holds=stays_on_the_server()),
    },
    by_hand=hand,
    paper="no method, but a row of every table",
    option={"monitor": "personal_valid_loss"},
)
