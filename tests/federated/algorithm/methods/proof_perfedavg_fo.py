from functools import partial

import pytest

from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.perfedavg import PerFedAvg

from . import proof_perfedavg
from .by_hand import by_hand
from .proof import Law, Proof

FIRST_ORDER = partial(PerFedAvg, hessian_free=False)


def hand() -> None:
    # alpha = 0.1. Client 0's batch is D, of (2, 3), with the gradient 8 w - 12, and D', of (1, 1), with 2 w - 2: it
    # adapts to 1.2, where D' has 0.4, and w = -0.04. Client 1's one sample is both: to 0.4, -3.2, w = 0.32.
    weights, _, _ = by_hand(FIRST_ORDER, 1, 1, alpha=0.1)
    assert weights == pytest.approx([(2 * -0.04 + 0.32) / 3], abs=1e-12)


PROOF = Proof(
    method=FIRST_ORDER,
    numbers={"alpha": 0.2, "delta": 0.01},
    reference=partial(proof_perfedavg.reference, parts=2),
    laws={"alpha=0 on one sample a batch is FedAvg": Law({"alpha": 0.0}, {"batch_size": 1}, same_as=FedAvg)},
    by_hand=hand,
    permuted={"sizes": (1, 1, 1)},  # parts of a batch depend on its order
    paper="Fallah et al., NeurIPS 2020",
)
