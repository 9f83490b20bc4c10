"""A dense layer on the samples themselves, as what it does to the samples that a client visits.

The gradient of such a layer's weights is delta^T X_B: local steps add to the weights only what lies in the span of the
client's samples, W_t = W_0 + D_t^T X (the representer theorem's dual form: Schölkopf and Smola, Learning with Kernels,
2002, chapter 4). So a local step needs neither W nor X, only the products A_t = X W_t^T, which a step moves by the
Gram matrix's rows of its batch:

    A_{t+1} = A_t - lr (X X_B^T) delta,    D_{t+1} = D_t - lr S_B^T delta,

where S_B picks the batch's rows. A step on B of n samples then costs B n per output instead of B times the number of
features, and touches a few KiB instead of the weights; W is there again when the round ends, or only its mean over the
cohort, which is one product for all clients. Terms that shrink W or pull it to a tensor that does not change (weight
decay, FedProx, SCAFFOLD) are carried along: W_t = W_0 + s_t W_0 + sum_j c_tj R_j + D_t^T X, where s_t is small: 1 + s_t
would round a small weight decay away. The momentum of such a layer has the same form, V_t = E_t^T X + …, and moves with
it. Rounding aside, the numbers are those of plain steps.

Optimizers that compute with single elements of the gradient (Adam), and clipping, need the gradient itself: their
programs stay as they are.

P runs of K clients each are H = P K lanes; n samples a client visits at most, B a batch; I features, O outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flgo_hydra.recorder.linear import Factor, Product, Sum, Term
from flgo_hydra.recorder.needed import needed, producers_of
from flgo_hydra.recorder.operations import geometry, is_view, storage
from flgo_hydra.recorder.tape import Op

_ATEN = torch.ops.aten


START = 0
"""Number of W_0 among the tensors that a layer is a sum of; others are those that it is pulled to."""


@dataclass
class _Constant:
    """R_j of a layer."""

    tensor: Tensor  # (O, I), or (H, O, I)
    projected: Tensor  # (H, 2n, O): X R^T above zeros


@dataclass
class _Form:
    """A tensor of the layer's form: its weights, or their momentum."""

    state: Tensor  # (H, O, I)
    dual: Tensor  # (H, 2n, O): A above D
    coefficients: dict[int, Tensor]  # (H, 1, 1) by number: of W_0 (the weights' is s_t) and of each R_j


@dataclass
class _Layer:
    name: str
    forms: dict[int, _Form]
    """by the ids of their states, the weights first"""
    constants: dict[int, _Constant] = field(default_factory=dict)
    """R_j by number, from 1"""
    moves: bool = False
    """W_0's coefficient may change"""

    @property
    def weights(self) -> _Form:
        return next(iter(self.forms.values()))

    def sums(self, group: Sequence[Sum], products: Mapping[int, list[Product]]) -> list[Sum]:
        """What a step does to the layer's forms, from what it would do to their states.

        Args:
            products: of each sum in the group, by its state's id.
        """
        numbers = {
            id(term.value): self._number(term.value) for one in group for term in one.rest if not self._has(term)
        }
        self._spread(group, numbers)
        found = []
        for one in group:
            form = self.forms[id(one.state)]
            rest = [
                Term(
                    t.factor,
                    self.forms[id(t.value)].dual if self._has(t) else self.constants[numbers[id(t.value)]].projected,
                )
                for t in one.rest
            ]
            found.append(one.of(form.dual, rest, products[id(one.state)]))
            for number, coefficient in form.coefficients.items():
                pulls = []
                whole = torch.ones_like(coefficient)
                if number == START and form is self.weights:  # s_t + 1 is multiplied, and 1 taken away again
                    pulls += [Term(factor, whole) for factor in one.own]
                    pulls += [] if one.keeps else [Term(Factor(-1.0), whole)]
                for t in one.rest:
                    if self._has(t):
                        if number in self.forms[id(t.value)].coefficients:
                            pulls.append(Term(t.factor, self.forms[id(t.value)].coefficients[number]))
                        if number == START and self.forms[id(t.value)] is self.weights:
                            pulls.append(Term(t.factor, whole))
                    elif numbers[id(t.value)] == number:
                        pulls.append(Term(t.factor, whole))
                found.append(one.of(coefficient, pulls, []))
                self.moves |= form is self.weights and bool(pulls or one.own or not one.keeps)
        return found

    def _has(self, term: Term) -> bool:
        return id(term.value) in self.forms

    def _spread(self, group: Sequence[Sum], numbers: Mapping[int, int]) -> None:
        """Gives each form the coefficients that a step can make other than 0."""
        before = -1
        while before != (before := sum(len(form.coefficients) for form in self.forms.values())):
            for one in group:
                form = self.forms[id(one.state)]
                for term in one.rest:
                    mine = (
                        list(self.forms[id(term.value)].coefficients) if self._has(term) else [numbers[id(term.value)]]
                    )
                    for number in mine:
                        if number not in form.coefficients:
                            form.coefficients[number] = one.state.new_zeros(len(one.state), 1, 1)

    def _number(self, tensor: Tensor) -> int:
        for number, constant in self.constants.items():
            if storage(constant.tensor) == storage(tensor) and geometry(constant.tensor) == geometry(tensor):
                return number
        number = len(self.constants) + 1
        self.constants[number] = _Constant(tensor, torch.zeros_like(self.weights.dual))
        return number


class DualLayers:
    """The dual form of the lanes' first layers, shared by the programs for all sizes of batches.

    Args:
        x_train: training samples, (N, *input_shape).
        most: n.
        parameters: names of those that may be weights of such layers, by the ids of the lanes' tensors.
    """

    def __init__(
        self, x_train: Tensor, num_runs: int, clients_per_run: int, most: int, parameters: Mapping[int, str]
    ) -> None:
        self._x_train, self.parameters = x_train, parameters
        self._runs, self._lanes, self._most = num_runs, num_runs * clients_per_run, most
        # Rows n to 2n are never read: they make a sample's row the same one here and in A above D.
        self.gram = x_train.new_zeros(self._lanes, 2 * most, 2 * most)
        self.gram[:, :most, most:] = torch.eye(most, dtype=x_train.dtype, device=x_train.device)
        self._x = x_train.new_empty(0)
        self._layers: dict[str, _Layer] = {}

    @property
    def names(self) -> set[str]:
        """Parameters that are kept in this form."""
        return set(self._layers)

    @property
    def tensors(self) -> list[Tensor]:
        """What steps change."""
        forms = [form for layer in self._layers.values() for form in layer.forms.values()]
        return [t for form in forms for t in (form.dual, *form.coefficients.values())]

    @property
    def rows_per_lane(self) -> int:
        """A program finds the i-th sample that lane h visits in row `h * rows_per_lane + i`."""
        return 2 * self._most

    def reads(self, tensor: Tensor) -> bool:
        """Whether a layer is pulled to this tensor."""
        pulls = [constant for layer in self._layers.values() for constant in layer.constants.values()]
        return any(storage(constant.tensor) == storage(tensor) for constant in pulls)

    def add(self, states: Sequence[Tensor]) -> _Layer:
        """The dual form of the lanes' weights, (H, O, I), and of what moves with them."""
        name = self.parameters[id(states[0])]
        if name not in self._layers:
            self._layers[name] = _Layer(name, {})
        layer = self._layers[name]
        for state in states:
            if id(state) not in layer.forms:
                dual = state.new_zeros(self._lanes, 2 * self._most, state.shape[1])
                start = {} if layer.forms else {START: state.new_zeros(self._lanes, 1, 1)}
                layer.forms[id(state)] = _Form(state, dual, start)
        return layer

    def begin(self, rows: Tensor, start: Mapping[str, Tensor]) -> None:
        """Starts from the servers' weights.

        Args:
            rows: of the training samples that each lane visits, (H, n), filled up with any.
            start: W_0 of each run by parameter, (P, O, I).
        """
        n = self._most
        self._x = self._x_train.index_select(0, rows.flatten()).view(self._lanes, n, -1)
        self.gram[:, :n, :n] = torch.bmm(self._x, self._x.mT)
        for name, layer in self._layers.items():
            for constant in layer.constants.values():
                constant.projected[:, :n] = torch.matmul(self._x, constant.tensor.mT)
            for form in layer.forms.values():
                form.dual.zero_()
                for coefficient in form.coefficients.values():
                    coefficient.zero_()
            products = torch.bmm(self._x.view(self._runs, -1, self._x.shape[-1]), start[name].mT)
            layer.weights.dual[:, :n] = products.view(self._lanes, n, -1)

    def put_weights(self, start: Mapping[str, Tensor]) -> None:
        """Writes the weights that the lanes have come to into the lanes' own tensors."""
        for name, layer in self._layers.items():
            form = layer.weights
            w = form.state.detach()
            torch.bmm(form.dual[:, self._most :].mT, self._x, out=w)
            by_run, begin = w.view(self._runs, -1, *w.shape[1:]), start[name].unsqueeze(1)
            for number, coefficient in form.coefficients.items() if layer.moves else ():
                if number == START:
                    by_run.addcmul_(begin, coefficient.view(self._runs, -1, 1, 1))
                else:
                    w.addcmul_(layer.constants[number].tensor, coefficient)
            by_run.add_(begin)

    def mean_changes(self, start: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
        """The weighted sum over each run's lanes of what the steps have changed, (P, O, I) by parameter.

        Args:
            weights: of the lanes, (H,).
        """
        changes = {}
        for name, layer in self._layers.items():
            form = layer.weights
            weighted = form.dual[:, self._most :] * weights.view(-1, 1, 1)
            per_run = weighted.view(self._runs, -1, weighted.shape[-1])
            change = torch.bmm(per_run.mT, self._x.view(self._runs, -1, self._x.shape[-1]))
            if layer.moves:
                change.addcmul_(start[name], self._sum(form.coefficients[START], weights))
                for number, coefficient in form.coefficients.items():
                    if number == START:
                        continue
                    tensor = layer.constants[number].tensor
                    if tensor.dim() == 2:
                        change.addcmul_(tensor, self._sum(coefficient, weights))
                    else:
                        pulls = (coefficient.view(-1) * weights).view(self._runs, 1, -1)
                        change += torch.bmm(pulls, tensor.reshape(self._runs, pulls.shape[-1], -1)).view_as(change)
            changes[name] = change
        return changes

    def _sum(self, per_lane: Tensor, weights: Tensor) -> Tensor:
        return (per_lane.view(-1) * weights).view(self._runs, -1).sum(1).view(-1, 1, 1)


class VisitedSamples:
    """Rewrites a program's step of a layer on its batch."""

    def __init__(self, layers: DualLayers, x: Tensor, index: Tensor) -> None:
        self._layers, self._x, self._index = layers, x, index
        self.names: list[str] = []
        """parameters that the program keeps in the dual form"""

    def rewrite(self, ops: Sequence[Op], sums: Sequence[Sum], others: Sequence[Tensor]) -> tuple[list[Op], list[Sum]]:
        """Returns the operations and sums with layers in their dual form, where that is possible.

        Args:
            others: what is needed of the operations beside the sums.
        """
        ops, kept = list(ops), list(sums)
        gathered: Tensor | None = None
        for weights in sums:
            if id(weights.state) not in self._layers.parameters:
                continue
            group = _group_of(weights, kept)
            unchanged = [one for one in kept if all(one is not other for other in group)]
            live = needed(ops, [t for one in kept for t in one.reads] + list(others))
            late = [t for one in unchanged for t in one.reads] + list(others)
            uses = self._uses(weights.state, live, late)
            if not uses or not self._is_layer(group, weights.state, live, late, ops):
                continue
            layer = self._layers.add([weights.state, *(one.state for one in group if one is not weights)])
            self.names.append(layer.name)
            ops = [new for op in ops for new in (self._look_up(op, layer) if id(op) in uses else [op])]
            if gathered is None:
                gathered = self._gather(ops)
            products: dict[int, list[Product]] = {}
            for one in group:
                products[id(one.state)] = []
                for product in one.products:
                    delta = product.b
                    if not product.is_transposed:  # what is there is delta^T
                        delta = product.a.mT
                        ops.append(Op(_ATEN.transpose.int, (product.a, 1, 2), {}, delta))
                    products[id(one.state)].append(Product(product.factor, gathered, delta, False))
            kept = unchanged + layer.sums(group, products)
        return ops, kept

    def _is_layer(
        self, group: Sequence[Sum], weights: Tensor, live: Sequence[Op], late: Sequence[Tensor], ops: Sequence[Op]
    ) -> bool:
        """All in the group change by delta^T X_B, by one another, and by tensors that do not change themselves."""
        states = {id(one.state) for one in group}
        producers = producers_of(ops)
        changed = {storage(t) for op in ops for t in op.mutated}
        used = {storage(t) for op in live for t in op.inputs} | {storage(t) for t in late}
        if any(storage(one.state) in used for one in group if one.state is not weights):
            return False
        for one in group:
            for product in one.products:
                if not self._is_batch(product.a.mT if product.is_transposed else product.b):
                    return False
            for term in one.rest:
                if id(term.value) not in states and (
                    id(term.value) in producers or storage(term.value) in changed or term.value.dim() < 2
                ):
                    return False
        return any(one.products for one in group)

    def _uses(self, state: Tensor, live: Sequence[Op], late: Sequence[Tensor]) -> set[int]:
        """Ids of the operations that compute X_B W^T; none where the weights are used in any other way."""
        found = set()
        if any(storage(t) == storage(state) for t in late):
            return set()
        for op in live:
            if all(storage(t) != storage(state) for t in op.inputs) or is_view(op):
                continue
            is_product = op.name == "aten.bmm.default" and _looks_alike(op.args[1], state.mT)
            if not is_product or not self._is_batch(op.args[0]) or not op.output.is_contiguous():
                return set()
            found.add(id(op))
        return found

    def _is_batch(self, t: Tensor) -> bool:
        lanes, size = self._x.shape[:2]
        flat = (lanes, size, self._x[0, 0].numel())
        return storage(t) == storage(self._x) and t.shape == flat and t.is_contiguous()

    def _look_up(self, op: Op, layer: "_Layer") -> list[Op]:
        """The operations that find a batch's rows of A instead of computing X_B W^T."""
        rows = op.output.view(-1, op.output.shape[-1])
        return [
            Op(_ATEN.index_select.default, (layer.weights.dual.flatten(0, 1), 0, self._index), {}, rows),
            Op(_ATEN.view.default, (rows, list(op.output.shape)), {}, op.output),
        ]

    def _gather(self, ops: list[Op]) -> Tensor:
        """Adds the operations that find (X X_B^T above S_B^T), (H, 2n, B); returns it."""
        gram = self._layers.gram.flatten(0, 1)
        rows = gram.new_empty(len(self._index), gram.shape[1])
        batches = rows.view(*self._x.shape[:2], -1)
        turned = batches.mT
        ops += [
            Op(_ATEN.index_select.default, (gram, 0, self._index), {}, rows),
            Op(_ATEN.view.default, (rows, list(batches.shape)), {}, batches),
            Op(_ATEN.transpose.int, (batches, 1, 2), {}, turned),
        ]
        return turned


def _looks_alike(a: Tensor, b: Tensor) -> bool:
    """Two views of one memory have the same elements in the same places."""
    strides = [(s, t) for s, t, size in zip(a.stride(), b.stride(), b.shape, strict=True) if size > 1]
    return a.shape == b.shape and a.storage_offset() == b.storage_offset() and all(s == t for s, t in strides)


def _group_of(weights: Sum, sums: Sequence[Sum]) -> list[Sum]:
    """The weights' sum and those that it has to do with, in their order."""
    states = {id(weights.state)}
    before = 0
    while before != (before := len(states)):
        for one in sums:
            theirs = {id(term.value) for term in one.rest}
            if id(one.state) in states or theirs & states:
                states |= {id(one.state)} | {id(other.state) for other in sums if id(other.state) in theirs}
    return [one for one in sums if id(one.state) in states]
