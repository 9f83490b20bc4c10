import pytest

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.lgfedavg import LGFedAvg

from .by_hand import by_hand, two_lines
from .federation import Federation
from .laws import own_is_servers_of, stays_on_the_server
from .proof import Found, Law, Proof
from .proof_fedper import averaging_a_part

BODY = ("0.weight", "0.bias")


def reference(f: Federation) -> Found:
    """Liang et al., 2020, Algorithm 1: SGD on (theta_l, theta_g); theta_g is averaged."""
    return averaging_a_part(f, BODY)


def hand() -> None:
    # One step from a = 1, v = 0: v is 0.7 and 0.4, their mean 0.6, and a stays. The next at v a = 0.6: gradients of v a
    # are -4 and -2.8, those of a 0.6 times that.
    _, server, clients = by_hand(LGFedAvg, 2, 1, model_of=two_lines)
    assert server.params["1.weight"].item() == pytest.approx((2 * 1.0 + 0.88) / 3, abs=1e-12)
    assert server.params["0.weight"].item() == 1.0
    own = [clients.get(k)["own"]["0.weight"].item() for k in (0, 1)]
    assert own == pytest.approx([1.24, 1.168], abs=1e-12)


PROOF = Proof(
    method=LGFedAvg,
    numbers={},
    reference=reference,
    laws={
        "one client is FedAvg's": Law(settings={"sizes": (9,)}, holds=own_is_servers_of(FedAvg)),
        "the server's body stays untrained": Law(holds=stays_on_the_server(*BODY)),
    },
    by_hand=hand,
    paper="Liang et al., 2020",
    option={"monitor": "personal_valid_loss"},
)
