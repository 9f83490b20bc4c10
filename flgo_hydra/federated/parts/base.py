"""What composes with every algorithm: who takes part, what hostile clients do, what becomes of a message on its way,
what the server makes of all messages.

Each is a small class of pure functions over tensors or arrays. A config names as many as it likes, by names of its own,
and its numbers are swept as an algorithm's are:

    python -m flgo_hydra -m +parts.top._target_=flgo_hydra.federated.parts.top_k.TopK +parts.top.share=0.1,0.01

Numbers come with each call, in `hyper`; whatever else a part has (texts, flags, lists) goes to its constructor. Hostile
clients come before what is done on the way, and parts of a kind in the order in which they are named.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from flgo_hydra.federated.algorithm.base import Client, State, Tensors

Numbers = Mapping[str, Any]
"""a part's own, by name: floats"""


class Part:
    """Something that composes with every algorithm."""

    numbers: Mapping[str, tuple[float, float]] | None = None
    """its numbers by name, each with the smallest and the largest lawful value: a config must give them all, and no
    other; None: whatever a config gives"""


class Selection(Part):
    """Who takes part in a round, in place of `sample`."""

    def draw(
        self,
        rng: np.random.Generator,
        num_samples: np.ndarray,
        size: int,
        losses: Callable[[np.ndarray], np.ndarray],
        hyper: Numbers,
    ) -> np.ndarray:
        """Called once a round, before it.

        Args:
            rng: of this round.
            num_samples: of every client, (N,).
            size: as many as `proportion` says.
            losses: the mean loss of the server's model on all training samples of each of these clients, (n,), which it
                evaluates now.
        Returns:
            ids of distinct clients, (at most N,), at least one.
        """
        raise NotImplementedError


class Hostile(Part):
    """What some clients do, whatever the algorithm: `share` of them, a number that every such part has, rounded down.
    Who they are is drawn once, by the run's seed."""

    def data(self, x: np.ndarray, y: np.ndarray, num_classes: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The training samples of a hostile client; called once, before the first round.

        Args:
            x, y: its samples, (n, …) and (n,); not to be changed in place.
        """
        return x, y

    def message(self, message: State, client: Client, hyper: Numbers) -> State:
        """What a hostile client sends in place of `message`: the same entries, of the same shapes. Under vmap, too."""
        return message


class Transport(Part):
    """What becomes of `update`, the change of the model, on its way from a client to the server.

    Other entries of a message go as they are.
    """

    def first(self, params: Tensors) -> Tensors:
        """What a client keeps for it from round to round, at first: an error memory, for example."""
        return {}

    def send(self, update: Tensors, kept: Tensors, client: Client, hyper: Numbers) -> tuple[Tensors, Tensors]:
        """What the server gets in place of `update`, and what the client keeps next. Under vmap, too.

        Returns:
            tensors of the same names and shapes as `update` and `kept`.
        """
        raise NotImplementedError


class ServerRule(Part):
    """What the server makes of all messages, in place of their weighted mean. At most one."""

    def combine(self, messages: Tensors, weights: Tensor, hyper: Numbers) -> Tensors:
        """For each entry of what the clients sent, such as `update`.

        Args:
            messages: an entry's tensors by name, each with a first dimension of the cohort's size.
            weights: of the clients in that entry's mean, (size,).
        Returns:
            tensors of the same names without that dimension.
        """
        raise NotImplementedError
