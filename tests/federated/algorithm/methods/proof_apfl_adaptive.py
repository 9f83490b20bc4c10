from functools import partial

import pytest

from flgo_hydra.federated.algorithm.apfl import APFL
from flgo_hydra.federated.algorithm.fedavg import FedAvg

from . import proof_apfl
from .by_hand import by_hand
from .proof import Law, Proof

ADAPTIVE = partial(APFL, adaptive=True)


def hand() -> None:
    # As with a fixed alpha, which the first step leaves at 0.5, since v = w. In the second, client 0 has v - w = -0.35
    # and the gradient -4.375, client 1 -0.2 and -3.4.
    weights, _, clients = by_hand(ADAPTIVE, 1, 2, alpha=0.5)
    assert weights == pytest.approx([0.94], abs=1e-12)
    alphas = [clients.get(k)["mixture"]["alpha"].item() for k in (0, 1)]
    assert alphas == pytest.approx([0.5 - 0.1 * 0.35 * 4.375, 0.5 - 0.1 * 0.2 * 3.4], abs=1e-12)


def stays_in_bounds(ours, federation) -> None:
    alphas = [state["mixture"]["alpha"].item() for state in ours.states]
    assert max(alphas) == 1.0 and 0 <= min(alphas) < 1, alphas


PROOF = Proof(
    method=ADAPTIVE,
    numbers={"alpha": 0.6},
    reference=partial(proof_apfl.reference, adaptive=True),
    laws={
        "the server's model is FedAvg's": Law(same_as=FedAvg),
        "alpha stays in [0, 1]": Law({"alpha": 0.98}, {"proportion": 1.0}, holds=stays_in_bounds),
    },
    by_hand=hand,
    paper="Deng et al. 2020",
)
