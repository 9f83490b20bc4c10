"""Clients whose loss is largest take part.

Cho et al., Towards Understanding Biased Client Selection in Federated Learning, AISTATS 2022
(https://arxiv.org/abs/2010.01243), section 4: pow-d.
"""

import math
from collections.abc import Callable

import numpy as np

from flgo_hydra.config.laws import hold
from flgo_hydra.federated.parts.base import Numbers, Selection


class PowerOfChoice(Selection):
    """Of `candidates` clients, drawn by data volume, those with the largest losses. Its number: `candidates`."""

    numbers = {"candidates": (1, math.inf)}

    def draw(
        self,
        rng: np.random.Generator,
        num_samples: np.ndarray,
        size: int,
        losses: Callable[[np.ndarray], np.ndarray],
        hyper: Numbers,
    ) -> np.ndarray:
        num_candidates = hyper["candidates"]
        law = f"{size} <= candidates <= {len(num_samples)}, the cohort and all clients"
        hold(size <= num_candidates <= len(num_samples), law, num_candidates)
        shares = num_samples / num_samples.sum()
        candidates = rng.choice(len(num_samples), size=int(num_candidates), replace=False, p=shares)
        return candidates[np.argsort(-losses(candidates), kind="stable")[:size]]
