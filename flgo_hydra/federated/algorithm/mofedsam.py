"""MoFedSAM: FedSAM whose local steps are mixed with the direction of the last round.

Qu et al., Generalized Federated Learning via Sharpness Aware Minimization, ICML 2022, Algorithm 2.
https://arxiv.org/abs/2206.02618

Symbols as in FedCM (`fedcm.py`), whose alpha is called beta here; rho as in FedSAM.
"""

from collections.abc import Mapping
from typing import Any

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Client, Hyper, State
from flgo_hydra.federated.algorithm.fedcm import FedCM, mixed, not_plain_sgd
from flgo_hydra.federated.algorithm.fedsam import uphill
from flgo_hydra.federated.algorithm.local import LocalBatch


class MoFedSAM(FedCM):
    """Local steps follow beta g + (1 - beta) Delta, g the gradient at w + rho g_0 / ||g_0||, g_0 the one at w."""

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        found = []
        if numbers["beta"] == 1:
            found.append("MoFedSAM with beta=1 is FedSAM of even weights.")
        if numbers["rho"] == 0:
            found.append("MoFedSAM with rho=0 is FedCM with alpha=beta.")
        return [*found, *not_plain_sgd("MoFedSAM", option)]

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        w = carry["model"]
        g = at.gradient(uphill(w, at.gradient(w), hyper["rho"]))
        return {"model": at.descend("model", w, mixed(g, client, hyper["beta"]))}
