"""Numbers of methods that keep a part of the model with the clients, weigh clients or classes, or distil."""

import math
from dataclasses import dataclass

from flgo_hydra.config.algorithm import AlgorithmConf
from flgo_hydra.config.laws import hold


@dataclass
class HeadConf(AlgorithmConf):
    """A method that treats the model's head otherwise than the layers below it."""

    # the head: a module's name in the model; null: the last linear layer
    head: str | None = None


@dataclass
class FedRepConf(HeadConf):
    """Heads of the clients' own, trained before the body that they share."""

    # share of a visit's steps that train the head, rounded down, at least one; the paper's 10 of 11 epochs
    head_share: float = 10 / 11

    def __post_init__(self) -> None:
        hold(0 <= self.head_share <= 1, "0 <= algorithm.head_share <= 1", self.head_share)


@dataclass
class FedLCConf(AlgorithmConf):
    """FedAvg with logits calibrated by a client's counts of classes."""

    # how strongly; 0 is FedAvg
    tau: float = 1.0

    def __post_init__(self) -> None:
        hold(0 <= self.tau < math.inf, "algorithm.tau >= 0 and finite", self.tau)


@dataclass
class FedNTDConf(AlgorithmConf):
    """FedAvg with distillation of the classes that a sample is not of."""

    # weight of the distillation; 0 is FedAvg
    beta: float = 1.0
    # temperature
    tau: float = 1.0

    def __post_init__(self) -> None:
        hold(0 <= self.beta < math.inf, "algorithm.beta >= 0 and finite", self.beta)
        hold(0 < self.tau < math.inf, "algorithm.tau > 0 and finite", self.tau)


@dataclass
class QFedAvgConf(AlgorithmConf):
    """FedAvg that gives clients of larger loss more weight."""

    # how much more; 0 is FedAvg with aggregate=uniform
    q: float = 1.0

    def __post_init__(self) -> None:
        hold(0 <= self.q < math.inf, "algorithm.q >= 0 and finite", self.q)


@dataclass
class AFLConf(AlgorithmConf):
    """FedAvg for the worst mixture of the clients, whose weights ascend on their losses."""

    # step size of the clients' weights; 0 is FedAvg with aggregate=uniform
    gamma: float = 0.1

    def __post_init__(self) -> None:
        hold(0 <= self.gamma < math.inf, "algorithm.gamma >= 0 and finite", self.gamma)


PARTS_OF_MODEL: dict[str, type[AlgorithmConf]] = {
    "fedper": HeadConf,
    "fedrep": FedRepConf,
    "lgfedavg": HeadConf,
    "fedbabu": HeadConf,
    "fedlc": FedLCConf,
    "fedntd": FedNTDConf,
    "qfedavg": QFedAvgConf,
    "afl": AFLConf,
}
"""The schemas of these methods, by choice."""
