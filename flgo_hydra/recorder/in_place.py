"""Which next values of a step's state are added to the old ones, in which order, and which are written over them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from flgo_hydra.recorder.linear import Sum, as_sum
from flgo_hydra.recorder.needed import mutated_by, producers_of
from flgo_hydra.recorder.operations import storage
from flgo_hydra.recorder.tape import CannotRecord, Op


def split(
    ops: Sequence[Op], results: Sequence[tuple[Tensor, Tensor]], scalars: Mapping[int, str]
) -> tuple[list[Sum], list[tuple[Tensor, Tensor]]]:
    """The next values that are sums with the old one, in the order to be added, and those that are written over it.

    A sum may read another's next value (a parameter, that of its momentum) or old one (a momentum, that of its decaying
    parameter): what a step makes of an optimizer's slots comes first.
    """
    producers = producers_of(ops)
    num_uses: dict[int, int] = {}
    for t in [t for op in ops for t in op.inputs] + [value for _, value in results]:
        num_uses[id(t)] = num_uses.get(id(t), 0) + 1
    changed = {storage(state) for state, _ in results} | mutated_by(ops)
    found = []
    for state, value in reversed(results):
        one = as_sum(state, value, producers, scalars, lambda t: num_uses.get(id(t)) == 1)
        if one is not None:
            found.append(one)
    while (wrong := _first_wrong(found, num_uses, changed)) is not None:
        found = [one for one in found if one is not wrong]
    states = {id(one.state) for one in found}
    copies = [(state, value) for state, value in results if id(state) not in states]
    if any(storage(value) in changed for _, value in copies):
        raise CannotRecord("the state moves from one tensor to another")
    new = {id(one.value): one.state for one in found}
    for one in found:
        one.rest = [replace(term, value=new.get(id(term.value), term.value)) for term in one.rest]
    return found, copies


def _first_wrong(sums: Sequence[Sum], num_uses: Mapping[int, int], changed: set[int]) -> Sum | None:
    """A sum that cannot be added in place, in this order."""
    place = {id(one.state): i for i, one in enumerate(sums)}
    new = {id(one.value): i for i, one in enumerate(sums)}
    read_in_sums: dict[int, int] = {}
    for i, one in enumerate(sums):
        for t in one.reads:
            is_term = any(t is term.value for term in one.rest)
            if id(t) in new:
                j = new[id(t)]
                if not is_term or j >= i or (sums[j].mask is None) != (one.mask is None):
                    return sums[j]
                read_in_sums[id(t)] = read_in_sums.get(id(t), 0) + 1
            elif is_term and place.get(id(t), i) > i:
                continue  # the old value, which is still there
            elif storage(t) in changed:
                return one
    for one in sums:
        # Nobody else may want the next value as a tensor of its own.
        if num_uses[id(one.value)] != 1 + read_in_sums.get(id(one.value), 0):
            return one
    return None


def stages(sums: Sequence[Sum]) -> list[list[Sum]]:
    """The sums, so that each stage reads only what earlier ones, or none, have changed."""
    stage: list[int] = []
    for i, one in enumerate(sums):
        own, reads = storage(one.state), {storage(t) for t in one.values}
        before = [
            stage[j]
            for j, other in enumerate(sums[:i])
            if storage(other.state) in reads or any(storage(t) == own for t in other.values)
        ]
        stage.append(1 + max(before, default=-1))
    return [[one for one, at in zip(sums, stage, strict=True) if at == number] for number in sorted(set(stage))]
