"""An algorithm with parts: a subclass of its own class, so that who trains sees nothing new.

A class is made for each algorithm with parts. It calls the algorithm's methods as `super()` does, so whatever these
leave at FedAvg's stays as fast as FedAvg's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flgo_hydra.federated.algorithm.base import (
    Algorithm,
    Client,
    Hyper,
    State,
    Tensors,
    runs_program,
    takes_all_messages,
)
from flgo_hydra.federated.parts.base import Hostile, ServerRule, Transport
from flgo_hydra.federated.parts.build import Named, of_part
from flgo_hydra.federated.randomness import Purpose, numpy_generator
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.users_code import is_users


def composed(algorithm: Algorithm, parts: Sequence[Named], numbers: Mapping[str, float], seed: int) -> Algorithm:
    """Gives the algorithm these parts.

    Args:
        numbers: of the parts, by key.
        seed: of the run; it decides which clients are hostile.
    Raises:
        Refused: the algorithm cannot have one of them.
    """
    kind = type(algorithm)
    is_sending = any(isinstance(part, Hostile | Transport) for _, part in parts)
    rule = next((name for name, part in parts if isinstance(part, ServerRule)), None)
    if rule is not None and takes_all_messages(algorithm):
        raise Refused(f"`parts.{rule}` is a rule over all messages, but {kind.__name__} has one of its own.")
    bases: list[type[Algorithm]] = []
    if is_sending:
        bases.append(_SendsAtEnd if runs_program(algorithm) else _SendsWhenFinished)
    if rule is not None:
        bases.append(_Ruled)
    if not bases:
        return algorithm
    # Whose code it is: the user's where any of it is.
    users = next((type(part).__module__ for _, part in parts if is_users(type(part))), kind.__module__)
    algorithm.__class__ = type(kind.__name__, (*bases, kind), {"__module__": users})
    assert isinstance(algorithm, _WithParts)
    algorithm.parts, algorithm.seed = tuple(parts), seed
    algorithm.shares = {name: numbers[f"parts.{name}.share"] for name, part in parts if isinstance(part, Hostile)}
    return algorithm


class _WithParts(Algorithm):
    parts: tuple[Named, ...]
    shares: dict[str, float]
    """of the clients that are hostile, by name"""
    seed: int


class _Sends(_WithParts):
    """What is sent goes through the hands of hostile clients and over the way."""

    def more_facts(self, num_clients: int) -> Tensors:
        of_each = super().more_facts(num_clients)
        for name, who in hostile_clients(self.parts, self.shares, num_clients, self.seed).items():
            is_hostile = torch.zeros(num_clients)
            is_hostile[torch.from_numpy(who)] = 1.0
            of_each = {**of_each, f"is_hostile.{name}": is_hostile}
        return of_each

    def init_client(self, params: Tensors) -> State:
        own = super().init_client(params)
        travels = {name: p for name, p in params.items() if name not in self.private}
        return {**own, **{f"parts.{name}": part.first(travels) for name, part in self._transports()}}

    def _transports(self) -> list[tuple[str, Transport]]:
        return [(name, part) for name, part in self.parts if isinstance(part, Transport)]

    def _alone(self, client: Client) -> Client:
        """The client without what parts keep."""
        keys = {f"parts.{name}" for name, _ in self._transports()}
        return client._replace(state={key: ts for key, ts in client.state.items() if key not in keys})

    def _sent(self, returned: tuple[State, State], client: Client, hyper: Hyper) -> tuple[State, State]:
        message, kept = returned
        kept = dict(kept)
        for name, part in self.parts:
            if isinstance(part, Hostile):
                theirs = part.message(message, client, of_part(name, hyper))
                self._require(f"`message` of `parts.{name}`", message, theirs)
                is_hostile = client.facts[f"is_hostile.{name}"] > 0
                message = {
                    entry: {n: torch.where(is_hostile, theirs[entry][n], t) for n, t in tensors.items()}
                    for entry, tensors in message.items()
                }
        for name, part in self._transports():
            if "update" not in message:
                raise Refused(f"`parts.{name}` works on the entry `update` of messages, which have none.")
            key = f"parts.{name}"
            update, memory = part.send(message["update"], client.state[key], client, of_part(name, hyper))
            self._require(f"`send` of `parts.{name}`", {"update": message["update"]}, {"update": update})
            message, kept[key] = {**message, "update": update}, memory
        return message, kept

    def _require(self, what: str, given: State, found: State) -> None:
        wanted, got = ({(e, n): t.shape for e, ts in state.items() for n, t in ts.items()} for state in (given, found))
        if wanted != got:
            wrong = next(key for key in (*wanted, *got) if wanted.get(key) != got.get(key))
            raise Refused(f"{what} must keep names and shapes of what it is given, but does not keep {wrong[1]!r}.")


class _SendsWhenFinished(_Sends):
    def finish(self, params: Tensors, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        return self._sent(super().finish(params, self._alone(client), num_steps, hyper), client, hyper)


class _SendsAtEnd(_Sends):
    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        return self._sent(super().end(carry, self._alone(client), num_steps, hyper), client, hyper)


class _Ruled(_WithParts):
    """One of the parts is the server's rule."""

    def combine(self, messages: State, weights: Mapping[str, Tensor], hyper: Hyper) -> State:
        name, rule = next((name, part) for name, part in self.parts if isinstance(part, ServerRule))
        own = of_part(name, hyper)
        found = {entry: rule.combine(tensors, weights[entry], own) for entry, tensors in messages.items()}
        for entry, tensors in messages.items():
            for key, t in tensors.items():
                if key not in found[entry] or found[entry][key].shape != t.shape[1:]:
                    raise Refused(
                        f"`combine` of `parts.{name}` must return {key!r} of the shape {tuple(t.shape[1:])}, without "
                        "the dimension of the clients."
                    )
        return found


def hostile_clients(
    parts: Sequence[Named], shares: Mapping[str, float], num_clients: int, seed: int
) -> dict[str, np.ndarray]:
    """Who is hostile, by the part's name: ids, ascending."""
    found = {}
    for number, name in enumerate(name for name, part in parts if isinstance(part, Hostile)):
        rng = numpy_generator(seed, Purpose.PARTS, 0, number)
        # 0.29 * 100 is 28.999…: the added grain keeps what the user meant.
        size = int(num_clients * shares[name] + 1e-9)
        found[name] = np.sort(rng.choice(num_clients, size=size, replace=False))
    return found
