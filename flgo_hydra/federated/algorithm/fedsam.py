"""FedSAM: clients look for flat minima, with sharpness-aware steps.

Qu et al., Generalized Federated Learning via Sharpness Aware Minimization, ICML 2022, Algorithm 1.
https://arxiv.org/abs/2206.02618
"""

from collections.abc import Mapping
from typing import Any

import torch

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.local import LocalBatch


class FedSAM(Algorithm):
    """Local steps follow the gradient at w + rho g / ||g||, g the gradient at w: two gradients a step."""

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        return ["FedSAM with rho=0 is FedAvg."] if numbers["rho"] == 0 else []

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        w = carry["model"]
        g = at.gradient(w)
        return {"model": at.descend("model", w, at.gradient(uphill(w, g, hyper["rho"])))}


def uphill(w: Tensors, g: Tensors, rho: Any) -> Tensors:
    """w + rho g / ||g||, g a gradient at w."""
    norm = torch.sqrt(torch.stack([t.square().sum() for t in g.values()]).sum())
    # Where there is no gradient there is no direction to go up.
    scale = rho / torch.where(norm > 0, norm, 1.0)
    return {name: p + scale * g[name] if name in g else p for name, p in w.items()}
