"""The numbers of methods that train one model for all clients, with their papers' defaults."""

import math
from dataclasses import dataclass

from flgo_hydra.config.algorithm import AlgorithmConf
from flgo_hydra.config.laws import hold


@dataclass
class FedAvgMConf(AlgorithmConf):
    """FedAvg with momentum on the server."""

    # momentum of the server; 0 is FedAvg
    beta: float = 0.9
    # server step size
    eta: float = 1.0

    def __post_init__(self) -> None:
        hold(0 <= self.beta < 1, "0 <= algorithm.beta < 1", self.beta)
        hold(0 < self.eta < math.inf, "algorithm.eta > 0 and finite", self.eta)


@dataclass
class FedAdagradConf(AlgorithmConf):
    """FedAvg whose server takes steps of Adagrad."""

    # server step size; the paper tunes it for each task (0.1: its CIFAR-10)
    eta: float = 0.1
    # momentum of the server
    beta1: float = 0.0
    # adaptivity: the smaller, the more every parameter moves alike
    tau: float = 1e-3

    def __post_init__(self) -> None:
        hold(0 < self.eta < math.inf, "algorithm.eta > 0 and finite", self.eta)
        hold(0 <= self.beta1 < 1, "0 <= algorithm.beta1 < 1", self.beta1)
        hold(0 < self.tau < math.inf, "algorithm.tau > 0 and finite", self.tau)


@dataclass
class FedAdamConf(FedAdagradConf):
    """FedAvg whose server takes steps of Adam, or of Yogi."""

    # server step size; the paper tunes it for each task (0.01: its CIFAR-10)
    eta: float = 0.01
    # momentum of the server
    beta1: float = 0.9
    # decay of the second moment
    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        hold(0 <= self.beta2 < 1, "0 <= algorithm.beta2 < 1", self.beta2)


@dataclass
class FedNovaConf(AlgorithmConf):
    """FedAvg with changes divided by how much the clients have stepped."""

    # weight of the proximal term of its FedProx form; 0: none
    mu: float = 0.0

    def __post_init__(self) -> None:
        hold(0 <= self.mu < math.inf, "algorithm.mu >= 0 and finite", self.mu)


@dataclass
class FedDynConf(AlgorithmConf):
    """Objectives of the clients that change from round to round until they agree."""

    # weight of the quadratic term that keeps clients near the server
    alpha: float = 0.01

    def __post_init__(self) -> None:
        hold(0 < self.alpha < math.inf, "algorithm.alpha > 0 and finite", self.alpha)


@dataclass
class FedExPConf(AlgorithmConf):
    """FedAvg with a server step that grows with how much the clients differ."""

    # added to the squared norm of the mean change: the larger, the nearer to FedAvg
    eps: float = 1e-3
    # evaluate the mean of the last two iterates, as the paper does; else the last one
    average: bool = True

    def __post_init__(self) -> None:
        hold(0 < self.eps < math.inf, "algorithm.eps > 0 and finite", self.eps)


@dataclass
class FedCMConf(AlgorithmConf):
    """FedAvg whose local steps are mixed with the last round's direction."""

    # share of a client's own gradient; 1 is FedAvg
    alpha: float = 0.1
    # server step size, in units of the clients' mean change
    eta: float = 1.0

    def __post_init__(self) -> None:
        hold(0 < self.alpha <= 1, "0 < algorithm.alpha <= 1", self.alpha)
        hold(0 < self.eta < math.inf, "algorithm.eta > 0 and finite", self.eta)


@dataclass
class MimeLiteConf(AlgorithmConf):
    """FedAvg whose local steps have the server's momentum."""

    # momentum; 0 is FedAvg
    beta: float = 0.9

    def __post_init__(self) -> None:
        hold(0 <= self.beta < 1, "0 <= algorithm.beta < 1", self.beta)


@dataclass
class MoFedSAMConf(AlgorithmConf):
    """FedSAM whose local steps are mixed with the last round's direction."""

    # how far up a step looks, in the direction of the gradient; 0 is FedCM
    rho: float = 0.1
    # share of a client's own gradient; 1 is FedSAM
    beta: float = 0.1
    # server step size, in units of the clients' mean change
    eta: float = 1.0

    def __post_init__(self) -> None:
        hold(0 <= self.rho < math.inf, "algorithm.rho >= 0 and finite", self.rho)
        hold(0 < self.beta <= 1, "0 < algorithm.beta <= 1", self.beta)
        hold(0 < self.eta < math.inf, "algorithm.eta > 0 and finite", self.eta)


@dataclass
class FedSpeedConf(AlgorithmConf):
    """A proximal term whose bias is taken back, and sharpness-aware steps."""

    # the proximal term weighs 1 / (2 lam) (the paper's lambda)
    lam: float = 10.0
    # share of the gradient from uphill in a step
    alpha: float = 1.0
    # how far up a step looks, in the direction of the gradient
    rho: float = 0.1

    def __post_init__(self) -> None:
        hold(0 < self.lam < math.inf, "algorithm.lam > 0 and finite", self.lam)
        hold(0 <= self.alpha <= 1, "0 <= algorithm.alpha <= 1", self.alpha)
        hold(0 <= self.rho < math.inf, "algorithm.rho >= 0 and finite", self.rho)


GLOBAL: dict[str, type[AlgorithmConf]] = {
    "fedavgm": FedAvgMConf,
    "fedadagrad": FedAdagradConf,
    "fedadam": FedAdamConf,
    "fedyogi": FedAdamConf,
    "fednova": FedNovaConf,
    "feddyn": FedDynConf,
    "fedexp": FedExPConf,
    "fedcm": FedCMConf,
    "mimelite": MimeLiteConf,
    "mofedsam": MoFedSAMConf,
    "fedspeed": FedSpeedConf,
}
"""The schemas of these methods, by choice."""
