"""Which next values are sums that can be added to the old value in place.

A local step of SGD ends in `p - lr * g`, where `g` is most often a product of two small matrices, or a sum of such a
product and what the algorithm corrects: `g + mu * (p - anchor)`. Done as written, that makes the product, scales it
and subtracts it: three passes over as much memory as the model. As a sum of terms, each goes straight into `p`:
`p.addmm_(a, b, alpha=-lr)`. The result differs from the written one in the order of rounding only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from flgo_hydra.federated.backend.tape import Op


@dataclass(frozen=True)
class Factor:
    """A number times hyper-parameters, whose values come with each call of a program."""

    number: float = 1.0
    names: tuple[str, ...] = ()

    def times(self, number: float, *names: str) -> "Factor":
        return Factor(self.number * number, tuple(sorted((*self.names, *names))))

    @property
    def code(self) -> str:
        return " * ".join([repr(self.number), *self.names])


@dataclass(frozen=True)
class Term:
    factor: Factor
    value: Tensor


@dataclass(frozen=True)
class Product:
    """factor * a @ b, or its transpose."""

    factor: Factor
    a: Tensor
    b: Tensor
    is_transposed: bool


@dataclass
class Sum:
    """The next value of `state` is state * (1 + the sum of `own`) + rest + products."""

    state: Tensor
    own: list[Factor] = field(default_factory=list)
    rest: list[Term] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)

    @property
    def reads(self) -> list[Tensor]:
        """Tensors that must be there when the terms are added."""
        return [term.value for term in self.rest] + [t for p in self.products for t in (p.a, p.b)]


def as_sum(
    state: Tensor,
    value: Tensor,
    producers: Mapping[int, Op],
    scalars: Mapping[int, str],
    is_used_once: Callable[[Tensor], bool],
) -> Sum | None:
    """The next value as a sum with the old one, taken apart as far as nobody else needs the parts; None if it is not.

    Args:
        producers: the operation that made a tensor, by its id.
        scalars: names of the hyper-parameters, by their tensors' ids.
    """
    if not is_used_once(value) or not state.is_floating_point():
        return None
    found = Sum(state)
    for term in _terms(value, producers, scalars, is_used_once):
        product = _as_product(term, producers, is_used_once) if state.dim() in (2, 3) else None
        if term.value is state:
            found.own.append(term.factor)
        elif product is not None and product.a.dim() == state.dim():
            found.products.append(product)
        elif term.value.shape == state.shape:
            found.rest.append(term)
        else:
            return None
    if Factor() not in found.own or any(t.dtype != state.dtype for t in found.reads):
        return None
    found.own.remove(Factor())
    return found


def _terms(
    value: Tensor, producers: Mapping[int, Op], scalars: Mapping[int, str], is_used_once: Callable[[Tensor], bool]
) -> list[Term]:
    terms: list[Term] = []

    def visit(part: Tensor, factor: Factor) -> None:
        op = producers.get(id(part))
        if op is None or part.shape != value.shape or not is_used_once(part):
            terms.append(Term(factor, part))
        elif op.name in ("aten.add.Tensor", "aten.sub.Tensor") and isinstance(op.args[1], Tensor):
            sign = 1 if op.name == "aten.add.Tensor" else -1
            visit(op.args[0], factor)
            visit(op.args[1], factor.times(sign * op.kwargs.get("alpha", 1)))
        elif (scaled := _scaled(op, factor, scalars)) is not None:
            visit(scaled.value, scaled.factor)
        else:
            terms.append(Term(factor, part))

    visit(value, Factor())
    return terms


def _scaled(op: Op, factor: Factor, scalars: Mapping[int, str]) -> Term | None:
    """A product with a number or a hyper-parameter, as a term."""
    if op.name not in ("aten.mul.Tensor", "aten.mul.Scalar"):
        return None
    for number, tensor in (op.args, op.args[::-1]):
        if isinstance(tensor, Tensor) and isinstance(number, int | float):
            return Term(factor.times(number), tensor)
        if isinstance(tensor, Tensor) and id(number) in scalars:
            return Term(factor.times(1.0, scalars[id(number)]), tensor)
    return None


def _as_product(term: Term, producers: Mapping[int, Op], is_used_once: Callable[[Tensor], bool]) -> Product | None:
    """The matrix product that a term is, seen through transposes."""
    value, is_transposed = term.value, False
    while (op := producers.get(id(value))) is not None and is_used_once(value):
        if op.name in ("aten.mm.default", "aten.bmm.default"):
            return Product(term.factor, op.args[0], op.args[1], is_transposed)
        is_swap = op.name == "aten.transpose.int" and {d % value.dim() for d in op.args[1:]} == {
            value.dim() - 2,
            value.dim() - 1,
        }
        if not is_swap and op.name != "aten.t.default":
            return None
        value, is_transposed = op.args[0], not is_transposed
    return None
