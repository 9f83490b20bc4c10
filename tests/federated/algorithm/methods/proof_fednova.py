from functools import partial

import pytest

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fednova import FedNova
from flgo_hydra.federated.algorithm.fedprox import FedProx

from .by_hand import by_hand
from .federation import Federation, Params, Trained
from .proof import Found, Law, Proof, same


def norm(steps: int, lr: float, mu: float, rho: float) -> float:
    """||a_i||_1: how much each of the gradients counts in the change of the model, in steps of plain SGD.

    The closed forms of the paper: with momentum (tau - rho (1 - rho^tau) / (1 - rho)) / (1 - rho), and of its proximal
    form sum_k (1 - lr mu)^(tau - 1 - k). With both, by the recursion that is linear in the gradients.
    """
    if mu == 0:
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    if rho == 0:
        return sum((1 - lr * mu) ** (steps - 1 - k) for k in range(steps))
    total = 0.0
    for k in range(steps):  # a gradient of 1 in step k alone
        place, speed = 0.0, 0.0
        for now in range(steps):
            speed = rho * speed + (now == k) + mu * place
            place -= lr * speed
        total += abs(place) / lr
    return total


def reference(f: Federation, mu: float) -> Found:
    """Wang et al., NeurIPS 2020: x - tau_eff sum_i p_i lr d_i, d_i the normalised gradient."""
    x, servers, rho = f.start, [], f.momentum
    for visits in f.rounds():
        tau_eff, mean = 0.0, {name: 0.0 * p for name, p in x.items()}
        for visit in visits:
            own: Params = x
            speed = {name: 0.0 * p for name, p in x.items()}
            for features, labels in visit.batches:
                g = f.gradient(own, lambda p, a=features, b=labels: f.loss(p, a, b))
                for name in own:
                    speed[name] = rho * speed[name] + g[name] + mu * (own[name] - x[name])
                own = {name: p - f.lr * speed[name] for name, p in own.items()}
            a = norm(len(visit.batches), f.lr, mu, rho)
            mean = {name: t + visit.weight * (x[name] - own[name]) / (f.lr * a) for name, t in mean.items()}
            tau_eff += visit.weight * a
        x = {name: p - tau_eff * f.lr * mean[name] for name, p in x.items()}
        servers.append(x)
    return Found(servers)


def hand() -> None:
    # Batches of one sample. Client 0 takes (2, 3), to 1.2, and (1, 1), whose gradient there is 0.4, to 1.16; client 1
    # takes one step, to 0.4: d = 0.58 and 0.4, tau_eff = (2 * 2 + 1) / 3.
    weights, _, _ = by_hand(FedNova, 1, None, batch_size=1, mu=0.0)
    assert weights == pytest.approx([5 / 3 * (2 * 0.58 + 0.4) / 3], abs=1e-12)
    # mu = 1 pulls client 0's second step back by 0.12, to 1.04, and makes a_0 = 0.9 + 1.
    weights, _, _ = by_hand(FedNova, 1, None, batch_size=1, mu=1.0)
    assert weights == pytest.approx([(2 * 1.9 + 1) / 3 * (2 * 1.04 / 1.9 + 0.4) / 3], abs=1e-12)


def holds_in_form(ours: Trained, f: Federation, mu: float) -> None:
    found = reference(f, mu)
    for r, (mine, theirs) in enumerate(zip(ours.servers, found.servers, strict=True)):
        same(mine, theirs, f"server after round {r + 1}", 1e-10)


PROOF = Proof(
    method=FedNova,
    numbers={"mu": 0.0},
    reference=reference,
    laws={
        "equal steps are FedAvg": Law(settings={"num_steps": 3}, same_as=FedAvg),
        "with momentum too": Law(settings={"num_steps": 3, "momentum": 0.6}, same_as=FedAvg),
        "with weight decay too": Law(settings={"num_steps": 3, "momentum": 0.6, "weight_decay": 0.1}, same_as=FedAvg),
        "with adam too": Law(settings={"num_steps": 3, "optimizer": "adam"}, same_as=FedAvg),
        "equal steps with mu are FedProx": Law(
            {"mu": 0.8}, {"num_steps": 3}, same_as=FedProx, with_numbers={"mu": 0.8}
        ),
        "one client is FedAvg": Law(settings={"sizes": (9,), "proportion": 1.0}, same_as=FedAvg),
        "momentum has the paper's a_i": Law(settings={"momentum": 0.6}, holds=partial(holds_in_form, mu=0.0)),
        "mu has the paper's a_i": Law({"mu": 0.8}, {"seed": 8}, holds=partial(holds_in_form, mu=0.8)),
        "both have their a_i": Law({"mu": 0.8}, {"momentum": 0.6}, holds=partial(holds_in_form, mu=0.8)),
    },
    by_hand=hand,
    paper="Wang et al., NeurIPS 2020",
)
