"""Clients that send the opposite of what they have learned.

Li et al., RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning from Heterogeneous Datasets,
AAAI 2019 (https://arxiv.org/abs/1811.03761), section 5: sign-flipping.
"""

import math

from flgo_hydra.federated.algorithm.base import Client, State
from flgo_hydra.federated.parts.base import Hostile, Numbers


class SignFlip(Hostile):
    """Hostile clients send `-scale` times everything. Its numbers: `share` of the clients, and `scale`."""

    numbers = {"share": (0.0, 1.0), "scale": (-math.inf, math.inf)}

    def message(self, message: State, client: Client, hyper: Numbers) -> State:
        return {entry: {name: -hyper["scale"] * t for name, t in ts.items()} for entry, ts in message.items()}
