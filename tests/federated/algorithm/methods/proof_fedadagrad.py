import pytest

from flgo_hydra.federated.algorithm.adaptive import FedAdagrad
from flgo_hydra.federated.algorithm.fedavg import FedAvg

from .adaptive_reference import adaptive
from .by_hand import by_hand
from .federation import Federation, Trained
from .proof import Found, Law, Proof


def reference(f: Federation, beta1: float, eta: float, tau: float) -> Found:
    """Reddi et al., ICLR 2021, Algorithm 2, FedAdagrad."""
    return adaptive(f, lambda v, d: v + d * d, beta1, eta, tau)


def hand() -> None:
    # Delta = 0.6: v = 0.64 + 0.36 = 1, w = 0.9 * 0.6 / (1 + 0.8); Delta at 0.3 is 0.48
    weights, _, _ = by_hand(FedAdagrad, 2, 1, beta1=0.0, eta=0.9, tau=0.8)
    assert weights == pytest.approx([0.3, 0.3 + 0.9 * 0.48 / (1.2304**0.5 + 0.8)], abs=1e-12)


def each_round_is_bounded(ours: Trained, f: Federation) -> None:
    """sqrt(v) is at least |Delta|, so no parameter moves by more than eta."""
    before = f.start
    for now in ours.servers:
        moved = max(float((p - before[name]).abs().max()) for name, p in now.items())
        assert 0.5 * 0.03 < moved <= 0.03
        before = now


PROOF = Proof(
    method=FedAdagrad,
    numbers={"beta1": 0.3, "eta": 0.03, "tau": 0.01},
    reference=reference,
    laws={
        # v stays near tau^2
        "beta1=0, a large tau and eta = 2 tau is FedAvg": Law(
            {"beta1": 0.0, "tau": 1e5, "eta": 2e5}, {"proportion": 0.75}, same_as=FedAvg, atol=1e-9
        ),
        "no round moves a parameter by more than eta": Law({"beta1": 0.0, "tau": 1e-5}, holds=each_round_is_bounded),
    },
    by_hand=hand,
    paper="Reddi et al., ICLR 2021",
)
