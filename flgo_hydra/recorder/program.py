"""A recorded step as a flat program over tensors that stay where they are.

Recorded once, a step is a list of ATen operations. The program runs the same list without autograd, without modules
and, as far as operations can write into a given tensor, without allocating: every intermediate gets its place in
memory once, so that views of it (a transposed weight, say) are made once too. What remains is one line of Python an
operation. New values of the state (parameters, optimizer slots) are written over the old ones, sums with products
straight into them (`linear.py`).

Intermediates share memory when they are not alive together; programs that run one at a time share an `Arena`.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from flgo_hydra.recorder.arena import Arena
from flgo_hydra.recorder.in_place import split
from flgo_hydra.recorder.linear import Sum
from flgo_hydra.recorder.needed import needed, without_copies
from flgo_hydra.recorder.tape import Op
from flgo_hydra.recorder.writer import Program, Writer

Rewrite = Callable[[Sequence[Op], Sequence[Sum], Sequence[Tensor]], tuple[list[Op], list[Sum]]]
"""(operations, sums, what else is needed of the operations) -> both in another form"""


def compile_program(
    ops: Sequence[Op],
    results: Sequence[tuple[Tensor, Tensor]],
    scalars: Mapping[str, Tensor],
    arena: Arena,
    rewrite: Rewrite | None = None,
) -> Program:
    """Makes a program of recorded operations.

    Args:
        results: pairs of a state tensor, read by the operations, and the recorded tensor of its next value.
        scalars: hyper-parameters by name, as the tensors without dimensions that stood for them. `Program.run` takes
            their values in this order; whoever calls it also fills the tensors, where the program `reads` them.
        rewrite: gives operations and sums another form.
    Raises:
        CannotRecord: the operations cannot be replayed in place.
    """
    ops, same = without_copies(ops)
    results = [(state, same.of(value)) for state, value in results]
    results = [(state, value) for state, value in results if value is not state]
    ops = needed(ops, [value for _, value in results])
    sums, copies = split(ops, results, {id(t): name for name, t in scalars.items()})
    if rewrite is not None:
        ops, sums = rewrite(ops, sums, [value for _, value in copies])
    late = [t for one in sums for t in one.reads] + [value for _, value in copies]
    ops = needed(ops, late)
    return Writer(ops, sums, copies, late, list(scalars), arena).write()
