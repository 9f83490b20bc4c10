"""Clients that learn from wrong labels.

Tolpegin et al., Data Poisoning Attacks Against Federated Learning Systems, ESORICS 2020.
https://arxiv.org/abs/2007.08432
"""

import numpy as np

from flgo_hydra.federated.parts.base import Hostile
from flgo_hydra.federated.refused import Refused


class LabelFlip(Hostile):
    """Hostile clients take class c for C - 1 - c, of C classes. Its number: `share` of the clients."""

    numbers = {"share": (0.0, 1.0)}

    def data(self, x: np.ndarray, y: np.ndarray, num_classes: int | None) -> tuple[np.ndarray, np.ndarray]:
        if num_classes is None:
            raise Refused("LabelFlip exchanges classes, but the task is a regression.")
        return x, num_classes - 1 - y
