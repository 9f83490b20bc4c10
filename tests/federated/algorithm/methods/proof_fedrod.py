import pytest
import torch
from torch import nn
from torch.nn import functional

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedrod import FedRoD
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

from .federation import Federation, train
from .proof import Found, Law, Proof, same

HEAD = ("2.weight", "2.bias")


def reference(f: Federation) -> Found:
    """Chen and Chao, ICLR 2022, Algorithm 1, linear head, of `mlp()`; the balanced softmax as the ratio that it is."""
    w, servers = f.start, []
    own = [{name: 0.0 * w[name] for name in HEAD}] * f.num_clients
    for visits in f.rounds():
        mean = {name: 0.0 * p for name, p in w.items()}
        for visit in visits:
            local = w
            counts = torch.bincount(f.client(visit.k)[1], minlength=3).double()
            for x, y in visit.batches:

                def balanced(p, x=x, y=y, counts=counts):
                    weighed = counts * torch.exp(f.outputs(p, x))
                    return -torch.log(weighed[torch.arange(len(y)), y] / weighed.sum(1)).mean()

                def of_sum(p, x=x, y=y, local=local):
                    z = torch.tanh(x @ local["0.weight"].T + local["0.bias"])
                    both = f.outputs(local, x) + z @ p["2.weight"].T + p["2.bias"]
                    return functional.cross_entropy(both, y)

                by_w, by_own = f.gradient(local, balanced), f.gradient(own[visit.k], of_sum)
                local = {name: p - f.lr * by_w[name] for name, p in local.items()}
                own[visit.k] = {name: p - f.lr * by_own[name] for name, p in own[visit.k].items()}
            mean = {name: m + visit.weight * local[name] for name, m in mean.items()}
        w = mean
        servers.append(w)
    personal = [{**w, **{name: w[name] + p for name, p in one.items()}} for one in own]
    return Found(servers, personal, [{"own": one} for one in own])


class Uniform(nn.Module):
    """Two classes, one feature: outputs are a bias and the head's weights times x, all 0 at first."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(1, 1, bias=False)
        self.head = nn.Linear(1, 2, bias=False)
        nn.init.ones_(self.body.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        return self.head(self.body(x))


def hand() -> None:
    # Client 0 has (1, class 0), (1, class 0), (1, class 1): all outputs are 0, the balanced softmax says 2/3 and 1/3,
    # as often as they occur, and nothing moves. The own head's softmax says 1/2 and 1/2: its mean gradient is
    # (1/2 - 2/3, 1/2 - 1/3) = (-1/6, 1/6).
    f = Federation(sizes=(3, 2), model=Uniform, num_rounds=1, batch_size=-1, num_epochs=1, proportion=1.0)
    one = f.data
    object.__setattr__(
        f,
        "data",
        type(one)(
            **{
                **vars(one),
                "x_train": torch.ones(5, 1, dtype=torch.float64),
                "y_train": torch.tensor([0, 0, 1, 1, 1]),
                "num_classes": 2,
            }
        ),
    )
    ours = train(FedRoD, {}, f)
    assert ours.servers[0]["head.weight"].flatten().tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    own = [ours.states[k]["own"]["head.weight"].flatten().tolist() for k in (0, 1)]
    assert own[0] == pytest.approx([0.1 / 6, -0.1 / 6], abs=1e-12)
    assert own[1] == pytest.approx([-0.05, 0.05], abs=1e-12)  # class 1 alone, which the generic head knows for sure
    refuses(f)


def refuses(f: Federation) -> None:
    with pytest.raises(Refused, match="the last linear layer of the model, which it has not"):
        FedRoD().bind(nn.Sequential(nn.Conv2d(1, 1, 3)))
    with pytest.raises(Refused, match="must be a `torch.nn.Linear` that is trained, but `0` is Conv1d"):
        FedRoD("0").bind(nn.Sequential(nn.Conv1d(1, 1, 3), nn.Linear(2, 2)))
    wrong = type(f.data)(**{**vars(f.data), "num_classes": None})
    model = f.built()
    backend = LoopBackend(model, wrong, LocalStep(FedRoD(), build_optimizer("sgd")), LocalWork(-1, 1, 1, 0))
    with pytest.raises(Refused, match="is for classes"):
        backend.prepare(server_state(model, backend.step.algorithm), {"lr": 0.1})


def balanced(f: Federation) -> Federation:
    """All clients have as many samples of each class."""
    y = torch.arange(len(f.data.y_train)) % 3
    object.__setattr__(f, "data", type(f.data)(**{**vars(f.data), "y_train": y}))
    return f


def is_fedavg(ours, federation) -> None:
    f = balanced(Federation(seed=5, sizes=(6, 3, 9)))
    for mine, theirs in zip(train(FedRoD, {}, f).servers, train(FedAvg, {}, f).servers, strict=True):
        same(mine, theirs, "server", 1e-12)


PROOF = Proof(
    method=FedRoD,
    numbers={},
    reference=reference,
    laws={"where classes are balanced, the generic model is FedAvg's": Law(holds=is_fedavg)},
    by_hand=hand,
    paper="Chen and Chao, ICLR 2022",
)
