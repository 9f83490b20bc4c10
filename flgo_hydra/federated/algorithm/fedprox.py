"""FedProx: FedAvg with a proximal term that keeps clients near the server.

Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, equation 2 and Algorithm 2.
https://arxiv.org/abs/1812.06127

The paper samples clients by their data volume and averages them evenly: `sample=md aggregate=uniform`, which FLGo
forces on its fedprox. Here cohorts and weights are options of their own, so that mu=0 is FedAvg and the two compare.
"""

from collections.abc import Mapping
from typing import Any

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, Tensors


class FedProx(Algorithm):
    """Clients minimise F_k(w) + mu/2 ||w - w_t||^2."""

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        return ["FedProx with mu=0 is FedAvg."] if numbers["mu"] == 0 else []

    def correct(self, grads: Tensors, params: Tensors, client: Client, hyper: Hyper) -> Tensors:
        """Adds the proximal term's gradient, mu (w - w_t), also where F_k does not depend on a parameter."""
        mu, w_t = hyper["mu"], client.anchor
        return {name: grads.get(name, 0.0) + mu * (w - w_t[name]) for name, w in params.items()}
