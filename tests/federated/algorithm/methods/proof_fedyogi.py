import pytest
import torch

from flgo_hydra.federated.algorithm.adaptive import FedYogi
from flgo_hydra.federated.algorithm.fedavg import FedAvg

from .adaptive_reference import adaptive, first_round_is_bounded
from .by_hand import by_hand
from .federation import Federation
from .proof import Found, Law, Proof


def reference(f: Federation, beta1: float, beta2: float, eta: float, tau: float) -> Found:
    """Reddi et al., ICLR 2021, Algorithm 2, FedYogi."""
    return adaptive(f, lambda v, d: v - (1.0 - beta2) * d * d * torch.sign(v - d * d), beta1, eta, tau)


def hand() -> None:
    # Delta = 0.6: m = 0.3, v = 1 - 0.36 = 0.64, w = 1.8 * 0.3 / (0.8 + 1)
    # Delta = 0.48: m = 0.39, v = 0.64 - 0.2304 = 0.4096
    weights, _, _ = by_hand(FedYogi, 2, 1, beta1=0.5, beta2=0.0, eta=1.8, tau=1.0)
    assert weights == pytest.approx([0.3, 0.3 + 1.8 * 0.39 / 1.64], abs=1e-12)
    # tau = 0.1: v = 0.01 + 0.75 * 0.36 = 0.28, since 0.01 is below 0.36
    weights, _, _ = by_hand(FedYogi, 1, 1, beta1=0.0, beta2=0.25, eta=1.0, tau=0.1)
    assert weights == pytest.approx([0.6 / (0.28**0.5 + 0.1)], abs=1e-12)


PROOF = Proof(
    method=FedYogi,
    numbers={"beta1": 0.6, "beta2": 0.9, "eta": 0.03, "tau": 0.01},
    reference=reference,
    laws={
        "beta2=1, beta1=0 and eta = 2 tau is FedAvg": Law(
            {"beta1": 0.0, "beta2": 1.0, "eta": 0.02}, {"proportion": 0.75}, same_as=FedAvg
        ),
        "the first round moves no parameter by more than eta": Law(
            {"beta1": 0.9, "beta2": 0.99, "tau": 1e-5}, holds=first_round_is_bounded
        ),
    },
    by_hand=hand,
    paper="Reddi et al., ICLR 2021",
)
