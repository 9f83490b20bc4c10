import pytest
import torch

from flgo_hydra.federated.algorithm.apfl import APFL
from flgo_hydra.federated.algorithm.ditto import Ditto
from flgo_hydra.federated.algorithm.fedavg import FedAvg

from .by_hand import by_hand
from .federation import Federation, train
from .proof import Found, Law, Proof, same


def reference(f: Federation, alpha: float, adaptive: bool = False) -> Found:
    """Deng et al. 2020, Algorithm 1: v_i follows the gradient of f_i(alpha v_i + (1 - alpha) w_i) by v_i, and, if it
    is adaptive, alpha_i the one by alpha_i."""
    w, servers = f.start, []
    own = [w] * f.num_clients
    alphas = [torch.tensor(alpha, dtype=torch.float64)] * f.num_clients
    visited = set()
    for visits in f.rounds():
        mean = {name: 0.0 * p for name, p in w.items()}
        for visit in visits:
            k, local = visit.k, w
            visited.add(k)
            for x, y in visit.batches:

                def mixture(v, w, a):
                    return {name: a * v[name] + (1 - a) * w[name] for name in v}

                v, a = own[k], alphas[k]
                by_w = f.gradient(local, lambda p, x=x, y=y: f.loss(p, x, y))
                by_v = f.gradient(v, lambda p, x=x, y=y, w=local, a=a: f.loss(mixture(p, w, a), x, y))
                by_a = f.gradient({"a": a}, lambda p, x=x, y=y, v=v, w=local: f.loss(mixture(v, w, p["a"]), x, y))
                local = {name: p - f.lr * by_w[name] for name, p in local.items()}
                own[k] = {name: p - f.lr * by_v[name] for name, p in v.items()}
                if adaptive:
                    alphas[k] = min(max(a - f.lr * by_a["a"], torch.zeros_like(a)), torch.ones_like(a))
            mean = {name: m + visit.weight * local[name] for name, m in mean.items()}
        w = mean
        servers.append(w)
    shares = [alphas[k] if k in visited else 0.0 for k in range(f.num_clients)]
    personal = [
        {name: share * v[name] + (1 - share) * w[name] for name in v} for share, v in zip(shares, own, strict=True)
    ]
    states = [
        {"own": v, "mixture": {"alpha": torch.as_tensor(share), "is_known": torch.tensor(float(k in visited))}}
        for k, (share, v) in enumerate(zip(shares, own, strict=True))
    ]
    return Found(servers, personal, states)


def hand() -> None:
    # Client 0: w to 0.7 and 1.05, v to 0.35; then the gradient at the mixture 0.525, -4.375, and v = 0.35 + 0.05 4.375.
    # Client 1: w to 0.4 and 0.72, v to 0.2; then the gradient at 0.3, -3.4, and v = 0.2 + 0.05 3.4.
    weights, server, clients = by_hand(APFL, 1, 2, alpha=0.5)
    assert weights == pytest.approx([0.94], abs=1e-12)
    own = [clients.get(k)["own"]["weight"].item() for k in (0, 1)]
    assert own == pytest.approx([0.56875, 0.37], abs=1e-12)
    used = [APFL().personal(server.params, clients.get(k))["weight"].item() for k in (0, 1)]
    assert used == pytest.approx([0.754375, 0.655], abs=1e-12)


def is_servers(ours, federation) -> None:
    for k, own in enumerate(ours.personal):
        same(own, ours.servers[-1], f"client {k}'s own model", 1e-12)


def is_local_training(ours, federation) -> None:
    local = train(Ditto, {"lam": 0.0}, federation)
    for k, own in enumerate(ours.personal):
        same(own, local.personal[k], f"client {k}'s own model", 1e-12)


PROOF = Proof(
    method=APFL,
    numbers={"alpha": 0.6},
    reference=reference,
    laws={
        "the server's model is FedAvg's": Law(same_as=FedAvg),
        "alpha=0 is FedAvg": Law({"alpha": 0.0}, same_as=FedAvg, holds=is_servers),
        "alpha=1 is local training": Law({"alpha": 1.0}, {"proportion": 1.0}, holds=is_local_training),
    },
    by_hand=hand,
    paper="Deng et al. 2020",
)
