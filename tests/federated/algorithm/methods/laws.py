"""What several methods' laws assert."""

from collections.abc import Callable
from typing import Any

import torch

from flgo_hydra.federated.algorithm.base import Algorithm

from .federation import Federation, Params, Trained, train
from .proof import same

Holds = Callable[[Trained, Federation], None]


def own_is_servers_of(made: Callable[[], Algorithm], **numbers: float) -> Holds:
    """A client that is alone comes to the server's model of another method."""

    def holds(ours: Trained, f: Federation) -> None:
        same(ours.personal[0], train(made, numbers, f).servers[-1], "its own model", 1e-12)

    return holds


def own_is_own_of(made: Callable[[], Algorithm], **numbers: float) -> Holds:
    """Each client's model is that of another method."""

    def holds(ours: Trained, f: Federation) -> None:
        for k, theirs in enumerate(train(made, numbers, f).personal):
            assert theirs is not None
            same(ours.personal[k], theirs, f"client {k}'s own model", 1e-12)

    return holds


def stays_on_the_server(*names: str) -> Holds:
    """These parameters of the server's model are the untrained one's, and the others are trained; none: all of them."""

    def holds(ours: Trained, f: Federation) -> None:
        for server in ours.servers:
            assert all(torch.equal(server[name], f.start[name]) for name in names or f.start)
        others = [name for name in f.start if names and name not in names]
        assert not others or any((ours.servers[-1][name] != f.start[name]).any() for name in others)

    return holds


def mean_of(visits: list[Any], ends: list[Params], w: Params, kept: tuple[str, ...] = ()) -> Params:
    """The weighted mean of what a cohort's clients have come to; of what they keep the server's."""
    return {
        name: p if name in kept else sum(v.weight * end[name] for v, end in zip(visits, ends, strict=True))
        for name, p in w.items()
    }
