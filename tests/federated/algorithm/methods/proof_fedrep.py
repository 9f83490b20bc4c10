import math

import pytest

from flgo_hydra.federated.algorithm.fedrep import FedRep

from .by_hand import by_hand, two_lines
from .federation import Federation, Trained
from .laws import mean_of, stays_on_the_server
from .proof import Found, Law, Proof

HEAD = ("2.weight", "2.bias")


def reference(f: Federation, head_share: float) -> Found:
    """Collins et al., ICML 2021, Algorithm 1: tau_h steps of h_i under phi, the others of phi under h_i."""
    w, servers = f.start, []
    own = [{name: w[name] for name in HEAD} for _ in range(f.num_clients)]
    for visits in f.rounds():
        ends = []
        for visit in visits:
            model = {**w, **own[visit.k]}
            tau_h = max(1, math.floor(head_share * len(visit.batches)))
            for count, (x, y) in enumerate(visit.batches, start=1):
                g = f.gradient(model, lambda p, x=x, y=y: f.loss(p, x, y))
                moves = [name for name in model if (name in HEAD) == (count <= tau_h)]
                model = {name: p - f.lr * g[name] if name in moves else p for name, p in model.items()}
            own[visit.k] = {name: model[name] for name in HEAD}
            ends.append(model)
        w = mean_of(visits, ends, w, HEAD)
        servers.append(w)
    return Found(servers, [{**w, **one} for one in own], [{"own": one} for one in own])


def hand() -> None:
    # From a = 1, v = 0 the first of two steps takes v to 0.7 and 0.4; the gradients of v a are then -3.5 and -3.2, and
    # the second step's, of a, are v times that: -2.45 and -1.28.
    _, server, clients = by_hand(FedRep, 1, 2, model_of=two_lines, head_share=0.5)
    assert server.params["0.weight"].item() == pytest.approx((2 * 1.245 + 1.128) / 3, abs=1e-12)
    own = [clients.get(k)["own"]["1.weight"].item() for k in (0, 1)]
    assert own == pytest.approx([0.7, 0.4], abs=1e-12)


def has_new_heads(ours: Trained, f: Federation) -> None:
    stays_on_the_server()(ours, f)
    assert all((own[name] != f.start[name]).any() for own in ours.personal for name in HEAD)


PROOF = Proof(
    method=FedRep,
    numbers={"head_share": 0.5},
    reference=reference,
    laws={
        "the server's head stays untrained": Law(holds=stays_on_the_server(*HEAD)),
        "with all steps for the heads, bodies stay untrained": Law(
            {"head_share": 1.0}, {"proportion": 1.0}, holds=has_new_heads
        ),
    },
    by_hand=hand,
    paper="Collins et al., ICML 2021",
    option={"monitor": "personal_valid_loss"},
)
