"""A recorded step as a flat program over tensors that stay where they are.

Recorded once, a step is a list of ATen operations. The program runs the same list without autograd, without modules
and, as far as operations can write into a given tensor, without allocating: every intermediate gets its place in
memory once, so that views of it (a transposed weight, say) are made once too. What remains is one line of Python an
operation. New values of the state (parameters, optimizer slots) are written over the old ones, sums with products
straight into them (`linear.py`).

Intermediates share memory when they are not alive together; programs that run one at a time share an `Arena`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flgo_hydra.federated.backend.linear import Factor, Sum, Term, as_sum
from flgo_hydra.federated.backend.operations import (
    fills_with_zeros,
    geometry,
    in_place_form,
    is_fill,
    is_pointwise,
    is_random,
    is_times_one,
    is_view,
    out_form,
    plain_call,
    storage,
)
from flgo_hydra.federated.backend.tape import CannotRecord, Op, tensors_in

if TYPE_CHECKING:
    from flgo_hydra.federated.backend.dual import VisitedSamples

_ALIGN = 64


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


def compile_program(
    ops: Sequence[Op],
    results: Sequence[tuple[Tensor, Tensor]],
    scalars: Mapping[str, Tensor],
    arena: "Arena",
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
    ops, same = _without_copies(ops)
    results = [(state, same.of(value)) for state, value in results]
    results = [(state, value) for state, value in results if value is not state]
    ops = needed(ops, [value for _, value in results])
    sums, copies = _split(ops, results, {id(t): name for name, t in scalars.items()})
    if samples is not None:
        ops, sums = samples.rewrite(ops, sums, [value for _, value in copies])
    late = [t for one in sums for t in one.reads] + [value for _, value in copies]
    ops = needed(ops, late)
    return _Writer(ops, sums, copies, late, list(scalars), arena).write()


def _mutated(ops: Sequence[Op]) -> set[int]:
    return {storage(t) for op in ops for t in op.mutated}


def producers_of(ops: Sequence[Op]) -> dict[int, Op]:
    """The operation that made a tensor, by the tensor's id."""
    return {id(t): op for op in ops for t in op.outputs if all(t is not one for one in op.inputs)}


class _Same(dict[int, Tensor]):
    """Which tensor one is again, by id."""

    # A method, not a function within a function that calls itself: such a circle would keep what was recorded alive.
    def of(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(self.of(item) for item in value)
        while id(value) in self:
            value = self[id(value)]
        return value


def _without_copies(ops: Sequence[Op]) -> tuple[list[Op], _Same]:
    """Drops operations whose result is the same tensor again; says which one a dropped result was."""
    same = _Same()
    kept = []
    made, mutated = producers_of(ops), _mutated(ops)
    for op in ops:
        args, out = same.of(op.args), op.output
        first = args[0] if args else None
        if isinstance(first, Tensor) and isinstance(out, Tensor) and out is not first and not op.mutated:
            # Of what is given, which stays; an intermediate's memory may serve another one by then.
            is_copy = is_times_one(op) and id(first) not in made and not {storage(out), storage(first)} & mutated
            is_same = storage(out) == storage(first) or is_copy
            if is_same and geometry(out) == geometry(first):
                same[id(out)] = first
                continue
        kwargs = {key: same.of(value) for key, value in op.kwargs.items()}
        kept.append(Op(op.function, args, kwargs, out, same.of(op.mutated)))
    return kept, same


def needed(ops: Sequence[Op], wanted: Sequence[Tensor]) -> list[Op]:
    """The operations that the wanted tensors come from, and those that change something or draw numbers."""
    mutated = _mutated(ops)
    needed = {id(t) for t in wanted}
    kept = []
    for op in reversed(ops):
        if op.mutated or is_random(op) or any(id(t) in needed for t in op.outputs):
            kept.append(op)
            # Only the shape is asked of what a tensor of ones is to be like.
            needed |= set() if _is_constant(op, mutated) or fills_with_zeros(op) else {id(t) for t in op.inputs}
    return kept[::-1]


def _is_constant(op: Op, mutated: set[int]) -> bool:
    return is_fill(op) and storage(op.output) not in mutated


def _split(
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
    changed = {storage(state) for state, _ in results} | _mutated(ops)
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


def _stages(sums: Sequence[Sum]) -> list[list[Sum]]:
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


def _broadcast(*shapes: torch.Size) -> torch.Size:
    return torch.Size(np.broadcast_shapes(*shapes))


class Arena:
    """Blocks of memory on one device, for the intermediates of programs that never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: list[Tensor] = []

    @property
    def num_bytes(self) -> int:
        return sum(len(block) for block in self._blocks)

    def places(self) -> "_Places":
        return _Places(self._blocks, self._device)


class _Places:
    """Who of one program's intermediates lies in which block, while the program is written line by line."""

    def __init__(self, blocks: list[Tensor], device: torch.device) -> None:
        self._blocks = blocks
        self._device = device
        self._free = set(range(len(blocks)))
        self._taken: dict[int, int] = {}  # block by the storage of the recorded tensor

    def holds(self, t: Tensor) -> bool:
        return storage(t) in self._taken

    def take(self, t: Tensor) -> Tensor:
        """A tensor of the same form as `t` in the smallest free block, or in a new one."""
        span = 1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)) if t.numel() else 1
        num_bytes = -(-span * t.element_size() // _ALIGN) * _ALIGN
        fits = [i for i in self._free if len(self._blocks[i]) >= num_bytes]
        number = min(fits, key=lambda i: len(self._blocks[i]), default=len(self._blocks))
        if not fits:
            self._blocks.append(torch.empty(num_bytes, dtype=torch.uint8, device=self._device))
        self._free.discard(number)
        self._taken[storage(t)] = number
        return self._blocks[number].view(t.dtype).as_strided(t.shape, t.stride(), 0)

    def hand_over(self, old: Tensor, new: Tensor) -> None:
        self._taken[storage(new)] = self._taken.pop(storage(old))

    def give_back(self, t: Tensor) -> None:
        if self.holds(t):
            self._free.add(self._taken.pop(storage(t)))


class _Writer:
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
        self._mutated = _mutated(ops)
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
        if _is_constant(op, self._mutated) or (follows and not is_changed and not op.mutated):
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
        for sums in _stages(self._sums):
            self._write_stage(sums)

    def _write_stage(self, sums: Sequence[Sum]) -> None:
        """Adds sums of which none reads what another changes."""
        for one in sums:
            if one.own or not one.keeps:
                self._call(torch.Tensor.mul_, self._name(one.state), self._own_factor(one))
        added: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for one in sums:
            for term in one.rest:
                if one.mask is None and not term.factor.tensors and term.value.shape == one.state.shape:
                    added.setdefault(term.factor.code, []).append((one.state, term.value))
                else:
                    self._add_term(one, term)
        for code, pairs in added.items():
            # One call for all states; a state with two terms of one factor has a call of its own for the second.
            first = {id(pair[0]): pair for pair in reversed(pairs)}
            others = [pair for pair in pairs if not any(pair is one for one in first.values())]
            together = list(first.values())
            self._call(
                torch._foreach_add_,
                self._list(s for s, _ in together),
                self._list(v for _, v in together),
                f"alpha={code}",
            )
            for state, value in others:
                self._call(torch.Tensor.add_, self._name(state), self._name(value), f"alpha={code}")
        for one in sums:
            for product in one.products:
                function = torch.Tensor.addmm_ if one.state.dim() == 2 else torch.Tensor.baddbmm_
                into = one.state.mT if product.is_transposed else one.state
                a, b = self._name(product.a), self._name(product.b)
                if product.a.numel() <= product.b.numel():
                    a = self._scaled(product.a, product.factor, one.mask)
                else:
                    b = self._scaled(product.b, product.factor, one.mask)
                self._call(function, self._constant(into), a, b, f"alpha={product.factor.code}")

    def _own_factor(self, one: Sum) -> str:
        """What the state is multiplied with: 1 + the sum of `own`, and 1 where the mask says no."""
        first = float(one.keeps) - (one.mask is not None)  # a mask's 1 is added last
        total = " + ".join([repr(first), *(f.code for f in one.own if not f.tensors)])
        shape = torch.Size()
        for factor in one.own:
            if factor.tensors:
                product, its = self._product_of(factor.tensors, one.state)
                product = self._temporary(its, one.state, torch.mul, product, factor.code)
                shape = _broadcast(shape, its)
                total = self._temporary(shape, one.state, torch.add, product, total)
        if one.mask is None:
            return total
        shape = one.mask.shape
        scaled = self._temporary(shape, one.state, torch.mul, self._as_number(one.mask, one.state), total)
        return self._temporary(shape, one.state, torch.add, scaled, "1.0")

    def _add_term(self, one: Sum, term: Term) -> None:
        """A term that a mask, a tensor, or another shape keeps from being added with others."""
        value, state, mask = self._name(term.value), one.state, one.mask
        scale, shape = self._product_of(term.factor.tensors, state) if term.factor.tensors else ("", torch.Size())
        if mask is not None and id(term.value) in self._producers:
            # What an idle lane computes may not be finite: 0 times it would not be 0.
            value = self._temporary(state.shape, state, torch.where, self._name(mask), value, self._zero(state))
        elif mask is not None:
            active = self._as_number(mask, state)
            shape = _broadcast(shape, mask.shape)
            scale = self._temporary(shape, state, torch.mul, scale, active) if scale else active
        if scale:
            self._call(torch.Tensor.addcmul_, self._name(state), value, scale, f"value={term.factor.code}")
        else:
            self._call(torch.Tensor.add_, self._name(state), value, f"alpha={term.factor.code}")

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
