import pytest

from flgo_hydra.federated.algorithm.fedbabu import FedBABU
from flgo_hydra.federated.algorithm.finetune import Finetune

from .by_hand import by_hand, two_lines
from .federation import Federation, Trained, train
from .laws import mean_of, stays_on_the_server
from .proof import Found, Law, Proof, same

HEAD = ("2.weight", "2.bias")


def reference(f: Federation) -> Found:
    """Oh et al., ICLR 2022, Algorithm 1: SGD on theta_ext under the first theta_cls. A client fine-tunes all of the
    model that has come, on the batches of its visit."""
    w, servers = f.start, []
    own = [None] * f.num_clients
    for visits in f.rounds():
        ends = []
        for visit in visits:
            model = tuned = w
            for x, y in visit.batches:
                g = f.gradient(model, lambda p, x=x, y=y: f.loss(p, x, y))
                model = {name: p if name in HEAD else p - f.lr * g[name] for name, p in model.items()}
                g = f.gradient(tuned, lambda p, x=x, y=y: f.loss(p, x, y))
                tuned = {name: p - f.lr * g[name] for name, p in tuned.items()}
            own[visit.k] = tuned
            ends.append(model)
        w = mean_of(visits, ends, w)
        servers.append(w)
    return Found(servers, [w if one is None else one for one in own])


def hand() -> None:
    # From a = 0, v = 2: gradients of v a are -7 and -4, of a twice that, of v 0: a is 1.4 and 0.8. Then v a is 2.8 and
    # 1.6, where they are 7 and -0.8: a is 0 and 0.96, and the v of the fine-tuned models 2 - 0.98 and 2 + 0.064.
    _, server, clients = by_hand(FedBABU, 1, 2, model_of=lambda: two_lines(0.0, 2.0))
    assert server.params["0.weight"].item() == pytest.approx(0.96 / 3, abs=1e-12)
    assert server.params["1.weight"].item() == 2.0
    own = [clients.get(k)["own"] for k in (0, 1)]
    assert [one["0.weight"].item() for one in own] == pytest.approx([0.0, 0.96], abs=1e-12)
    assert [one["1.weight"].item() for one in own] == pytest.approx([1.02, 2.064], abs=1e-12)


def tunes_as_finetune(ours: Trained, f: Federation) -> None:
    for k, theirs in enumerate(train(Finetune, {}, f).personal):
        same(ours.personal[k], theirs, f"client {k}'s own model", 1e-12)


PROOF = Proof(
    method=FedBABU,
    numbers={},
    reference=reference,
    laws={
        "the head stays what it was": Law(holds=stays_on_the_server(*HEAD)),
        "the first round's own models are fine-tuned FedAvg's": Law(
            settings={"num_rounds": 1, "proportion": 1.0}, holds=tunes_as_finetune
        ),
    },
    by_hand=hand,
    paper="Oh et al., ICLR 2022",
)
