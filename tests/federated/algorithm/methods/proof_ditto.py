import pytest

from flgo_hydra.federated.algorithm.ditto import Ditto
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.local_training import LocalTraining

from .by_hand import by_hand
from .federation import Federation
from .laws import mean_of, own_is_own_of
from .proof import Found, Law, Proof


def reference(f: Federation, lam: float) -> Found:
    """Li et al., ICML 2021, Algorithm 1: v_k - lr (grad F_k(v_k) + lambda (v_k - w^t)), beside FedAvg."""
    w, servers = f.start, []
    own = [w] * f.num_clients
    for visits in f.rounds():
        ends = []
        for visit in visits:
            model = w
            for x, y in visit.batches:
                g = f.gradient(model, lambda p, x=x, y=y: f.loss(p, x, y))
                model = {name: p - f.lr * g[name] for name, p in model.items()}
                v = own[visit.k]
                g = f.gradient(v, lambda p, x=x, y=y: f.loss(p, x, y))
                own[visit.k] = {name: p - f.lr * (g[name] + lam * (p - w[name])) for name, p in v.items()}
            ends.append(model)
        w = mean_of(visits, ends, w)
        servers.append(w)
    return Found(servers, own, [{"own": one} for one in own])


def hand() -> None:
    # From 0: steps to 0.7 and 0.4, then gradients of -3.5 and -3.2, with the pull to 0 -2.8 and -2.8.
    weights, _, clients = by_hand(Ditto, 1, 2, lam=1.0)
    assert weights == pytest.approx([(2 * 1.05 + 0.72) / 3], abs=1e-12)
    own = [clients.get(k)["own"]["weight"].item() for k in (0, 1)]
    assert own == pytest.approx([0.98, 0.68], abs=1e-12)


PROOF = Proof(
    method=Ditto,
    numbers={"lam": 0.6},
    reference=reference,
    laws={
        "the server's model is FedAvg's": Law(same_as=FedAvg),
        "lam=0 is local training beside it": Law({"lam": 0.0}, same_as=FedAvg, holds=own_is_own_of(LocalTraining)),
    },
    by_hand=hand,
    paper="Li et al., ICML 2021",
)
