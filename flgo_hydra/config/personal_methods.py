"""Methods whose clients have models of their own, and their numbers."""

import math
import re
from dataclasses import dataclass

from flgo_hydra.config.algorithm import AlgorithmConf
from flgo_hydra.config.laws import hold, one_of


@dataclass
class APFLConf(AlgorithmConf):
    """A mixture of a client's own model and the global one."""

    # share of a client's own model in the mixture; 0: FedAvg's model, 1: local training
    alpha: float = 0.5
    # each client learns its alpha, beginning at this one
    adaptive: bool = False

    def __post_init__(self) -> None:
        hold(0 <= self.alpha <= 1, "0 <= algorithm.alpha <= 1", self.alpha)


@dataclass
class PFedMeConf(AlgorithmConf):
    """A model of each client's own, which the global one follows (Moreau envelopes)."""

    # pull of a client's own model to the global one (the paper's lambda); 0: the global model never moves
    lam: float = 15.0
    # step size of the client's own model; lr is the global model's (the paper's eta, 0.005 there)
    inner_lr: float = 0.09
    # gradients of each own model (the paper's K)
    inner_steps: str = "5"
    # how far the server goes to the mean of the clients' models; 1: all the way
    beta: float = 1.0

    def __post_init__(self) -> None:
        hold(0 <= self.lam < math.inf, "algorithm.lam >= 0 and finite", self.lam)
        hold(0 < self.inner_lr < math.inf, "algorithm.inner_lr > 0 and finite", self.inner_lr)
        hold(0 <= self.beta < math.inf, "algorithm.beta >= 0 and finite", self.beta)
        hold_count("inner_steps", self.inner_steps)


@dataclass
class PerFedAvgConf(AlgorithmConf):
    """A model that is good after one step on a client's own samples (meta-learning)."""

    # size of that step; lr is the one of the model itself (the paper's beta)
    alpha: float = 0.01
    # true: second derivatives by a difference of gradients (HF), four gradients a step; false: none (FO), two
    hessian_free: bool = True
    # half the width of that difference, in gradients
    delta: float = 0.001

    def __post_init__(self) -> None:
        hold(0 <= self.alpha < math.inf, "algorithm.alpha >= 0 and finite", self.alpha)
        hold(0 < self.delta < math.inf, "algorithm.delta > 0 and finite", self.delta)


@dataclass
class FedProtoConf(AlgorithmConf):
    """Models of the clients' own, whose features of a class are drawn to the mean of all; only those means travel."""

    # weight of that pull; 0: local training
    lam: float = 1.0
    # what is drawn: a batch's mean of each class (classes), or each of its samples (samples, as in the authors' code)
    distance: str = "classes"
    # the linear layer whose inputs are the features; null: the last one
    head: str | None = None

    def __post_init__(self) -> None:
        hold(0 <= self.lam < math.inf, "algorithm.lam >= 0 and finite", self.lam)
        one_of("algorithm.distance", self.distance, ("classes", "samples"))


@dataclass
class FedRoDConf(AlgorithmConf):
    """FedAvg with the balanced softmax, and a head of each client's own on top."""

    # the linear layer that is the head; null: the last one
    head: str | None = None


PERSONAL: dict[str, type[AlgorithmConf]] = {
    "apfl": APFLConf,
    "pfedme": PFedMeConf,
    "perfedavg": PerFedAvgConf,
    "fedproto": FedProtoConf,
    "fedrod": FedRoDConf,
}
"""The schemas of these, by choice."""


def hold_count(key: str, value: str) -> None:
    """Raises ValueError unless the text is a whole number from 1 on: one that decides how much a program computes, or
    of which shapes, is none of the numbers that the points of one program may differ in."""
    hold(re.fullmatch(r"[1-9]\d{0,3}", value) is not None, f"1 <= algorithm.{key} < 10000, a whole number", value)
