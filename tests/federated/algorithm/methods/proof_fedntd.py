import math

import pytest
import torch

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedntd import FedNTD

from .by_hand import by_hand, classes, logits
from .federation import Federation
from .laws import mean_of
from .proof import Found, Law, Proof


def reference(f: Federation, beta: float, tau: float) -> Found:
    """Lee et al., NeurIPS 2022: CE + beta sum_(c != y) q~_g(c) log(q~_g(c) / q~_l(c)), q~ the softmax of logits / tau
    over the classes c != y."""
    w, servers = f.start, []
    for visits in f.rounds():
        ends = []
        for visit in visits:
            model = w
            for x, y in visit.batches:
                of_server = f.outputs(w, x)

                def objective(p, x=x, y=y, of_server=of_server):
                    of_client, total = f.outputs(p, x), f.loss(p, x, y)
                    for i, label in enumerate(y.tolist()):
                        others = [c for c in range(3) if c != label]
                        q_l, q_g = (torch.softmax(z[i, others] / tau, 0) for z in (of_client, of_server))
                        total = total + beta * (q_g * torch.log(q_g / q_l)).sum() / len(y)
                    return total

                g = f.gradient(model, objective)
                model = {name: p - f.lr * g[name] for name, p in model.items()}
            ends.append(model)
        w = mean_of(visits, ends, w)
        servers.append(w)
    return Found(servers)


def hand() -> None:
    # lr is 2 ln 3. Client 0 has a sample of class 0 and one of class 1: its first gradient is (-1/6, -1/6, 1/3). At
    # lr (1/6, 1/6, -1/3) the softmax is (3/7, 3/7, 1/7), and of classes 1 and 2, or 0 and 2, it is (3/4, 1/4) where
    # the server's is 1/2: the gradients are (-1/14, -1/14, 1/7) and (1/8, 1/8, -1/4). Client 1 has one sample of class
    # 0: (-2/3, 1/3, 1/3); then the softmax is (9/11, 1/11, 1/11), and classes 1 and 2 remain alike.
    lr = 2 * math.log(3)
    task = classes([0, 1], [0])
    _, server, _ = by_hand(FedNTD, 1, 2, model_of=logits, task=task, lr=lr, beta=1.0, tau=1.0)
    zero = [1 / 6 + 1 / 14 - 1 / 8, 1 / 6 + 1 / 14 - 1 / 8, -1 / 3 - 1 / 7 + 1 / 4]
    one = [2 / 3 + 2 / 11, -1 / 3 - 1 / 11, -1 / 3 - 1 / 11]
    found = server.params["weight"].flatten().tolist()
    assert found == pytest.approx([lr * (2 * a + b) / 3 for a, b in zip(zero, one, strict=True)], abs=1e-12)


PROOF = Proof(
    method=FedNTD,
    numbers={"beta": 1.5, "tau": 2.0},
    reference=reference,
    laws={
        "beta=0 is FedAvg": Law({"beta": 0.0}, same_as=FedAvg),
        "one step is FedAvg's": Law(settings={"num_steps": 1}, same_as=FedAvg),
    },
    by_hand=hand,
    paper="Lee et al., NeurIPS 2022",
)
