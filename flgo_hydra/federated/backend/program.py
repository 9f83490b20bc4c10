"""A recorded step as a flat program over tensors that stay where they are.

Recorded once, a step is a list of ATen operations. The program runs the same list without autograd, without modules
and, as far as operations can write into a given tensor, without allocating: every intermediate gets its place in
memory once, so that views of it (a transposed weight, say) are made once too. What remains is one line of Python an
operation. New values of the state (parameters, optimizer slots) are written over the old ones, sums with products
straight into them (`linear.py`).

Intermediates share memory when they are not alive together; programs that run one at a time share an `Arena`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from flgo_hydra.federated.backend.arena import Arena
from flgo_hydra.federated.backend.in_place import split
from flgo_hydra.federated.backend.needed import needed, without_copies
from flgo_hydra.federated.backend.tape import Op
from flgo_hydra.federated.backend.writer import Program, Writer

if TYPE_CHECKING:
    from flgo_hydra.federated.backend.dual import VisitedSamples


def compile_program(
    ops: Sequence[Op],
    results: Sequence[tuple[Tensor, Tensor]],
    scalars: Mapping[str, Tensor],
    arena: Arena,
    samples: "VisitedSamples | None" = None,
) -> Program:
    """Makes a program of recorded operations.

    Args:
        results: pairs of a state tensor, read by the operations, and the recorded tensor of its next value.
        scalars: hyper-parameters by name, as the tensors without dimensions that stood for them. `Program.run` takes
            their values in this order; whoever calls it also fills the tensors, where the program `reads` them.
        samples: keeps the weights of layers on the samples themselves in another form (`dual.py`).
    Raises:
        CannotRecord: the operations cannot be replayed in place.
    """
    ops, same = without_copies(ops)
    results = [(state, same.of(value)) for state, value in results]
    results = [(state, value) for state, value in results if value is not state]
    ops = needed(ops, [value for _, value in results])
    sums, copies = split(ops, results, {id(t): name for name, t in scalars.items()})
    if samples is not None:
        ops, sums = samples.rewrite(ops, sums, [value for _, value in copies])
    late = [t for one in sums for t in one.reads] + [value for _, value in copies]
    ops = needed(ops, late)
    return Writer(ops, sums, copies, late, list(scalars), arena).write()
