"""Of Reddi et al., ICLR 2021, Algorithm 2: what its three methods share."""

from collections.abc import Callable

import torch
from torch import Tensor

from .federation import Federation, Trained
from .proof import Found


def adaptive(f: Federation, second: Callable[[Tensor, Tensor], Tensor], beta1: float, eta: float, tau: float) -> Found:
    """The algorithm, from how v moves with Delta."""
    x, servers = f.start, []
    m = {name: torch.zeros_like(p) for name, p in x.items()}
    v = {name: torch.full_like(p, tau * tau) for name, p in x.items()}
    for visits in f.rounds():
        delta = {name: torch.zeros_like(p) for name, p in x.items()}
        for visit in visits:
            own = x
            for features, labels in visit.batches:
                g = f.gradient(own, lambda p, a=features, b=labels: f.loss(p, a, b))
                own = {name: p - f.lr * g[name] for name, p in own.items()}
            for name in delta:
                delta[name] += visit.weight * (own[name] - x[name])
        for name in m:
            m[name] = beta1 * m[name] + (1.0 - beta1) * delta[name]
            v[name] = second(v[name], delta[name])
        x = {name: p + eta * m[name] / (torch.sqrt(v[name]) + tau) for name, p in x.items()}
        servers.append(x)
    return Found(servers, server={"m": m, "v": v})


def first_round_is_bounded(ours: Trained, f: Federation) -> None:
    """With beta2 = 0.99 and beta1 = 0.9 no parameter moves further than eta (1 - beta1) / sqrt(1 - beta2) = eta."""
    moved = max(float((p - f.start[name]).abs().max()) for name, p in ours.servers[0].items())
    assert 0.5 * 0.03 < moved <= 0.03
