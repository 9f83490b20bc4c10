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


GLOBAL: dict[str, type[AlgorithmConf]] = {
    "fedavgm": FedAvgMConf,
}
"""The schemas of these methods, by choice."""
