"""FedAvgM: FedAvg with momentum on the server.

Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, 2019.
https://arxiv.org/abs/1909.06335

Symbols: w the server's model, Delta w the mean of the clients' changes (here from the old model to the new ones), v the
momentum, eta a step size of the server, which is 1 in the paper.
"""

from collections.abc import Mapping
from typing import Any

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Hyper, State, Tensors, zeros_like


class FedAvgM(Algorithm):
    """v <- beta v + Delta w; w <- w + eta v."""

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        if numbers["beta"] != 0:
            return []
        return [
            "FedAvgM with beta=0 is FedAvg"
            + (f" with a server step of {numbers['eta']:g}." if numbers["eta"] != 1 else ".")
        ]

    def init_server(self, params: Tensors) -> State:
        return {"momentum": zeros_like(params)}

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        v = {name: hyper["beta"] * m + message["update"][name] for name, m in server["momentum"].items()}
        return {name: w + hyper["eta"] * v[name] for name, w in params.items()}, {"momentum": v}
