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


GLOBAL: dict[str, type[AlgorithmConf]] = {
    "fedavgm": FedAvgMConf,
    "fedadagrad": FedAdagradConf,
    "fedadam": FedAdamConf,
    "fedyogi": FedAdamConf,
    "fednova": FedNovaConf,
}
"""The schemas of these methods, by choice."""
