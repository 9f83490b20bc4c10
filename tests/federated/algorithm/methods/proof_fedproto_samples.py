from functools import partial

import pytest

from flgo_hydra.federated.algorithm.fedproto import FedProto

from . import proof_fedproto
from .federation import train
from .proof import Law, Proof

OF_SAMPLES = partial(FedProto, distance="samples")


def hand() -> None:
    # The prototype is 10/3 after round 1. Client 0's mean of (v x - 10/3)^2 over x = 1, 3 has at v = 1 the slope
    # 2 (1 (1 - 10/3) + 3 (3 - 10/3)) / 2 = -10/3, client 1's 2 6 (6 - 10/3) = 32.
    ours = train(OF_SAMPLES, {"lam": 1e6}, proof_fedproto.small(num_rounds=2))
    moved = [(s["own"]["body.weight"].item() - 1) / 1e6 for s in ours.states]
    assert moved == pytest.approx([1 / 3, -3.2], abs=1e-6)


PROOF = Proof(
    method=OF_SAMPLES,
    numbers={"lam": 0.8},
    reference=partial(proof_fedproto.reference, distance="samples"),
    laws={"lam=0 is local training": Law({"lam": 0.0}, holds=proof_fedproto.is_local_training)},
    by_hand=hand,
    paper="Tan et al., AAAI 2022, the authors' code",
)
