"""Which next values are sums that can be added to the old value in place.

A local step of SGD ends in `p - lr * g`, where `g` is most often a product of two small matrices, or a sum of such a
product and what the algorithm corrects: `g + mu * (p - anchor)`. Done as written, that makes the product, scales it
and subtracts it: three passes over as much memory as the model. As a sum of terms, each goes straight into `p`:
`p.addmm_(a, b, alpha=-lr)`. The result differs from the written one in the order of rounding only.

Where there are several terms they are summed first, and added once, as the written step does: each by itself may be
too small to change a float32 parameter (below 6e-8 of it), and would be lost in every step. `p * (1 - lr * decay)` is
`p` again where lr * decay is below 3e-8.

A factor may be a number that comes with each call, or a tensor: of one element, or with one number for each lane (the
first dimension). Products are then scaled through their smaller part. A value that is chosen by a mask, `where(active,
new, old)`, is a sum whose terms are nothing where the mask says no.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from flgo_hydra.recorder.tape import Op


@dataclass(frozen=True, eq=False)
class Factor:
    """A number times hyper-parameters: numbers whose values come with each call of a program, and tensors."""

    number: float = 1.0
    names: tuple[str, ...] = ()
    tensors: tuple[Tensor, ...] = ()

    def times(self, number: float, *names: str) -> "Factor":
        return Factor(self.number * number, tuple(sorted((*self.names, *names))), self.tensors)

    def times_tensor(self, tensor: Tensor) -> "Factor":
        return Factor(self.number, self.names, (*self.tensors, tensor))

    @property
    def is_one(self) -> bool:
        return self.number == 1.0 and not self.names and not self.tensors

    @property
    def code(self) -> str:
        """The part of it that is a number of Python."""
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


@dataclass(eq=False)
class Sum:
    """The next value of `state` is state * (1 + the sum of `own`) + rest + products; without the 1 if not `keeps`."""

    state: Tensor
    value: Tensor
    """the recorded tensor of the next value, where no mask has chosen it yet"""
    own: list[Factor] = field(default_factory=list)
    rest: list[Term] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    keeps: bool = True
    mask: Tensor | None = None
    """bool, of the state's number of dimensions, all but the first of size 1: where it is False, nothing is added"""

    @property
    def is_joint(self) -> bool:
        """What is added to the old value has several parts, or depends on it."""
        return self.keeps and (bool(self.own) or len(self.rest) + len(self.products) > 1)

    @property
    def reads(self) -> list[Tensor]:
        """Tensors that must be there when the terms are added."""
        factors = [*self.own, *(term.factor for term in self.rest), *(p.factor for p in self.products)]
        return [
            *self.values,
            *(tensor for factor in factors for tensor in factor.tensors),
            *([] if self.mask is None else [self.mask]),
        ]

    @property
    def values(self) -> list[Tensor]:
        """What is added: the terms and the products' parts."""
        return [term.value for term in self.rest] + [t for p in self.products for t in (p.a, p.b)]

    def of(self, state: Tensor, rest: list[Term], products: list[Product]) -> "Sum":
        """The same change with other terms, of another state."""
        return dataclasses.replace(self, state=state, rest=rest, products=products)


def as_sum(
    state: Tensor,
    value: Tensor,
    producers: Mapping[int, Op],
    scalars: Mapping[int, str],
    is_used_once: Callable[[Tensor], bool],
) -> Sum | None:
    """The next value as a sum with the old one, taken apart as far as nobody else needs the parts; None if it is not.

    Others may need the next value itself.

    Args:
        producers: the operation that made a tensor, by its id.
        scalars: names of the hyper-parameters, by their tensors' ids.
    """
    if not state.is_floating_point():
        return None
    found = Sum(state, value)
    op = producers.get(id(value))
    if op is not None and op.name == "aten.where.self" and op.args[2] is state and op.args[1].shape == state.shape:
        mask = op.args[0]
        is_by_lane = mask.dim() == state.dim() > 0 and mask.numel() == len(mask)
        if not is_by_lane or not is_used_once(value):
            return None
        found.mask, found.value = mask, op.args[1]
    for term in _terms(found.value, producers, scalars, is_used_once):
        product = _as_product(term, producers, is_used_once) if state.dim() in (2, 3) else None
        if term.value is state:
            found.own.append(term.factor)
        elif product is not None and product.a.dim() == state.dim():
            # A factor for each row of a matrix would have to scale the one part or the other.
            if state.dim() == 2 and (found.mask is not None or any(t.dim() for t in term.factor.tensors)):
                return None
            found.products.append(product)
        elif _fits(term.value, state):
            found.rest.append(term)
        else:
            return None
    if not found.own or any(t.dtype != state.dtype for t in found.values):
        return None
    unit = next((factor for factor in found.own if factor.is_one), None)
    found.keeps = unit is not None
    if unit is not None:
        found.own.remove(unit)
    return found


def _fits(value: Tensor, state: Tensor) -> bool:
    """The value has the state's shape, or the shape of each of its lanes."""
    return value.shape == state.shape or (value.dim() > 0 and value.shape == state.shape[-value.dim() :])


def _terms(
    value: Tensor, producers: Mapping[int, Op], scalars: Mapping[int, str], is_used_once: Callable[[Tensor], bool]
) -> list[Term]:
    terms: list[Term] = []
    parts = [Term(Factor(), value)]
    while parts:  # the first part last
        term = parts.pop()
        part, factor = term.value, term.factor
        op = producers.get(id(part))
        if op is None or part.shape != value.shape or not (part is value or is_used_once(part)):
            terms.append(term)
        elif op.name in ("aten.add.Tensor", "aten.sub.Tensor") and isinstance(op.args[1], Tensor):
            sign = 1 if op.name == "aten.add.Tensor" else -1
            parts.append(Term(factor.times(sign * op.kwargs.get("alpha", 1)), op.args[1]))
            parts.append(Term(factor, op.args[0]))
        else:
            scaled = _scaled(op, factor, scalars)
            (terms if scaled is None else parts).append(scaled or term)
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
    for number, tensor in (op.args, op.args[::-1]):
        if isinstance(tensor, Tensor) and isinstance(number, Tensor) and _is_number(number, tensor):
            return Term(factor.times_tensor(number), tensor)
    return None


def _is_number(tensor: Tensor, like: Tensor) -> bool:
    """One element, or one for each lane of `like`."""
    if not tensor.is_floating_point() or like.dim() < 2:
        return tensor.dim() == 0 and like.dim() > 0
    return tensor.dim() == 0 or (tensor.dim() == like.dim() > 0 and tensor.numel() == len(tensor) == len(like))


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
