"""Writes a program's lines of Python, one an operation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flgo_hydra.recorder.arena import Arena
from flgo_hydra.recorder.in_place import stages
from flgo_hydra.recorder.linear import Factor, Sum, Term
from flgo_hydra.recorder.needed import is_constant, mutated_by, producers_of
from flgo_hydra.recorder.operations import (
    fills_with_zeros,
    geometry,
    in_place_form,
    is_fill,
    is_pointwise,
    is_random,
    is_view,
    out_form,
    plain_call,
    storage,
)
from flgo_hydra.recorder.tape import Op, tensors_in


class Program:
    """A callable that does a recorded step in place, given the hyper-parameters as floats."""

    def __init__(self, step: Callable[..., None], source: str, inputs: set[int], is_random: bool) -> None:
        self.run = step
        self.source = source
        """the lines that run, to look at"""
        self.is_random = is_random
        """it draws random numbers"""
        self._inputs = inputs

    def reads(self, tensor: Tensor) -> bool:
        """Whether the program looks at this tensor's memory."""
        return storage(tensor) in self._inputs


class Writer:
    """Writes a program's lines. A tensor is static when it is the same object in every call."""

    def __init__(
        self,
        ops: Sequence[Op],
        sums: Sequence[Sum],
        copies: Sequence[tuple[Tensor, Tensor]],
        late: Sequence[Tensor],
        scalars: Sequence[str],
        arena: Arena,
    ) -> None:
        self._ops, self._sums, self._copies, self._late, self._scalars = ops, sums, copies, late, scalars
        self._places = arena.places()
        self._producers = producers_of(ops)
        self._mutated = mutated_by(ops)
        self._last_use = {storage(t): i for i, op in enumerate(ops) for t in [*op.inputs, *op.outputs]}
        self._last_use |= {storage(t): len(ops) for t in late}
        given = [t for t in [*late, *(t for op in ops for t in op.inputs)] if id(t) not in self._producers]
        self._given = {storage(t) for t in given} | {storage(one.state) for one in sums}
        self._static: dict[int, Tensor] = {}
        self._constants: set[int] = set()  # statics that never change, by the recorded tensor's id
        self._registers: dict[int, str] = {}
        self._objects: list[Any] = []
        self._object_names: dict[int, str] = {}
        self._lines: list[str] = []
        self._inputs: set[int] = set()
        self._scaled_parts: dict[tuple[int, ...], str] = {}
        self._numbers: dict[tuple[int, torch.dtype], str] = {}

    def write(self) -> Program:
        self._in_place = self._results_in_place()
        for i, op in enumerate(self._ops):
            self._write_op(op, i)
            for t in [*op.inputs, *op.outputs]:
                if self._last_use[storage(t)] <= i:
                    self._places.give_back(t)
                    if id(t) in self._registers:
                        self._lines.append(f"del {self._registers.pop(id(t))}")
        self._write_sums()
        copies = [(s, value) for s, value in self._copies if id(value) not in self._in_place]
        if copies:
            self._call(torch._foreach_copy_, self._list(s for s, _ in copies), self._list(v for _, v in copies))
        constants = ", ".join(f"c{i}" for i in range(len(self._objects)))
        body = "\n        ".join(self._lines or ["pass"])
        source = f"def make({constants}):\n    def step({', '.join(self._scalars)}):\n        {body}\n    return step\n"
        namespace: dict[str, Any] = {}
        exec(compile(source, "<a recorded step>", "exec"), namespace)
        return Program(namespace["make"](*self._objects), source, self._inputs, any(map(is_random, self._ops)))

    def _results_in_place(self) -> dict[int, Tensor]:
        """Values that can be computed right over the state they replace, by id: nobody reads the old one later."""
        found: dict[int, Tensor] = {}
        changed = [storage(s) for s, _ in self._copies] + [storage(one.state) for one in self._sums]
        late = {storage(t) for t in self._late}
        for state, value in self._copies:
            op, key = self._producers.get(id(value)), storage(state)
            if op is None or geometry(value) != geometry(state) or changed.count(key) > 1 or key in late:
                continue
            if is_view(op) or is_fill(op) or op.mutated or out_form(op.function) is None:
                continue
            at = next(i for i, one in enumerate(self._ops) if one is op)
            reads = [t for t in op.inputs if storage(t) == key]
            if self._last_use.get(key, -1) <= at and all(is_pointwise(op) and t is state for t in reads):
                found[id(value)] = state
        return found

    def _write_op(self, op: Op, i: int) -> None:
        made = [t for t in op.outputs if self._producers.get(id(t)) is op]
        inputs = list(op.inputs)
        follows = bool(inputs) and all(id(t) in self._constants for t in inputs) and not is_random(op)
        is_changed = any(storage(t) in self._mutated for t in made)
        if is_constant(op, self._mutated) or (follows and not is_changed and not op.mutated):
            for t in made:
                self._static[id(t)] = t.clone()
                self._constants.add(id(t))
            return
        if is_view(op) and all(self._find(t) is not None for t in op.inputs):
            again = op.function(*self._swap(op.args), **{key: self._swap(v) for key, v in op.kwargs.items()})
            for t, now in zip(op.outputs, tensors_in(again), strict=True):
                self._static[id(t)] = now
            return
        if fills_with_zeros(op):
            self._static[id(op.output)] = self._places.take(op.output)
            self._call(torch.Tensor.zero_, self._name(op.output))
            return
        if op.name == "aten.clone.default":
            self._static[id(op.output)] = self._places.take(op.output)
            self._call(torch.Tensor.copy_, self._name(op.output), self._name(op.args[0]))
            return
        form = None if op.mutated or not made else out_form(op.function)
        if form is not None and len(form[1]) == len(made):
            function, names = form
            for t in made:
                self._static[id(t)] = self._place(op, t, i)
            outs = [f"{name}={self._name(t)}" for name, t in zip(names, made, strict=True)]
            self._call(function, *self._arguments(op), *outs)
            return
        over = self._dying_input(op, made[0], i) if len(made) == 1 else None
        changing = in_place_form(op.function) if over is not None and over is op.args[0] else None
        if over is not None and changing is not None:
            self._call(changing, *self._arguments(op))
            if id(over) in self._static:
                self._static[id(made[0])] = self._static[id(over)]
                self._places.hand_over(over, made[0])
            else:
                self._registers[id(made[0])] = self._registers.pop(id(over))
            return
        arguments = ", ".join(self._arguments(op))
        call = f"{self._constant(plain_call(op.function))}({arguments})"
        if not made:
            self._lines.append(call)
        elif isinstance(op.output, Tensor):
            self._lines.append(f"{self._register(op.output)} = {call}")
        else:
            targets = [self._register(t) if any(t is one for one in made) else "_" for t in op.output]
            self._lines.append(f"{', '.join(targets)}, = {call}")

    def _place(self, op: Op, t: Tensor, i: int) -> Tensor:
        """Where the operation writes its result."""
        if id(t) in self._in_place:
            return self._in_place[id(t)]
        over = self._dying_input(op, t, i)
        if over is None or id(over) not in self._static:
            return self._places.take(t)
        self._places.hand_over(over, t)
        return self._static[id(over)]

    def _dying_input(self, op: Op, t: Tensor, i: int) -> Tensor | None:
        """An input of a pointwise operation that nobody needs later, and whose memory the result can take."""
        for one in op.inputs if is_pointwise(op) and not op.mutated else ():
            if self._last_use[storage(one)] > i or storage(one) in self._given or geometry(one) != geometry(t):
                continue
            is_ours = self._places.holds(one) if id(one) in self._static else id(one) in self._registers
            if is_ours and all(other is one for other in op.inputs if storage(other) == storage(one)):
                return one
        return None

    def _write_sums(self) -> None:
        for sums in stages(self._sums):
            self._write_stage(sums)

    def _write_stage(self, sums: Sequence[Sum]) -> None:
        """Adds sums of which none reads what another changes."""
        matrices = [one for one in sums if one.is_joint and one.products]
        for one in matrices:  # one at a time: what they add is as large as they are
            into, rest, scale = self._begin_joint(one)
            self._add_products(one, into, None, scale)
            for term in rest:
                self._add_term(into, term)
            self._end_joint([(one, into)])
        others = [one for one in sums if not (one.is_joint and one.products)]
        totals = {id(one): self._begin_joint(one) for one in others if one.is_joint}
        added: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for one in others:
            into, rest, _ = totals.get(id(one), (one.state, one.rest, ""))
            mask = None if one.is_joint else one.mask
            if not one.keeps:
                self._call(torch.Tensor.mul_, self._name(one.state), self._own_factor(one))
            for term in rest:
                if mask is None and not term.factor.tensors and term.value.shape == one.state.shape:
                    added.setdefault(term.factor.code, []).append((into, term.value))
                else:
                    self._add_term(into, term, mask)
        for code, pairs in added.items():
            # One call for all states; a state with two terms of one factor has a call of its own for the second.
            first = {id(pair[0]): pair for pair in reversed(pairs)}
            again = [pair for pair in pairs if not any(pair is one for one in first.values())]
            together = list(first.values())
            self._call(
                torch._foreach_add_,
                self._list(s for s, _ in together),
                self._list(v for _, v in together),
                f"alpha={code}",
            )
            for state, value in again:
                self._call(torch.Tensor.add_, self._name(state), self._name(value), f"alpha={code}")
        for one in others:
            if not one.is_joint:
                self._add_products(one, one.state, one.mask)
        self._end_joint([(one, totals[id(one)][0]) for one in others if one.is_joint])

    def _begin_joint(self, one: Sum) -> tuple[Tensor, list[Term], str]:
        """Where what a sum adds is summed first, with a first part of it; the terms that are still to be added; and
        what the part is still to be multiplied with, by the first product."""
        total = self._places.take(one.state)
        out, rest = f"out={self._name(total)}", list(one.rest)
        parts = [Term(factor, one.state) for factor in one.own] + rest
        parts = [t for t in parts if not t.factor.tensors and t.value.shape == one.state.shape]
        if one.products and len(one.own) < 2 and len(parts) > 1:
            a, b = parts[:2]
            is_own = not one.own or a.value is one.state
            if is_own and a.factor.names == b.factor.names and a.factor.number != 0:
                # (w - w_t) and (c - c_i) are one operation, whose factor the product takes along.
                ratio = b.factor.number / a.factor.number
                self._call(torch.add, self._name(a.value), self._name(b.value), f"alpha={ratio!r}", out)
                return total, [term for term in rest if term is not a and term is not b], a.factor.code
        if one.own:
            self._call(torch.mul, self._name(one.state), self._sum_of(one.own, one.state, 0.0)[0], out)
        elif parts:
            rest = [term for term in rest if term is not parts[0]]
            self._call(torch.mul, self._name(parts[0].value), parts[0].factor.code, out)
        else:
            self._call(torch.Tensor.zero_, self._name(total))
        return total, rest, ""

    def _end_joint(self, sums: Sequence[tuple[Sum, Tensor]]) -> None:
        """Adds to the states what was summed."""
        for one, total in sums:
            if one.mask is not None:
                # What an idle lane computes may not be finite: 0 times it would not be 0.
                name = self._name(total)
                self._call(torch.where, self._name(one.mask), name, self._zero(one.state), f"out={name}")
        if len(sums) == 1:
            self._call(torch.Tensor.add_, self._name(sums[0][0].state), self._name(sums[0][1]))
        elif sums:
            self._call(torch._foreach_add_, self._list(one.state for one, _ in sums), self._list(t for _, t in sums))
        for one, _ in sums:
            self._places.give_back(one.state)

    def _add_products(self, one: Sum, into: Tensor, mask: Tensor | None, scale: str = "") -> None:
        """Adds a sum's products; the first after it has multiplied what is there with `scale`."""
        for product in one.products:
            function = torch.Tensor.addmm_ if one.state.dim() == 2 else torch.Tensor.baddbmm_
            turned = into.mT if product.is_transposed else into
            a, b = self._name(product.a), self._name(product.b)
            if product.a.numel() <= product.b.numel():
                a = self._scaled(product.a, product.factor, mask)
            else:
                b = self._scaled(product.b, product.factor, mask)
            beta = [f"beta={scale}"] if scale and product is one.products[0] else []
            self._call(function, self._constant(turned), a, b, *beta, f"alpha={product.factor.code}")

    def _own_factor(self, one: Sum) -> str:
        """What a state that is not kept is multiplied with: the sum of `own`, and 1 where the mask says no."""
        if one.mask is None:
            return self._sum_of(one.own, one.state, 0.0)[0]
        total, _ = self._sum_of(one.own, one.state, -1.0)  # a mask's 1 is added last
        shape = one.mask.shape
        scaled = self._temporary(shape, one.state, torch.mul, self._as_number(one.mask, one.state), total)
        return self._temporary(shape, one.state, torch.add, scaled, "1.0")

    def _sum_of(self, factors: Sequence[Factor], state: Tensor, first: float) -> tuple[str, torch.Size]:
        """A number plus factors, and its shape."""
        total = " + ".join([repr(first), *(f.code for f in factors if not f.tensors)])
        shape = torch.Size()
        for factor in factors:
            if factor.tensors:
                product, its = self._product_of(factor.tensors, state)
                product = self._temporary(its, state, torch.mul, product, factor.code)
                shape = _broadcast(shape, its)
                total = self._temporary(shape, state, torch.add, product, total)
        return total, shape

    def _add_term(self, into: Tensor, term: Term, mask: Tensor | None = None) -> None:
        """A term that a mask, a tensor, or another shape keeps from being added with others."""
        value, state = self._name(term.value), self._name(into)
        scale, shape = self._product_of(term.factor.tensors, into) if term.factor.tensors else ("", torch.Size())
        if mask is not None and id(term.value) in self._producers:
            # What an idle lane computes may not be finite: 0 times it would not be 0.
            value = self._temporary(into.shape, into, torch.where, self._name(mask), value, self._zero(into))
        elif mask is not None:
            active = self._as_number(mask, into)
            shape = _broadcast(shape, mask.shape)
            scale = self._temporary(shape, into, torch.mul, scale, active) if scale else active
        if scale:
            self._call(torch.Tensor.addcmul_, state, value, scale, f"value={term.factor.code}")
        else:
            self._call(torch.Tensor.add_, state, value, f"alpha={term.factor.code}")

    def _scaled(self, part: Tensor, factor: Factor, mask: Tensor | None) -> str:
        """A part of a product with the tensors among its factor, and zeros where the mask says no."""
        key = (id(part), *map(id, factor.tensors), id(mask))
        if key not in self._scaled_parts:
            name = self._name(part)
            if mask is not None:
                name = self._temporary(part.shape, part, torch.where, self._name(mask), name, self._zero(part))
            for tensor in factor.tensors:
                name = self._temporary(part.shape, part, torch.mul, name, self._name(tensor))
            self._scaled_parts[key] = name
        return self._scaled_parts[key]

    def _product_of(self, tensors: Sequence[Tensor], like: Tensor) -> tuple[str, torch.Size]:
        name, shape = self._name(tensors[0]), tensors[0].shape
        for other in tensors[1:]:
            shape = _broadcast(shape, other.shape)
            name = self._temporary(shape, like, torch.mul, name, self._name(other))
        return name, shape

    def _as_number(self, mask: Tensor, like: Tensor) -> str:
        """A mask as zeros and ones."""
        key = (id(mask), like.dtype)
        if key not in self._numbers:
            number = torch.empty(mask.shape, dtype=like.dtype, device=like.device)
            self._numbers[key] = self._constant(number)
            self._call(torch.Tensor.copy_, self._numbers[key], self._name(mask))
        return self._numbers[key]

    def _zero(self, like: Tensor) -> str:
        return self._constant(torch.zeros((), dtype=like.dtype, device=like.device))

    def _temporary(self, shape: torch.Size, like: Tensor, function: Callable[..., Any], *arguments: str) -> str:
        """Calls the function into memory of its own, which has the dtype of `like`."""
        out = self._constant(torch.empty(shape, dtype=like.dtype, device=like.device))
        self._call(function, *arguments, f"out={out}")
        return out

    def _call(self, function: Callable[..., Any], *arguments: str) -> None:
        self._lines.append(f"{self._constant(function)}({', '.join(arguments)})")

    def _arguments(self, op: Op) -> list[str]:
        return [*map(self._name, op.args), *(f"{key}={self._name(value)}" for key, value in op.kwargs.items())]

    def _list(self, tensors: Any) -> str:
        return f"[{', '.join(map(self._name, tensors))}]"

    def _find(self, t: Tensor) -> Tensor | None:
        """The tensor that stands for a recorded one in every call, or None where each call makes its own."""
        if id(t) in self._static or id(t) in self._producers:
            return self._static.get(id(t))
        self._inputs.add(storage(t))
        return t

    def _swap(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self._swap(item) for item in value)
        return self._find(value) if isinstance(value, Tensor) else value

    def _name(self, value: Any) -> str:
        """What stands in a line for an argument."""
        if isinstance(value, Tensor):
            found = self._find(value)
            return self._registers[id(value)] if found is None else self._constant(found)
        if isinstance(value, list | tuple) and next(tensors_in(value), None) is not None:
            return self._list(value)
        return repr(value) if value is None or isinstance(value, int) else self._constant(value)

    def _constant(self, value: Any) -> str:
        if id(value) not in self._object_names:
            self._object_names[id(value)] = f"c{len(self._objects)}"
            self._objects.append(value)  # which also keeps its id its own
        return self._object_names[id(value)]

    def _register(self, t: Tensor) -> str:
        self._registers[id(t)] = f"r{len(self._lines)}_{len(self._registers)}"
        return self._registers[id(t)]


def _broadcast(*shapes: torch.Size) -> torch.Size:
    return torch.Size(np.broadcast_shapes(*shapes))
