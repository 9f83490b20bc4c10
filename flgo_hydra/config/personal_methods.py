"""Methods whose clients have models of their own, and their numbers."""

from dataclasses import dataclass

from flgo_hydra.config.algorithm import AlgorithmConf
from flgo_hydra.config.laws import hold


@dataclass
class APFLConf(AlgorithmConf):
    """A mixture of a client's own model and the global one."""

    # share of a client's own model in the mixture; 0: FedAvg's model, 1: local training
    alpha: float = 0.5
    # each client learns its alpha, beginning at this one
    adaptive: bool = False

    def __post_init__(self) -> None:
        hold(0 <= self.alpha <= 1, "0 <= algorithm.alpha <= 1", self.alpha)


PERSONAL: dict[str, type[AlgorithmConf]] = {
    "apfl": APFLConf,
}
"""The schemas of these, by choice."""
