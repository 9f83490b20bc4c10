import math

import pytest
import torch
from torch import nn

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.moon import Moon

from .by_hand import by_hand
from .federation import Federation
from .laws import mean_of
from .proof import Found, Law, Proof


def reference(f: Federation, mu: float, tau: float) -> Found:
    """Li et al., CVPR 2021, equation 3: - mu log(e^(s_glob / tau) / (e^(s_glob / tau) + e^(s_prev / tau)))."""
    w, servers = f.start, []
    previous = [w] * f.num_clients

    def z(p, x):
        return torch.tanh(x @ p["0.weight"].T + p["0.bias"])

    def cosine(a, b):
        return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))

    for visits in f.rounds():
        ends = []
        for visit in visits:
            own = w
            for x, y in visit.batches:
                z_glob, z_prev = z(w, x), z(previous[visit.k], x)

                def objective(p, x=x, y=y, z_glob=z_glob, z_prev=z_prev):
                    e_glob, e_prev = (torch.exp(cosine(z(p, x), other) / tau) for other in (z_glob, z_prev))
                    return f.loss(p, x, y) - mu * torch.log(e_glob / (e_glob + e_prev)).mean()

                g = f.gradient(own, objective)
                own = {name: p - f.lr * g[name] for name, p in own.items()}
            previous[visit.k] = own
            ends.append(own)
        w = mean_of(visits, ends, w)
        servers.append(w)
    return Found(servers, states=[{"previous": one} for one in previous])


def two_features() -> nn.Module:
    """y = v . a x, from a = (1, 0) and v = (0, 1); z = a x."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        model[1].weight.copy_(torch.tensor([[0.0, 1.0]]))
    return model


def hand() -> None:
    # In the first step all three models are the same, and the contrast's gradient is 0. Gradients of v . a are -7 and
    # -4: a is (1, 0.7) and (1, 0.4), v (0.7, 1) and (0.4, 1), on the server (1, 0.6) and (0.6, 1), and v . a = 1.2. In
    # the second round's step z is z_glob, of which the cosine is at its maximum; that with z_prev, whatever x, is of
    # (1, 0.6) with b = (1, 0.7) or (1, 0.4), and its gradient b / (|a| |b|) - cos a / |a|^2. Gradients of v . a are -1
    # and -1.6.
    mu, tau, a, v = 5.0, 0.5, (1.0, 0.6), (0.6, 1.0)
    ends = []
    for b, g in (((1.0, 0.7), -1.0), ((1.0, 0.4), -1.6)):
        sizes = math.hypot(*a) * math.hypot(*b)
        cos = (a[0] * b[0] + a[1] * b[1]) / sizes
        share = 1 / (1 + math.exp((1 - cos) / tau))  # of e^(s_prev / tau)
        of_cos = [b[i] / sizes - cos * a[i] / 1.36 for i in (0, 1)]
        ends.append([a[i] - 0.1 * (g * v[i] + mu * share / tau * of_cos[i]) for i in (0, 1)])
    _, server, _ = by_hand(Moon, 2, 1, model_of=two_features, mu=mu, tau=tau)
    found = server.params["0.weight"].flatten().tolist()
    assert found == pytest.approx([(2 * ends[0][i] + ends[1][i]) / 3 for i in (0, 1)], abs=1e-12)


PROOF = Proof(
    method=Moon,
    numbers={"mu": 2.0, "tau": 0.5},
    reference=reference,
    laws={
        "mu=0 is FedAvg": Law({"mu": 0.0}, same_as=FedAvg),
        "the first round's one step is FedAvg's": Law(settings={"num_rounds": 1, "num_steps": 1}, same_as=FedAvg),
    },
    by_hand=hand,
    paper="Li et al., CVPR 2021",
)
