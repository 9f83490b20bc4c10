"""How it is trained: an algorithm's class and its numbers."""

import math
from dataclasses import dataclass, field
from typing import Any

from flgo_hydra.config.laws import MISSING, hold


@dataclass
class AlgorithmConf:
    """An algorithm: a class of pure functions (`federated/algorithm/base.py`) and its hyper-parameters."""

    # the class, as package.module.name
    _target_: str = MISSING
    # name in results
    name: str = MISSING


@dataclass
class FedProxConf(AlgorithmConf):
    """FedAvg with a proximal term."""

    # weight of the proximal term; 0 is FedAvg
    mu: float = 0.1

    def __post_init__(self) -> None:
        hold(0 <= self.mu < math.inf, "algorithm.mu >= 0 and finite", self.mu)


@dataclass
class ScaffoldConf(AlgorithmConf):
    """FedAvg with control variates."""

    # server step size (the paper's eta_g)
    eta: float = 1.0

    def __post_init__(self) -> None:
        hold(0 < self.eta < math.inf, "algorithm.eta > 0 and finite", self.eta)


@dataclass
class DittoConf(AlgorithmConf):
    """A model of each client's own, near the global one."""

    # pull of a client's own model to the global one (the paper's lambda); 0: local training
    lam: float = 1.0

    def __post_init__(self) -> None:
        hold(0 <= self.lam < math.inf, "algorithm.lam >= 0 and finite", self.lam)


@dataclass
class FedSAMConf(AlgorithmConf):
    """FedAvg with sharpness-aware local steps."""

    # how far up a step looks, in the direction of the gradient; 0 is FedAvg
    rho: float = 0.1

    def __post_init__(self) -> None:
        hold(0 <= self.rho < math.inf, "algorithm.rho >= 0 and finite", self.rho)


@dataclass
class MoonConf(AlgorithmConf):
    """FedAvg with a contrastive loss between a client's, the server's and the client's last model."""

    # weight of the contrastive loss; 0 is FedAvg
    mu: float = 5.0
    # temperature
    tau: float = 0.5
    # the module whose inputs are contrasted; null: the last linear layer
    module: str | None = None

    def __post_init__(self) -> None:
        hold(0 <= self.mu < math.inf, "algorithm.mu >= 0 and finite", self.mu)
        hold(0 < self.tau < math.inf, "algorithm.tau > 0 and finite", self.tau)


@dataclass
class FlgoConf(AlgorithmConf):
    """An algorithm of FLGo's, which FLGo runs (`federated/flgo_runner.py`)."""

    # its module, as flgo.algorithm.moon or one of your own in FLGo's style
    module: str = MISSING
    # its hyper-parameters in FLGo's order (FLGo's algo_para); empty: its defaults
    para: list[float] = field(default_factory=list)
    # further options of FLGo by FLGo's names: +algorithm.option.availability=YMF-0.2
    option: dict[str, Any] = field(default_factory=dict)


ALGORITHMS: dict[str, type[AlgorithmConf]] = {
    "plain": AlgorithmConf,
    "fedprox": FedProxConf,
    "scaffold": ScaffoldConf,
    "ditto": DittoConf,
    "fedsam": FedSAMConf,
    "moon": MoonConf,
    "flgo": FlgoConf,
}
"""The schemas of the group, by choice; plain: an algorithm without numbers."""
