"""Several runs as one program: the clients of all their cohorts are lanes of one batch.

The runs differ in values only: learning rate, momentum, weight decay, an algorithm's numbers, seeds. So each lane has
its own server model to start from, its own server state and its own numbers, and one operation does the step of all.
Cohorts, batch orders and aggregation are each run's own, from the same generators as when it runs alone: a run's
numbers do not depend on the others but for rounding (float64: 1e-12).

Nothing is padded: lanes are sorted by their number of steps, those that are done leave, and those that take a partial
batch go by themselves. A run whose losses are not finite does not touch the others: no two lanes are ever summed but
those of one run.

P runs, H lanes, B samples a batch.
"""

import functools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flgo_hydra.federated.algorithm.base import Algorithm, Client, State, Tensors
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.width import WidthSearch
from flgo_hydra.federated.data import Data
from flgo_hydra.federated.optimizer import Number, Slots, build_optimizer, is_zero
from flgo_hydra.federated.rounds import RoundWork
from flgo_hydra.federated.training import LocalStep, LocalWork, ServerState, finish_round

Key = TypeVar("Key", bound=Hashable)
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


class CannotFuse(RuntimeError):
    """These runs must run apart; the text says why. None has lost anything."""


@dataclass(frozen=True)
class Member:
    """What the runs of a group may differ in, and what each has of its own."""

    algorithm: Algorithm
    optimizer: str
    momentum: float
    weight_decay: float
    clip_grad: float
    work: LocalWork
    loop: LoopBackend
    """trains this run alone"""

    @property
    def numbers(self) -> dict[str, float]:
        return {"momentum": self.momentum, "weight_decay": self.weight_decay, "clip_grad": self.clip_grad}


@dataclass(frozen=True)
class _Lane:
    run: int
    """its number among the runs of this chunk"""
    client: int
    order: Sequence[np.ndarray]
    """rows of the training data by local step"""
    weight: float
    buffer_weight: float


@dataclass
class _Lanes:
    """The lanes' tensors, each with H rows."""

    params: Tensors
    buffers: Tensors
    slots: dict[str, Slots]
    anchor: Tensors
    server: State
    kept: State
    numbers: dict[str, Any]
    """tensors of H elements"""


class FusedBackend:
    """Trains a round of several runs at once.

    Args:
        model: gives the architecture; its own weights do not matter.
        data: the task of all runs.
        members: the runs, by the key under which `train` is told of their rounds.
        is_auto: find out how many runs to train at once; else all of them, as long as they fit.
    """

    def __init__(self, model: nn.Module, data: Data, members: Mapping[Key, Member], is_auto: bool) -> None:
        self._model = model
        self._data = data
        self._members: dict[Any, Member] = dict(members)
        self._search = WidthSearch(len(self._members), is_fixed=not is_auto)
        self._is_checked = False
        self._device = data.x_train.device

    @property
    def note(self) -> dict[str, Any]:
        """What ran, for result.json."""
        return {"backend": "fused", "runs": len(self._members), "runs_at_once": self._search.width}

    @property
    def is_not_worth_it(self) -> bool:
        """Two runs at once are no faster than one after the other."""
        return self._search.is_done and self._search.width == 1 and len(self._members) > 1

    def train(self, works: Mapping[Key, RoundWork]) -> dict[Key, ServerState]:
        """Returns the next server states; each run's client states are kept in its own `RoundWork.clients`.

        Raises:
            CannotFuse: the model's step cannot be a batch.
            torch.OutOfMemoryError: not even one run fits.
        """
        keys = list(works)
        servers: dict[Key, ServerState] = {}
        self._model.train()
        started = time.perf_counter()
        while len(servers) < len(keys):
            chosen = keys[len(servers) : len(servers) + self._search.width]
            try:
                servers |= self._train_chunk(chosen, works)
            except torch.OutOfMemoryError:
                if not self._search.does_not_fit():
                    raise
                torch.cuda.empty_cache()
        if not self._search.is_done:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            if len(keys) >= self._search.width:
                self._search.learn((time.perf_counter() - started) / len(keys))
        return servers

    def _train_chunk(self, keys: Sequence[Key], works: Mapping[Key, RoundWork]) -> dict[Key, ServerState]:
        members = [self._members[key] for key in keys]
        rounds = [works[key] for key in keys]
        lanes = [lane for run in range(len(keys)) for lane in self._schedule(run, members[run], rounds[run])]
        lanes.sort(key=lambda lane: -len(lane.order))
        algorithm = members[0].algorithm
        with torch.no_grad():
            tensors = self._fill(lanes, members, rounds)
            self._run_steps(lanes, tensors, members[0])
            sent, new = self._finish(lanes, tensors, algorithm)
            if not self._is_checked:
                self._check(lanes, tensors, members, rounds)
                self._is_checked = True
            servers: dict[Key, ServerState] = {}
            for run, key in enumerate(keys):
                at = [i for i, lane in enumerate(lanes) if lane.run == run]
                own = torch.tensor(at, device=self._device)
                work = rounds[run]
                weights = np.array([lanes[i].weight for i in at])
                message = {s: _weighted_sum(ts, own, weights) for s, ts in sent.items()}
                buffer_weights = np.array([lanes[i].buffer_weight for i in at])
                buffers = _weighted_sum(tensors.buffers, own, buffer_weights)
                member = members[run].algorithm
                servers[key] = finish_round(work.server, member, message, buffers, work.cohort, work.hyper)
        # Only now: what was raised above has changed nothing.
        for i, lane in enumerate(lanes):
            kept = {s: {name: t[i] for name, t in ts.items()} for s, ts in new.items()}
            rounds[lane.run].clients.put(lane.client, kept)
        return servers

    def _schedule(self, run: int, member: Member, work: RoundWork) -> list[_Lane]:
        cohort = work.cohort
        buffer_weights = cohort.weights / cohort.weights.sum()
        lanes = []
        for k, weight, buffer_weight in zip(cohort.clients.tolist(), cohort.weights, buffer_weights, strict=True):
            order = member.work.order(self._data.num_samples(k), k, work.round_num)
            rows = [self._data.offsets[k] + batch for batch in order]
            lanes.append(_Lane(run, k, rows, float(weight), float(buffer_weight)))
        return lanes

    def _fill(self, lanes: Sequence[_Lane], members: Sequence[Member], rounds: Sequence[RoundWork]) -> _Lanes:
        run_of = torch.tensor([lane.run for lane in lanes], device=self._device)

        def spread(of: Callable[[ServerState], Tensors]) -> Tensors:
            per_run = [of(work.server) for work in rounds]
            return {name: torch.stack([tensors[name] for tensors in per_run])[run_of] for name in per_run[0]}

        params = spread(lambda server: server.params)
        some = next(iter(params.values()))
        kept = [rounds[lane.run].clients.get(lane.client) for lane in lanes]
        values = [{**work.hyper, **member.numbers} for work, member in zip(rounds, members, strict=True)]
        num_slots = _optimizer(members[0]).num_slots
        return _Lanes(
            params=params,
            buffers=spread(lambda server: server.buffers),
            slots={name: tuple(torch.zeros_like(p) for _ in range(num_slots)) for name, p in params.items()},
            anchor={name: p.clone() for name, p in params.items()},
            server={state: spread(functools.partial(_state_of, name=state)) for state in rounds[0].server.state},
            kept={s: {name: torch.stack([k[s][name] for k in kept]) for name in ts} for s, ts in kept[0].items()},
            numbers={
                name: torch.tensor([v[name] for v in values], dtype=some.dtype, device=self._device)[run_of]
                for name in values[0]
            },
        )

    def _run_steps(self, lanes: Sequence[_Lane], tensors: _Lanes, member: Member) -> None:
        """Takes all local steps; the lanes' tensors change in place."""
        for count, groups in enumerate(self._batches(lanes), start=1):
            for at, rows in groups:
                self._step(tensors, at, rows, count, member)

    def _batches(self, lanes: Sequence[_Lane]) -> list[list[tuple[slice | Tensor, Tensor]]]:
        """By step: the lanes that take a batch of the same size, and the rows of it, shape (H, B), on the device."""
        plan: list[list[tuple[slice | list[int], np.ndarray]]] = []
        for step in range(len(lanes[0].order)):
            by_size: dict[int, list[int]] = {}
            for i, lane in enumerate(lanes):
                if step < len(lane.order):
                    by_size.setdefault(len(lane.order[step]), []).append(i)
            groups: list[tuple[slice | list[int], np.ndarray]] = []
            for at in by_size.values():
                rows = np.stack([lanes[i].order[step] for i in at])
                groups.append((slice(0, len(at)) if at[-1] == len(at) - 1 else at, rows))
            plan.append(groups)
        # To the device in one go.
        flat = torch.from_numpy(np.concatenate([rows.ravel() for groups in plan for _, rows in groups]))
        parts = iter(torch.split(flat.to(self._device), [rows.size for groups in plan for _, rows in groups]))
        return [
            [
                (at if isinstance(at, slice) else torch.tensor(at, device=self._device), next(parts).view(rows.shape))
                for at, rows in groups
            ]
            for groups in plan
        ]

    def _step(self, tensors: _Lanes, at: slice | Tensor, rows: Tensor, count: int, member: Member) -> None:
        """One step of the lanes `at`."""

        def pick(ts: Tensors) -> Tensors:
            return {name: t[at] for name, t in ts.items()}

        algorithm, data = member.algorithm, self._data
        x, y = data.x_train[rows], data.y_train[rows]
        params = {name: p.detach().requires_grad_() for name, p in pick(tensors.params).items()}
        buffers = pick(tensors.buffers)
        slots = {name: tuple(t[at] for t in ts) for name, ts in tensors.slots.items()}
        numbers = {name: t[at] for name, t in tensors.numbers.items()}
        server = {s: pick(ts) for s, ts in tensors.server.items()}
        kept = {s: pick(ts) for s, ts in tensors.kept.items()}

        def loss(params: Tensors, buffers: Tensors, x: Tensor, y: Tensor) -> Tensor:
            outputs = functional_call(self._model, {**params, **buffers}, (x,))
            return algorithm.loss(outputs, y, data.criterion).mean()

        def step(
            params: Tensors, grads: Tensors, slots: Any, anchor: Tensors, server: State, kept: State, numbers: Any
        ) -> Any:
            local = LocalStep(algorithm, _optimizer(member, numbers), _value(member.clip_grad, numbers["clip_grad"]))
            return local(params, grads, slots, count, Client(anchor, server, kept), numbers)

        try:
            with torch.enable_grad():
                losses = torch.vmap(loss)(params, buffers, x, y)
                grads = torch.autograd.grad(
                    losses.sum(), list(params.values()), allow_unused=True, materialize_grads=True
                )
            by_name = dict(zip(params, grads, strict=True))
            plain = {name: p.detach() for name, p in params.items()}
            anchor = pick(tensors.anchor)
            new, new_slots = torch.vmap(step)(plain, by_name, slots, anchor, server, kept, numbers)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # vmap refuses what it cannot batch
            raise CannotFuse(str(error).strip().partition("\n")[0]) from error
        for name, p in new.items():
            tensors.params[name][at] = p
        for name, ts in new_slots.items():
            for old, t in zip(tensors.slots[name], ts, strict=True):
                old[at] = t
        if not isinstance(at, slice):  # a slice's buffers have changed in place
            for name, b in buffers.items():
                tensors.buffers[name][at] = b

    def _finish(self, lanes: Sequence[_Lane], tensors: _Lanes, algorithm: Algorithm) -> tuple[State, State]:
        """What the clients in the lanes send and keep, stacked."""
        lengths = [len(lane.order) for lane in lanes]
        some = next(iter(tensors.params.values()))
        counts: Any = lengths[0]
        if len(set(lengths)) > 1:
            counts = torch.tensor(lengths, dtype=some.dtype, device=self._device)

        def lane(params: Tensors, anchor: Tensors, server: State, kept: State, numbers: Any, count: Any) -> Any:
            return algorithm.finish(params, Client(anchor, server, kept), count, numbers)

        in_dims = (0, 0, 0, 0, 0, 0 if isinstance(counts, Tensor) else None)
        result: tuple[State, State] = torch.vmap(lane, in_dims=in_dims)(
            tensors.params, tensors.anchor, tensors.server, tensors.kept, tensors.numbers, counts
        )
        return result

    def _check(
        self, lanes: Sequence[_Lane], tensors: _Lanes, members: Sequence[Member], rounds: Sequence[RoundWork]
    ) -> None:
        """Trains the last lane's client alone too: what vmap computes may be something else without an error."""
        lane = lanes[-1]
        member, work = members[lane.run], rounds[lane.run]
        loop = member.loop
        loop.load(work.server).train()
        client = Client(work.server.params, work.server.state, work.clients.get(lane.client))
        rows = [torch.from_numpy(np.asarray(batch)).to(self._device) for batch in lane.order]
        with torch.enable_grad():
            loop.train_client(rows, client, work.hyper)
        for name, p in loop.params.items():
            before, alone, ours = work.server.params[name], p.detach(), tensors.params[name][-1]
            change = (alone - before).abs().max() + 1e-3 * alone.abs().max()
            is_far = (alone - ours).abs().max() > _TOLERANCE[p.dtype] * change
            if bool(torch.isfinite(alone).all()) and bool(is_far):
                raise CannotFuse("runs side by side compute something else than one alone")


def _state_of(server: ServerState, name: str) -> Tensors:
    return server.state[name]


def _value(number: float, lane: Tensor) -> Number:
    """0 is 0 for all lanes, and then not computed with; else each lane has its own."""
    return 0.0 if is_zero(number) else lane


def _optimizer(member: Member, numbers: Mapping[str, Any] | None = None) -> Any:
    momentum, decay = member.momentum, member.weight_decay
    if numbers is not None:
        return build_optimizer(
            member.optimizer, _value(momentum, numbers["momentum"]), _value(decay, numbers["weight_decay"])
        )
    return build_optimizer(member.optimizer, momentum, decay)


def _weighted_sum(stacked: Tensors, at: Tensor, weights: np.ndarray) -> Tensors:
    """The weighted sum of the rows `at`; counters (integers) in float64, as in the loop."""
    sums: Tensors = {}
    for name, tensor in stacked.items():
        rows = tensor.detach()[at]
        rows = rows if rows.is_floating_point() else rows.double()
        weight = torch.from_numpy(weights).to(rows.device, rows.dtype)
        sums[name] = torch.tensordot(weight, rows, dims=1)
    return sums
