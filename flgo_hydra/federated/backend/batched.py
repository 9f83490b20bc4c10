"""A cohort's clients as a batch dimension: one operation does a step of many clients.

Clients are lanes: their models lie stacked, and `torch.vmap` makes of the step of one client the step of all. Lanes
that differ are masked. A smaller batch is filled up with its own first sample, which then counts nothing; a client
that has taken its last step keeps its model, its optimizer's slots and its buffers while others go on. Where all lanes
take a batch of the same size, nothing is masked. A cohort may be larger than what is done at once: then its clients,
sorted by their number of steps, go in chunks of `lanes`.

A step is recorded and compiled as in the loop (`traced.py`), here for each batch size that all lanes share, and once
with masks. What cannot be a batch dimension trains in the loop, with the reason: a model that draws random numbers
(each client has its own generator), or one that mixes the samples of a batch, where batches differ in size.

H lanes, B samples a batch.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flgo_hydra.federated.algorithm.base import Client, Hyper, State, Tensors
from flgo_hydra.federated.backend.loop import LoopBackend, paying_sizes
from flgo_hydra.federated.backend.program import Arena, Program, compile_program
from flgo_hydra.federated.backend.tape import CannotRecord, record
from flgo_hydra.federated.backend.timing import seconds_of
from flgo_hydra.federated.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.data import Data
from flgo_hydra.federated.optimizer import Slots
from flgo_hydra.federated.training import LocalStep, LocalWork, ServerState, finish_round

_log = logging.getLogger(__name__)
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
MASKED = 0
"""In place of a batch size: lanes differ."""


@dataclass(frozen=True)
class _Step:
    """A step of all lanes, as it stands on the device."""

    size: int
    """of the batch of every lane, or MASKED"""
    rows: Tensor
    """of the training samples, shape (H * B,)"""
    weights: Tensor | None = None
    """of each sample in its batch's mean, shape (H, B)"""
    is_active: Tensor | None = None
    """bool of shape (H,)"""


@dataclass(frozen=True)
class _Batch:
    """Where a step of one kind finds its samples, and its program."""

    x: Tensor
    y: Tensor
    weights: Tensor | None
    is_active: Tensor | None
    program: Program | None


class VmapBackend:
    """Trains a cohort's clients side by side, as lanes of one batch."""

    name = "vmap"

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        step: LocalStep,
        work: LocalWork,
        lanes: int,
        compiles: bool = True,
        visits: float = float("inf"),
        loop: LoopBackend | None = None,
    ) -> None:
        """
        Args:
            lanes: clients that are trained at once.
            compiles, visits: as for the loop.
            loop: who trains what cannot be a batch dimension, if there is one already.
        """
        self._model, self._data, self._step, self._work = model, data, step, work
        self._lanes = lanes
        self._compiles = compiles
        self._loop = loop or LoopBackend(model, data, step, work, compiles, visits)
        self._device = data.x_train.device
        sizes = np.diff(data.offsets)
        self._width = max(work.size(int(n))[0] for n in np.unique(sizes))
        self._paying = paying_sizes(sizes, work, visits / lanes)
        some = next(iter(self._loop.params.values()))
        exact = torch.float32 if self._device.type == "mps" else torch.float64
        self._exact = exact
        with torch.no_grad():
            self._params = {n: self._stack(p).requires_grad_() for n, p in self._loop.params.items()}
            self._buffers = {n: self._stack(b) for n, b in model.named_buffers()}
            self._slots = {
                name: tuple(self._stack(t) for t in slots) for name, slots in step.start(self._loop.params).items()
            }
            own = step.algorithm.init_client(self._loop.params)
            self._kept: State = {s: {n: self._stack(t) for n, t in ts.items()} for s, ts in own.items()}
            self._anchor: Tensors = {name: p.detach().clone() for name, p in self._loop.params.items()}
            server = step.algorithm.init_server(self._loop.params)
            self._server: State = {s: {n: t.detach().clone() for n, t in ts.items()} for s, ts in server.items()}
        self._dtype = some.dtype
        self._lr = torch.zeros((), dtype=exact, device=self._device)
        self._count = torch.zeros((), dtype=exact, device=self._device)
        self._arena = Arena(self._device)
        self._batches: dict[int, _Batch] = {}
        self.why_not = ""
        self._why_not_compiled = "" if compiles else "engine.compile=off"

    def _stack(self, t: Tensor) -> Tensor:
        return t.detach().expand(self._lanes, *t.shape).clone(memory_format=torch.contiguous_format)

    @property
    def note(self) -> dict[str, Any]:
        """What ran, for result.json."""
        if self.why_not:
            return {**self._loop.note, "why_not_vmap": self.why_not}
        compiled = [size for size, batch in self._batches.items() if batch.program is not None]
        note: dict[str, Any] = {
            "backend": self.name,
            "clients_at_once": self._lanes,
            "compiled_batch_sizes": sorted(size for size in compiled if size != MASKED),
            "compiled_with_masks": MASKED in compiled,
        }
        return note | ({"why_not_compiled": self._why_not_compiled} if self._why_not_compiled else {})

    def load(self, server: ServerState) -> nn.Module:
        return self._loop.load(server)

    def train(
        self, server: ServerState, clients: ClientStates, cohort: Cohort, hyper: Hyper, round_num: int
    ) -> ServerState:
        if not self.why_not:
            self.load(server)
            self._model.train()
            orders = [self._order(k, round_num) for k in cohort.clients.tolist()]
            self._prepare(server, orders, hyper)
        if self.why_not:
            return self._loop.train(server, clients, cohort, hyper, round_num)
        longest_first = sorted(range(len(orders)), key=lambda i: (-len(orders[i]), i))
        sent: State = {}
        buffers: Tensors = {}
        buffer_weights = cohort.weights / cohort.weights.sum()
        with torch.no_grad():
            self._fill_round(server, hyper)
            for begin in range(0, len(orders), self._lanes):
                chosen = longest_first[begin : begin + self._lanes]
                ids = cohort.clients[chosen].tolist()
                kept = clients.get_many(ids)
                self._fill_lanes(server, kept)
                for count, step in enumerate(self._steps([orders[i] for i in chosen]), start=1):
                    self._run(step, count, hyper)
                message, new = self._finish(server, kept, [len(orders[i]) for i in chosen], hyper)
                clients.put_many(ids, new)
                for name, tensors in message.items():
                    _add(sent.setdefault(name, {}), tensors, cohort.weights[chosen])
                _add(buffers, self._buffers, buffer_weights[chosen])
            frozen = {name: b for name, b in server.buffers.items() if name not in buffers}
            return finish_round(server, self._step.algorithm, sent, {**buffers, **frozen}, cohort, hyper)

    def signature(self, cohort: Cohort) -> tuple[Any, ...]:
        """What decides how fast a cohort is trained."""
        kind, optimizer = type(self._step.algorithm), self._step.optimizer
        forms = tuple((name, tuple(p.shape)) for name, p in self._loop.params.items())
        sizes = tuple(self._work.size(self._data.num_samples(k)) for k in cohort.clients.tolist())
        device = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else self._device.type
        step = (kind, optimizer.num_slots, optimizer.is_plain_sgd, self._step.clip_grad > 0)
        return device, type(self._model), forms, self._dtype, *step, self._compiles, self._lanes, sizes

    def estimate(self, server: ServerState, cohort: Cohort, hyper: Hyper, round_num: int) -> float | None:
        """Seconds that the cohort's local steps would take, from a few steps of each kind; None if they cannot be."""
        self.load(server)
        self._model.train()
        orders = [self._order(k, round_num) for k in cohort.clients.tolist()]
        self._prepare(server, orders, hyper)
        if self.why_not:
            return None
        orders.sort(key=len, reverse=True)
        chunks = [self._steps(orders[i : i + self._lanes]) for i in range(0, len(orders), self._lanes)]
        num_steps = Counter(step.size for steps in chunks for step in steps)
        one_of = {step.size: step for steps in chunks for step in steps}
        with torch.no_grad():
            self._fill_round(server, hyper)
            seconds = {k: seconds_of(partial(self._run, s, 1, hyper), self._device) for k, s in one_of.items()}
        return sum(num_steps[kind] * seconds[kind] for kind in num_steps)

    # The lanes' schedule, made on the host in one go.

    def _order(self, k: int, round_num: int) -> list[np.ndarray]:
        begin = self._data.offsets[k]
        return [begin + rows for rows in self._work.order(self._data.num_samples(k), k, round_num)]

    def _kind(self, sizes: Sequence[int]) -> int:
        """The batch size of a step that all lanes share, or MASKED."""
        is_even = len(sizes) == self._lanes and len(set(sizes)) == 1 and sizes[0] in self._paying
        return sizes[0] if is_even else MASKED

    def _kinds(self, orders: list[list[np.ndarray]]) -> list[int]:
        longest = max(map(len, orders))
        return [self._kind([len(order[t]) if t < len(order) else 0 for order in orders]) for t in range(longest)]

    def _steps(self, orders: list[list[np.ndarray]]) -> list[_Step]:
        """The steps of a chunk of clients, the longest order first."""
        kinds = self._kinds(orders)
        width, lanes = self._width, self._lanes
        all_rows, all_weights, all_active = [], [], []
        for t, kind in enumerate(kinds):
            if kind != MASKED:
                all_rows.append(np.concatenate([order[t] for order in orders]))
                continue
            rows = np.zeros((lanes, width), np.int64)
            weights = np.zeros((lanes, width))
            is_active = np.zeros(lanes, bool)
            for lane, order in enumerate(orders):
                batch = order[min(t, len(order) - 1)]
                rows[lane, : len(batch)] = batch
                rows[lane, len(batch) :] = batch[0]  # as finite as the batch itself
                if t < len(order):
                    weights[lane, : len(batch)] = 1.0 / len(batch)
                    is_active[lane] = True
            rows[len(orders) :] = rows[0]
            all_rows.append(rows.ravel())
            all_weights.append(weights)
            all_active.append(is_active)
        flat = torch.from_numpy(np.concatenate(all_rows)).to(self._device)
        rows_of = torch.split(flat, [len(rows) for rows in all_rows])
        if not all_weights:
            return [_Step(kind, rows) for kind, rows in zip(kinds, rows_of, strict=True)]
        weights_of = iter(torch.from_numpy(np.stack(all_weights)).to(self._device, self._dtype).unbind())
        active_of = iter(torch.from_numpy(np.stack(all_active)).to(self._device).unbind())
        return [
            _Step(kind, rows, next(weights_of), next(active_of)) if kind == MASKED else _Step(kind, rows)
            for kind, rows in zip(kinds, rows_of, strict=True)
        ]

    # The lanes' tensors.

    def _fill_round(self, server: ServerState, hyper: Hyper) -> None:
        self._lr.fill_(hyper["lr"])
        for name, tensor in self._anchor.items():
            tensor.copy_(server.params[name])
        for state, tensors in self._server.items():
            for name, tensor in tensors.items():
                tensor.copy_(server.state[state][name])

    def _fill_lanes(self, server: ServerState, kept: State) -> None:
        for name, p in self._params.items():
            p.copy_(server.params[name])
        for name, b in self._buffers.items():
            b.copy_(server.buffers[name])
        for slots in self._slots.values():
            for slot in slots:
                slot.zero_()
        for state, tensors in self._kept.items():
            for name, tensor in tensors.items():
                tensor[: len(kept[state][name])] = kept[state][name]

    def _finish(self, server: ServerState, kept: State, num_steps: list[int], hyper: Hyper) -> tuple[State, State]:
        """What the clients in the lanes send and keep, stacked."""
        algorithm = self._step.algorithm
        n = len(num_steps)
        params = {name: p.detach()[:n] for name, p in self._params.items()}
        # One number where all lanes took as many steps: exact, and no tensor to multiply with.
        counts: Any = num_steps[0]
        if len(set(num_steps)) > 1:
            counts = torch.tensor(num_steps, dtype=self._exact, device=self._device)

        def lane(params: Tensors, kept: State, count: Any) -> tuple[State, State]:
            return algorithm.finish(params, Client(server.params, server.state, kept), count, hyper)

        in_dims = (0, 0, 0 if isinstance(counts, Tensor) else None)
        sent, new = torch.vmap(lane, in_dims=in_dims)(params, kept, counts)
        return sent, new

    # One step of all lanes.

    def _run(self, step: _Step, count: int, hyper: Hyper) -> None:
        batch = self._batches[step.size]
        torch.index_select(self._data.x_train, 0, step.rows, out=batch.x.flatten(0, 1))
        torch.index_select(self._data.y_train, 0, step.rows, out=batch.y.flatten(0, 1))
        if batch.weights is not None and batch.is_active is not None:
            batch.weights.copy_(step.weights)  # type: ignore[arg-type]
            batch.is_active.copy_(step.is_active)  # type: ignore[arg-type]
        if batch.program is not None:
            if batch.program.reads(self._count):
                self._count.fill_(count)
            batch.program.run(hyper["lr"])
            return
        for state, value in self._next(batch, count, {**hyper}):
            state.copy_(value)

    def _next(self, batch: _Batch, count: Any, hyper: Hyper) -> list[tuple[Tensor, Tensor]]:
        """Pairs of a tensor of the lanes and its next value; buffers change in place where nothing is masked."""
        algorithm, data = self._step.algorithm, self._data
        is_masked = batch.is_active is not None
        buffers = {name: b.clone() for name, b in self._buffers.items()} if is_masked else self._buffers

        def lane_loss(params: Tensors, buffers: Tensors, x: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
            outputs = functional_call(self._model, {**params, **buffers}, (x,))
            losses = algorithm.loss(outputs, y, _cross_entropy if data.is_classification else data.criterion)
            return losses.mean() if weights is None else (losses * weights).sum()

        def lane_step(params: Tensors, grads: Tensors, slots: dict[str, Slots], kept: State) -> Any:
            return self._step(params, grads, slots, count, Client(self._anchor, self._server, kept), hyper)

        with torch.enable_grad():
            losses = torch.vmap(lane_loss, in_dims=(0, 0, 0, 0, 0 if is_masked else None))(
                self._params, buffers, batch.x, batch.y, batch.weights
            )
            grads = torch.autograd.grad(
                losses.sum(), list(self._params.values()), allow_unused=True, materialize_grads=True
            )
        with torch.no_grad():
            by_name = dict(zip(self._params, grads, strict=True))
            params, slots = torch.vmap(lane_step)(self._params, by_name, self._slots, self._kept)
        pairs = [(self._params[name], value) for name, value in params.items()]
        pairs += [pair for name, new in slots.items() for pair in zip(self._slots[name], new, strict=True)]
        if batch.is_active is None:
            return pairs
        pairs += [(self._buffers[name], value) for name, value in buffers.items()]
        with torch.no_grad():
            return [(old, _choose(batch.is_active, new, old)) for old, new in pairs]

    # Programs.

    def _prepare(self, server: ServerState, orders: list[list[np.ndarray]], hyper: Hyper) -> None:
        """Makes ready each kind of step that this cohort takes and that is new."""
        by_length = sorted(orders, key=len, reverse=True)
        for begin in range(0, len(by_length), self._lanes):
            chunk = by_length[begin : begin + self._lanes]
            for kind in set(self._kinds(chunk)):
                if kind not in self._batches and not self.why_not:
                    self.why_not = self._add_kind(kind, server, orders[0], hyper)
        if self.why_not:
            _log.info("clients train one after another: %s", self.why_not)

    def _add_kind(self, kind: int, server: ServerState, order: list[np.ndarray], hyper: Hyper) -> str:
        """Makes ready the steps of a kind; says why they cannot be, or nothing."""
        shape = (self._lanes, kind or self._width)
        x = self._data.x_train.new_zeros(*shape, *self._data.x_train.shape[1:])
        y = self._data.y_train.new_zeros(*shape, *self._data.y_train.shape[1:])
        weights = torch.zeros(shape, dtype=self._dtype, device=self._device) if kind == MASKED else None
        is_active = torch.zeros(self._lanes, dtype=torch.bool, device=self._device) if kind == MASKED else None
        plain = _Batch(x, y, weights, is_active, None)
        numbers = {**hyper, "lr": self._lr}
        try:
            ops, results = record(lambda: self._next(plain, self._count, numbers))
            program = compile_program(ops, results, {"lr": self._lr}, self._arena) if self._compiles else None
        except CannotRecord as error:
            program, self._why_not_compiled = None, str(error)
        except Exception as error:  # vmap refuses what it cannot batch with whatever exception fits
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        self._batches[kind] = _Batch(x, y, weights, is_active, program)
        return self._check(kind, server, hyper)

    def _check(self, kind: int, server: ServerState, hyper: Hyper) -> str:
        """Takes two steps in the lanes, and those of the first and last lane in the loop; says how they differ."""
        n = kind or self._width
        some = np.arange(n * self._lanes) % len(self._data.x_train)
        first = [[some[i * n : (i + 1) * n], some[i * n : (i + 1) * n][::-1].copy()] for i in range(self._lanes)]
        if kind == MASKED:  # the last lane: one step on a part of a batch
            first[-1] = [first[-1][0][: max(1, n // 2)]]
        fill = {s: {k: torch.full_like(t, 1e-2) for k, t in ts.items()} for s, ts in self._kept.items()}
        self._fill_round(server, hyper)
        with torch.no_grad():
            self._fill_lanes(server, fill)
            rows = [np.stack([order[min(t, len(order) - 1)][:1].repeat(n) for order in first]) for t in (0, 1)]
            steps = []
            for t in (0, 1):
                weights = np.zeros((self._lanes, n))
                is_active = np.array([t < len(order) for order in first])
                for lane, order in enumerate(first):
                    batch = order[min(t, len(order) - 1)]
                    rows[t][lane, : len(batch)] = batch
                    weights[lane, : len(batch)] = is_active[lane] / len(batch)
                steps.append(
                    _Step(
                        kind,
                        torch.from_numpy(rows[t].ravel()).to(self._device),
                        torch.from_numpy(weights).to(self._device, self._dtype),
                        torch.from_numpy(is_active).to(self._device),
                    )
                )
            try:
                for count, step in enumerate(steps, start=1):
                    self._run(step, count, hyper)
            except Exception as error:
                return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        for lane in {0, self._lanes - 1}:
            self.load(server)
            client = Client(
                server.params, server.state, {s: {k: t[0] for k, t in ts.items()} for s, ts in fill.items()}
            )
            rows_of = [torch.from_numpy(batch).to(self._device) for batch in first[lane]]
            self._loop.train_client(rows_of, client, hyper)
            pairs = [(server.params[k], p, self._params[k][lane]) for k, p in self._loop.params.items()]
            pairs += [(server.buffers[k], self._loop.buffers[k], b[lane]) for k, b in self._buffers.items()]
            for before, loop, ours in pairs:
                if _differ(before, loop.detach(), ours.detach()):
                    return (
                        "it mixes the samples of a batch, and batches differ in size"
                        if kind == MASKED
                        else "its clients side by side compute something else than one after another"
                    )
        return ""


def count_lanes(cohort_size: int, bytes_per_lane: int, budget_bytes: int) -> int:
    """Clients to train at once: as many as the budget holds, the cohort in chunks of about one size."""
    most = max(1, min(cohort_size, budget_bytes // max(bytes_per_lane, 1)))
    return math.ceil(cohort_size / math.ceil(cohort_size / most))


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample, in fewer operations than vmap makes of torch's."""
    return -outputs.log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _choose(is_active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(is_active.view(-1, *[1] * (old.dim() - 1)), new, old)


def _add(sums: Tensors, stacked: Tensors, weights: np.ndarray) -> None:
    """Adds the weighted sum of the first lanes to `sums`; counters (integers) in float64, as the loop does."""
    for name, tensor in stacked.items():
        lanes = tensor.detach()[: len(weights)]
        lanes = lanes if lanes.is_floating_point() else lanes.double()
        weight = torch.from_numpy(weights).to(lanes.device, lanes.dtype)
        part = torch.mv(lanes.flatten(1).t(), weight).view(lanes.shape[1:]) if lanes.dim() > 1 else lanes @ weight
        sums[name] = sums[name] + part if name in sums else part


def _differ(before: Tensor, a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return not torch.equal(a, b)
    change = (a - before).abs().max() + 1e-3 * a.abs().max()
    is_close = bool((a - b).abs().max() <= _TOLERANCE[a.dtype] * change)
    return not is_close and bool(torch.isfinite(a).all())
