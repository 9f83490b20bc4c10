import pytest

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedper import FedPer

from .by_hand import by_hand, two_lines
from .federation import Federation
from .laws import mean_of, own_is_servers_of, stays_on_the_server
from .proof import Found, Law, Proof

HEAD = ("2.weight", "2.bias")


def reference(f: Federation) -> Found:
    """Arivazhagan et al., 2019, Algorithms 1 and 2: SGD on (W_B, W_Pk); W_B is averaged."""
    return averaging_a_part(f, HEAD)


def averaging_a_part(f: Federation, kept: tuple[str, ...]) -> Found:
    w, servers = f.start, []
    own = [{name: w[name] for name in kept} for _ in range(f.num_clients)]
    for visits in f.rounds():
        ends = []
        for visit in visits:
            model = {**w, **own[visit.k]}
            for x, y in visit.batches:
                g = f.gradient(model, lambda p, x=x, y=y: f.loss(p, x, y))
                model = {name: p - f.lr * g[name] for name, p in model.items()}
            own[visit.k] = {name: model[name] for name in kept}
            ends.append(model)
        w = mean_of(visits, ends, w, kept)
        servers.append(w)
    return Found(servers, [{**w, **one} for one in own], [{"own": one} for one in own])


def hand() -> None:
    # One step from a = 1, v = 0: a stays, v_0 = 0.7, v_1 = 0.4. The next at v a = 0.7 and 0.4: the gradients of v a are
    # -3.5 and -3.2, those of a v times that, -2.45 and -1.28.
    _, server, clients = by_hand(FedPer, 2, 1, model_of=two_lines)
    assert server.params["0.weight"].item() == pytest.approx((2 * 1.245 + 1.128) / 3, abs=1e-12)
    assert server.params["1.weight"].item() == 0.0
    own = [clients.get(k)["own"]["1.weight"].item() for k in (0, 1)]
    assert own == pytest.approx([0.7 + 0.35, 0.4 + 0.32], abs=1e-12)


PROOF = Proof(
    method=FedPer,
    numbers={},
    reference=reference,
    laws={
        "one client is FedAvg's": Law(settings={"sizes": (9,)}, holds=own_is_servers_of(FedAvg)),
        "the server's head stays untrained": Law(holds=stays_on_the_server(*HEAD)),
    },
    by_hand=hand,
    paper="Arivazhagan et al., 2019",
    option={"monitor": "personal_valid_loss"},
)
