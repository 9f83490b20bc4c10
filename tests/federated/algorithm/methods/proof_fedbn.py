import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedbn import FedBN

from ...conftest import by_hand_task
from .by_hand import by_hand
from .federation import Federation, Trained, train
from .laws import own_is_servers_of, stays_on_the_server
from .proof import Found, Law, Proof, same

NORMS = ("1.weight", "1.bias", "4.weight", "4.bias")
STATISTICS = ("1.running_mean", "1.running_var", "1.num_batches_tracked")


def with_norms() -> nn.Module:
    """Batch and group normalisation."""
    body = (nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Tanh())
    return nn.Sequential(*body, nn.Linear(4, 3))


def reference(f: Federation) -> Found:
    """Li et al., ICLR 2021, Algorithm 1: each client has a model; what is of no normalisation layer is averaged.

    Ordinary modules in training mode: running statistics are PyTorch's own.
    """
    models = [f.built().train() for _ in range(f.num_clients)]
    w, servers = f.start, []
    for visits in f.rounds():
        mean = {name: 0.0 * p for name, p in w.items() if name not in NORMS}
        for visit in visits:
            model = models[visit.k]
            model.load_state_dict({name: w[name] for name in mean}, strict=False)
            sgd = torch.optim.SGD(model.parameters(), lr=f.lr)
            for x, y in visit.batches:
                sgd.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                sgd.step()
            own = model.state_dict()
            mean = {name: m + visit.weight * own[name] for name, m in mean.items()}
        w = {**w, **mean}
        servers.append(w)
    kept = [copy.deepcopy(model.state_dict()) for model in models]
    return Found(
        servers,
        [{**w, **{name: own[name] for name in NORMS}} for own in kept],
        [{"own": {n: own[n] for n in NORMS}, "buffers": {n: own[n] for n in STATISTICS}} for own in kept],
    )


def norm_and_line() -> nn.Module:
    """y = v b + c: of a single feature, layer normalisation leaves its shift b alone; v = 1, b = c = 0."""
    model = nn.Sequential(nn.LayerNorm(1), nn.Linear(1, 1)).double()
    nn.init.ones_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    return model


def hand() -> None:
    # Client 0 wants 1 and 3, client 1 wants 5: gradients of a prediction p are 2 p - 4 and 2 p - 10. One step: b and c
    # are 0.4 and 1.0, the mean of c is 0.6. The next at p = 0.4 + 0.6 and 1.0 + 0.6: -2 and -6.8, of v b times that.
    task = replace(by_hand_task(), y_train=np.array([[1.0], [3.0], [5.0]], np.float32))
    _, server, clients = by_hand(FedBN, 2, 1, model_of=norm_and_line, task=task)
    assert server.params["1.bias"].item() == pytest.approx((2 * 0.8 + 1.28) / 3, abs=1e-12)
    assert server.params["1.weight"].item() == pytest.approx((2 * 1.08 + 1.68) / 3, abs=1e-12)
    assert server.params["0.bias"].item() == 0.0
    own = [clients.get(k)["own"]["0.bias"].item() for k in (0, 1)]
    assert own == pytest.approx([0.4 + 0.2, 1.0 + 0.68], abs=1e-12)


def with_group_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.GroupNorm(2, 4), nn.Tanh(), nn.Linear(4, 3))


def recorded_steps_are_the_same(ours: Trained, f: Federation) -> None:
    recorded = train(FedBN, {}, f, "recorded")
    same(recorded.servers[-1], ours.servers[-1], "server", 1e-12)
    for k, own in enumerate(ours.personal):
        same(recorded.personal[k], own, f"client {k}'s own model", 1e-12)


PROOF = Proof(
    method=FedBN,
    numbers={},
    reference=reference,
    laws={
        "one client is FedAvg's": Law(settings={"sizes": (8,)}, holds=own_is_servers_of(FedAvg)),
        "the server's normalisation stays untrained": Law(holds=stays_on_the_server(*NORMS)),
        "recorded steps are the same": Law(settings={"model": with_group_norm}, holds=recorded_steps_are_the_same),
    },
    by_hand=hand,
    paper="Li et al., ICLR 2021",
    settings={"model": with_norms, "sizes": (6, 3, 12, 2)},  # no batch of one sample, which has no variance
    backends=("loop", "vmap", "fused"),  # a program that changes batch statistics is not recorded
    option={"monitor": "personal_valid_loss"},
)
