import pytest
import torch

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.perfedavg import PerFedAvg

from .by_hand import by_hand
from .federation import Federation, train
from .proof import Found, Law, Proof, same


def reference(f: Federation, alpha: float, delta: float, parts: int = 3) -> Found:
    """Fallah et al., NeurIPS 2020, Algorithm 1, with HF for the Hessian; FO, where a batch is of two parts."""
    w, servers = f.start, []
    steps = [{name: 0.0 * p for name, p in w.items()}] * f.num_clients
    for visits in f.rounds():
        mean = {name: 0.0 * p for name, p in w.items()}
        for visit in visits:
            steps[visit.k] = {name: alpha * g for name, g in gradient(f, w, *f.client(visit.k)).items()}
            local = w
            for x, y in visit.batches:
                batches = [(x[i::parts], y[i::parts]) if len(x) >= parts else (x, y) for i in range(parts)]
                adapted = moved(local, gradient(f, local, *batches[0]), -alpha)
                g = gradient(f, adapted, *batches[1])
                if parts == 3:
                    up, down = (gradient(f, moved(local, g, sign * delta), *batches[2]) for sign in (1, -1))
                    g = {name: t - alpha * (up[name] - down[name]) / (2 * delta) for name, t in g.items()}
                local = moved(local, g, -f.lr)
            mean = {name: m + visit.weight * local[name] for name, m in mean.items()}
        w = mean
        servers.append(w)
    return Found(servers, [moved(w, step, -1) for step in steps], [{"adaptation": step} for step in steps])


def gradient(f, w, x, y):
    return f.gradient(w, lambda p: f.loss(p, x, y))


def moved(w, g, scale):
    return {name: p + scale * g[name] for name, p in w.items()}


def hand() -> None:
    # Batches of one and two samples are D, D' and D''. alpha = 0.1. Client 0 adapts to 0.7, where its gradient is -3.5;
    # less 0.1 5 (-3.5) that is -1.75, and w = 0.175. Client 1: to 0.4, -3.2, less 0.1 2 (-3.2) is -2.56, w = 0.256.
    weights, server, clients = by_hand(PerFedAvg, 1, 1, alpha=0.1, delta=0.5)
    assert weights == pytest.approx([(2 * 0.175 + 0.256) / 3], abs=1e-12)
    # At 0 their gradients are -7 and -4.
    used = [PerFedAvg().personal(server.params, clients.get(k))["weight"].item() for k in (0, 1)]
    assert used == pytest.approx([0.202 + 0.7, 0.202 + 0.4], abs=1e-12)


def is_the_hessian(ours, federation) -> None:
    """The difference of gradients comes to the exact gradient of f(w - alpha grad f(w)), on one batch of one sample."""
    f = Federation(seed=4, sizes=(1,), proportion=1.0, num_rounds=1, num_epochs=1)
    (server,) = train(PerFedAvg, {"alpha": 0.3, "delta": 1e-4}, f).servers
    x, y = f.client(0)
    w = {name: p.clone().requires_grad_() for name, p in f.start.items()}
    grads = torch.autograd.grad(f.loss(w, x, y), list(w.values()), create_graph=True)
    adapted = {name: p - 0.3 * g for (name, p), g in zip(w.items(), grads, strict=True)}
    exact = torch.autograd.grad(f.loss(adapted, x, y), list(w.values()))
    same(server, {n: (p - f.lr * g).detach() for (n, p), g in zip(w.items(), exact, strict=True)}, "server", 1e-7)


PROOF = Proof(
    method=PerFedAvg,
    numbers={"alpha": 0.2, "delta": 0.01},
    reference=reference,
    laws={
        "alpha=0 on one sample a batch is FedAvg": Law({"alpha": 0.0}, {"batch_size": 1}, same_as=FedAvg),
        "a narrow difference is the gradient of the adapted loss": Law(holds=is_the_hessian),
    },
    by_hand=hand,
    permuted={"sizes": (2, 1, 2)},  # parts of a batch depend on its order
    paper="Fallah et al., NeurIPS 2020",
)
