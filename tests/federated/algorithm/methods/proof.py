"""What is shown of a method."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flgo_hydra.federated.algorithm.base import Algorithm

from .federation import BACKENDS, Federation, Params, Trained, train


@dataclass(frozen=True)
class Found:
    """What a reference has come to; what it leaves out is not compared."""

    servers: list[Params]
    """the server's model after each round"""
    personal: list[Params] | None = None
    """each client's own model at the end"""
    states: list[dict[str, dict[str, Tensor]]] | None = None
    """what each client keeps at the end, or a part of it"""
    server: dict[str, dict[str, Tensor]] | None = None
    """what the server keeps at the end, or a part of it"""


@dataclass(frozen=True)
class Law:
    """Under these numbers and settings the method is another one, or keeps to something else."""

    numbers: Mapping[str, float] = field(default_factory=dict)
    """in place of the proof's"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """of the federation"""
    same_as: Callable[[], Algorithm] | None = None
    """a method whose models are the same"""
    with_numbers: Mapping[str, float] = field(default_factory=dict)
    """of that method"""
    holds: Callable[[Trained, Federation], None] | None = None
    """asserts what else must hold"""
    atol: float = 1e-12


@dataclass(frozen=True)
class Proof:
    """A method: how it is made, an implementation from its paper, its laws.

    `by_hand` is a function that asserts numbers computed by hand (`tests/federated/algorithm/methods/by_hand.py`).
    """

    method: Callable[[], Algorithm]
    numbers: Mapping[str, float]
    reference: Callable[..., Found]
    """(federation, **numbers) -> what the paper's algorithm comes to"""
    laws: Mapping[str, Law]
    by_hand: Callable[[], None]
    paper: str
    """for the table: authors, venue, year"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """what federations it needs: another model, full participation"""
    permuted: Mapping[str, Any] = field(default_factory=dict)
    """settings under which the order of a client's samples does not count, where it does with all of them at once"""
    backends: tuple[str, ...] = BACKENDS
    weighting: str = "samples"
    option: Mapping[str, Any] = field(default_factory=dict)
    """options under which nothing is to be said of it; none: the defaults"""

    def federations(self) -> list[Federation]:
        """Random configurations, each another in what matters to a round."""
        some = [
            {"seed": 1},
            {"seed": 2, "num_epochs": 1, "lr": 0.05, "proportion": 1.0},
            {"seed": 3, "sizes": (5, 9, 1, 4, 8), "num_steps": 3, "batch_size": 3, "proportion": 0.6},
        ]
        return [Federation(**{**one, **self.settings}) for one in some]


def hold_reference(proof: Proof, federation: Federation, backend: str, atol: float = 1e-9) -> float:
    """Ours comes to what the reference does. Returns the largest difference."""
    numbers = dict(proof.numbers)
    found = proof.reference(federation, **numbers)
    ours = train(proof.method, numbers, federation, backend)
    moved = [max(float((p - federation.start[name]).abs().max()) for name, p in s.items()) for s in found.servers]
    assert max(moved) > 1e-4 or found.personal is not None, "nothing is trained: nothing is shown"
    away = 0.0
    for r, (mine, theirs) in enumerate(zip(ours.servers, found.servers, strict=True), start=1):
        away = max(away, same(mine, theirs, f"server after round {r}", atol))
    for k, theirs in enumerate(found.personal or []):
        away = max(away, same(ours.personal[k], theirs, f"client {k}'s own model", atol))
    for k, theirs in enumerate(found.states or []):
        for entry, tensors in theirs.items():
            away = max(away, same(ours.states[k][entry], tensors, f"client {k}'s {entry}", atol))
    for entry, tensors in (found.server or {}).items():
        away = max(away, same(ours.server[entry], tensors, f"the server's {entry}", atol))
    return away


def hold_law(proof: Proof, law: Law) -> None:
    federation = Federation(**{"seed": 5, **proof.settings, **law.settings})
    ours = train(proof.method, {**proof.numbers, **law.numbers}, federation)
    if law.same_as is not None:
        theirs = train(law.same_as, dict(law.with_numbers), federation)
        for r, (mine, other) in enumerate(zip(ours.servers, theirs.servers, strict=True), start=1):
            same(mine, other, f"server after round {r}", law.atol)
    if law.holds is not None:
        law.holds(ours, federation)


def hold_permutation(proof: Proof) -> None:
    """Clients in another order, with all their samples at once: nothing changes, but for who is who."""
    settings = {"seed": 6, "batch_size": -1, "num_epochs": 2, "sizes": (6, 4, 5)}
    settings |= {**proof.settings, **proof.permuted, "proportion": 1.0}
    one = Federation(**settings)
    sizes = one.sizes
    order = [*range(1, len(sizes)), 0]
    other = Federation(**{**settings, "sizes": tuple(sizes[k] for k in order)})
    offsets = one.data.offsets
    rows = torch.cat([torch.arange(offsets[k], offsets[k + 1]) for k in order])
    data = replace(other.data, x_train=one.data.x_train[rows], y_train=one.data.y_train[rows])
    object.__setattr__(other, "data", data)
    a, b = (train(proof.method, dict(proof.numbers), f) for f in (one, other))
    same(a.servers[-1], b.servers[-1], "server", 1e-11)
    for place, k in enumerate(order):
        if a.personal[k] is not None:
            same(a.personal[k], b.personal[place], f"client {k}'s own model", 1e-11)


def same(mine: Params | None, theirs: Params, what: str, atol: float) -> float:
    """Asserts that they differ by no more, and returns by how much they do."""
    assert mine is not None, what
    assert mine.keys() == theirs.keys(), what
    most = 0.0
    for name, t in theirs.items():
        away = float((mine[name].to(t.dtype) - t).abs().max()) if t.numel() else 0.0
        assert away <= atol, f"{what}: `{name}` differs by {away:.2e}"
        most = max(most, away)
    return most
