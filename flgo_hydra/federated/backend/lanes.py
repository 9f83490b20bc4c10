"""Clients side by side: one operation does a step of many clients, of one run or of several.

Clients are lanes: their models lie stacked, and `torch.vmap` makes of the step of one client the step of all. Lanes
that differ are masked. A smaller batch is filled up with its own first sample, which then counts nothing; a client
that has taken its last step keeps its model, its optimizer's slots and its buffers while others go on. Where all lanes
take a batch of the same size, nothing is masked. A lane without a client does what another lane does, and counts
nothing.

A step is recorded and compiled as in the loop (`step_programs.py`), for each batch size that all lanes share, and once
with masks; layers on the samples themselves in their dual form, where that is less work (`dual.py`). On CUDA the steps
of a round lie ready on the device, and a graph fetches the next one and takes it: one launch. Before the first round
each kind of step is taken beside the loop (`lane_trial.py`).

P runs of K clients each are H = P K lanes, those of a run side by side; B samples a batch.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from flgo_hydra.config.option import AUTO, EngineConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.backend.cannot import Cannot, cannot
from flgo_hydra.federated.backend.dual import DualLayers, VisitedSamples
from flgo_hydra.federated.backend.extent import Extent, dual_pays
from flgo_hydra.federated.backend.lane_kind import Kind, Plan, Step, first_that_fit
from flgo_hydra.federated.backend.lane_schedule import MASKED, StepArrays, Visited, schedule
from flgo_hydra.federated.backend.lane_tensors import LaneTensors, Numbers
from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.backend.masked_norm import MaskedBatchNorm
from flgo_hydra.federated.backend.only_torch import runs_only_torch
from flgo_hydra.federated.backend.step_programs import StepPrograms
from flgo_hydra.federated.backend.watch import Watch
from flgo_hydra.federated.clients.client_program import ClientProgram, StepInputs, apart
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.schedule import Order
from flgo_hydra.federated.training import LocalStep, ServerState, kept_at_trial
from flgo_hydra.federated.transfer import to_device
from flgo_hydra.recorder.tape import CannotRecord, MayRaise, ReadsNumbers


@dataclass(frozen=True)
class Recipe:
    """What the lanes compute."""

    algorithm: Algorithm
    num_slots: int
    """of the optimizer"""
    step: Callable[[Mapping[str, Any]], LocalStep]
    """the local step with these settings of the optimizer's: of all lanes, or, where runs differ, of one lane"""


class Lanes:
    """The tensors of H clients, and the programs of their steps.

    Args:
        model: gives the architecture.
        like: has the parameters and buffers of one client.
        num_runs, clients_per_run: P and K.
        numbers: of one run, where several differ in them; None where P is 1.
        engine: in which form steps may be taken.
        plans: let a round's steps lie ready on the device, as graphs want it.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        like: LocalSteps,
        recipe: Recipe,
        extent: Extent,
        num_runs: int,
        clients_per_run: int,
        numbers: Numbers | None = None,
        engine: EngineConf = AUTO,
        plans: bool | None = None,
    ) -> None:
        self._model, self._data, self.recipe, self.extent = model, data, recipe, extent
        self.clients_per_run = clients_per_run
        self.tensors = LaneTensors(like, recipe.algorithm, recipe.num_slots, num_runs, clients_per_run, numbers)
        self._engine = engine
        self._device = data.x_train.device
        self._plans = self._device.type == "cuda" if plans is None else plans
        # Where steps lie ready nobody brings the learning rate with a call: it is read from its tensor.
        has_scalars = self.tensors.is_shared and not self._plans
        scalars = {"lr": self.tensors.numbers["lr"]} if has_scalars else {}
        self._programs = StepPrograms(data, engine, self.tensors.exact, scalars)
        self._count, self._kinds = self._programs.count, self._programs.kinds
        self._visited: Visited | None = None
        self._like = like.params
        self._program = like.program
        self._trial = like
        has_dual = engine.compiles and engine.has_dual and like.program is None
        self._dual = self._make_dual(like.params) if has_dual else None
        self._why_not_compiled = "" if engine.compiles else "engine.compile=off"
        self._watch: Watch | None = None
        self.why_plainer = ""
        """why the lanes are not in a faster form"""

    @property
    def is_recorded(self) -> bool:
        """Some kind of step is a program."""
        return self._programs.is_recorded

    @property
    def kinds(self) -> list[int]:
        """Of steps that are ready: the batch size that all lanes share, or `MASKED`."""
        return sorted(self._kinds)

    @property
    def size(self) -> int:
        """H."""
        return self.tensors.size

    @property
    def kept(self) -> State:
        """What the lanes' clients kept, (H, …), to be read into."""
        return self.tensors.to_read

    def _make_dual(self, params: Tensors) -> DualLayers | None:
        if not self._data.x_train.is_floating_point():  # ids: what has as many columns as they are looks them up
            return None
        n, num_inputs = self.extent.most_samples, self._data.x_train[0].numel()
        names = {
            id(self.tensors.params[name]): name
            for name, p in params.items()
            if p.dim() == 2 and p.shape[1] == num_inputs and dual_pays(self.extent, *p.shape)
        }
        num_runs = self.size // self.clients_per_run
        return DualLayers(self._data.x_train, num_runs, self.clients_per_run, n, names) if names else None

    @property
    def note(self) -> dict[str, Any]:
        """What runs, for result.json."""
        compiled = self._programs.compiled
        note: dict[str, Any] = {
            "compiled_batch_sizes": [number for number in compiled if number != MASKED],
            "compiled_with_masks": MASKED in compiled,
            "dual_layers": sorted(self._dual.names) if self._dual is not None else [],
        }
        if self._why_not_compiled or (self.why_plainer and not self._engine.compiles):
            note["why_not_compiled"] = self.why_plainer or self._why_not_compiled
        elif self.why_plainer:
            note["why_not_dual"] = self.why_plainer
        return note | self._programs.graph_note

    # A round.

    def begin(
        self,
        servers: Sequence[ServerState],
        numbers: Sequence[Numbers],
        orders: Sequence[Order],
        kept: State,
        facts: Tensors,
        ids: Sequence[int],
    ) -> None:
        """Puts what the clients start from into the lanes.

        Args:
            servers: of each run, P.
            numbers: of each run, P.
            orders: of each lane, H; a lane without a client has another one's.
            kept: what the clients kept, (H, …); the last lanes' may be missing.
            facts: what is known of them likewise; nothing where they are not read (`reads_facts`).
            ids: whose lanes they are; the last lanes may be nobody's.
        """
        elsewhere = self._dual.names if self._dual is not None else set()
        num_steps = [len(order) for order in orders]
        self.tensors.begin(servers, numbers, kept, facts, ids, num_steps, elsewhere, self._is_read)
        if self._dual is not None:
            self._visited = Visited(orders, self.extent.most_samples)
            self._dual.begin(to_device(torch.from_numpy(self._visited.rows), self._device), self.tensors.start)

    def run(self, orders: Sequence[Order]) -> None:
        """Takes all local steps of the clients in the lanes."""
        self._run(self._steps(orders))

    def take(self, steps: Sequence[StepArrays]) -> None:
        """Takes these steps, and brings what they change into the lanes' tensors."""
        self._run(self._to_device(steps))
        self.put_weights()

    def mean(self, weights: np.ndarray, num_steps: Sequence[int]) -> tuple[State, Tensors, State]:
        """What each run's server receives, and what the clients keep: `LaneTensors.mean`."""
        return self.tensors.mean(weights, num_steps, self._dual)

    def begin_to_watch(self) -> None:
        """Before the first round: from now on it is noticed where the lanes' model keeps something else."""
        if not runs_only_torch(self._model):
            self._watch = Watch(model=self._model)

    def require_unchanged(self, round_num: int) -> None:
        """After the clients' steps of a round: `Watch.require_unchanged`."""
        if self._watch is not None:
            self._watch.require_unchanged(round_num)

    def put_weights(self) -> None:
        """Brings what is kept in another form into the lanes' parameters."""
        if self._dual is not None:
            self._dual.put_weights(self.tensors.start)

    @functools.cached_property
    def reads_facts(self) -> bool:
        """Whether steps or messages depend on what is known of the clients. Once the steps are recorded."""
        return self.tensors.finishes or any(map(self._is_read, self.tensors.facts.values()))

    def _is_read(self, tensor: Tensor) -> bool:
        return (self._dual is not None and self._dual.reads(tensor)) or self._programs.reads(tensor)

    # Steps.

    def _steps(self, orders: Sequence[Order]) -> list[Step]:
        """The steps of the lanes' clients, on the device."""
        return self._to_device(schedule(orders, self.extent.sizes, self.extent.width))

    def _to_device(self, arrays: Sequence[StepArrays]) -> list[Step]:
        """Brings a round's steps to the device in one go."""
        rows = self._bring([step.rows for step in arrays])
        index: Sequence[Tensor | None] = [None] * len(arrays)
        if self._dual is not None and self._visited is not None:
            index = self._bring(self._visited.positions([step.rows for step in arrays], self._dual.rows_per_lane))
        masked = [step for step in arrays if step.kind == MASKED]
        weights: Iterator[Tensor] = iter(())
        is_active: Iterator[Tensor] = iter(())
        if masked:
            weights = iter(self._bring_stacked([step.weights for step in masked], self.tensors.dtype))
            is_active = iter(self._bring_stacked([step.is_active for step in masked], torch.bool))
        return [
            Step(step.kind, count, r, i, next(weights), next(is_active))
            if step.kind == MASKED
            else Step(step.kind, count, r, i, None, None)
            for count, (step, r, i) in enumerate(zip(arrays, rows, index, strict=True), start=1)
        ]

    def _bring(self, arrays: Sequence[np.ndarray]) -> Sequence[Tensor]:
        flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
        return torch.split(to_device(flat, self._device), [array.size for array in arrays])

    def _bring_stacked(self, arrays: Sequence[np.ndarray | None], dtype: torch.dtype) -> Sequence[Tensor]:
        return to_device(torch.from_numpy(np.stack(arrays)).to(dtype), self._device).unbind()  # type: ignore[arg-type]

    def _run(self, steps: Sequence[Step]) -> None:
        if not self._plans:
            for step in steps:
                self._take(step)
            return
        while steps:
            room = {number: kind.plan.room for number, kind in self._kinds.items() if kind.plan is not None}
            part = first_that_fit(steps, room)
            for number in {step.kind for step in part}:
                self._plan_of(number).fill([step for step in part if step.kind == number])
            for step in part:
                kind = self._kinds[step.kind]
                if kind.graph is not None:
                    kind.graph.replay()
                else:
                    self._take_next(kind)
            steps = steps[len(part) :]

    def _take(self, step: Step) -> None:
        kind = self._kinds[step.kind]
        kind.read(step)
        if kind.counts:
            self._count.fill_(step.count)
        self._compute(kind, step.rows, step.count)

    def _take_next(self, kind: Kind) -> None:
        """Takes the next step of the kind's plan."""
        assert kind.plan is not None
        kind.plan.fetch_next()
        self._compute(kind, kind.rows, self._count)

    def _plan_of(self, number: int) -> Plan:
        plan = self._kinds[number].plan
        assert plan is not None
        return plan

    def _compute(self, kind: Kind, rows: Tensor, count: Any) -> None:
        self._programs.read(kind, rows)
        if kind.program is not None:
            self._programs.run(kind, self.tensors.lr)
            return
        for state, value in self._next(kind, count, self.tensors.plain_numbers()):
            state.copy_(value)

    def _next(self, kind: Kind, count: Any, hyper: Hyper) -> list[tuple[Tensor, Tensor]]:
        """Pairs of a tensor of the lanes and its next value; buffers change in place where nothing is masked."""
        if self._program is not None:
            return self._next_of_program(self._program, kind, count, hyper)
        algorithm, data, own = self.recipe.algorithm, self._data, self.tensors
        is_masked = kind.is_masked
        buffers = {name: b.clone() for name, b in own.buffers.items()} if is_masked else own.buffers

        def loss(params: Tensors, buffers: Tensors, x: Tensor, y: Tensor, weights: Tensor | None) -> Any:
            norms = nullcontext() if weights is None else MaskedBatchNorm(weights, self.extent.least)
            given = {**params, **buffers, **own.frozen}
            with norms:
                outputs = functional_call(self._model, given, (x,))
            # What the model has assigned anew stands there now.
            anew = {name: given[name].detach() for name, b in buffers.items() if given[name] is not b}
            is_ours = data.is_classification and type(algorithm).loss is Algorithm.loss
            losses = algorithm.loss(outputs, y, _cross_entropy if is_ours else data.criterion)
            return losses.mean() if weights is None else (losses * weights).sum(), anew

        def lane(
            params: Tensors,
            grads: Tensors,
            slots: Any,
            kept: State,
            anchor: Tensors,
            server: State,
            facts: Tensors,
            hyper: Hyper,
            settings: Mapping[str, Any],
        ) -> Any:
            client = Client(anchor, server, kept, facts)
            return self.recipe.step(settings)(params, grads, slots, count, client, hyper)

        with torch.enable_grad():
            losses, anew = torch.vmap(loss, in_dims=(0, 0, 0, 0, 0 if is_masked else None))(
                own.params, buffers, kind.x, kind.y, kind.weights
            )
            found = torch.autograd.grad(losses.sum(), list(own.params.values()), allow_unused=True)
        with torch.no_grad():
            by_name = {name: g for name, g in zip(own.params, found, strict=True) if g is not None}
            shared = None if own.is_shared else 0
            params, slots = torch.vmap(lane, in_dims=(0, 0, 0, 0, shared, shared, 0, shared, shared))(
                own.params,
                by_name,
                own.slots,
                own.kept,
                own.anchor,
                own.server,
                own.facts,
                dict(hyper),
                own.settings,
            )
        kind.stepped = frozenset(params)
        pairs = [(own.params[name], value) for name, value in params.items()]
        pairs += [pair for name, new in slots.items() for pair in zip(own.slots[name], new, strict=True)]
        if kind.is_active is None:
            return pairs + [(own.buffers[name], value) for name, value in anew.items()]
        pairs += [(own.buffers[name], anew.get(name, value)) for name, value in buffers.items()]
        with torch.no_grad():
            return [(old, _choose(kind.is_active, new, old)) for old, new in pairs]

    def _next_of_program(
        self, program: ClientProgram, kind: Kind, count: Any, hyper: Hyper
    ) -> list[tuple[Tensor, Tensor]]:
        """The same of an algorithm's program."""
        own = self.tensors
        shared = None if own.is_shared else 0

        def lane(
            carried: Tensors,
            slots: Any,
            buffers: Tensors,
            x: Tensor,
            y: Tensor,
            weights: Tensor | None,
            num_steps: Tensor,
            client: Client,
            hyper: Hyper,
            settings: Mapping[str, Any],
        ) -> Any:
            given = StepInputs(x, y, weights, count, num_steps, client, hyper)

            def passing() -> AbstractContextManager[Any]:
                return nullcontext() if weights is None else MaskedBatchNorm(weights, self.extent.least)

            return program.next(self.recipe.step(settings), given, carried, slots, buffers, own.frozen, passing)

        clients = Client(own.anchor, own.server, own.kept, own.facts)
        of_client = Client(shared, shared, 0, 0)  # type: ignore[arg-type]  # in which dimension the lanes are
        with torch.no_grad():
            in_dims = (0, 0, 0, 0, 0, 0 if kind.is_masked else None, 0, of_client, shared, shared)
            carried, slots, buffers = torch.vmap(lane, in_dims=in_dims)(
                own.params, own.slots, own.buffers, kind.x, kind.y, kind.weights, own.num_steps, clients, dict(hyper),
                own.settings,
            )  # fmt: skip
            kind.stepped = frozenset(carried)
            pairs = [(own.params[name], value) for name, value in carried.items()]
            pairs += [pair for name, new in slots.items() for pair in zip(own.slots[name], new, strict=True)]
            pairs = apart(pairs + [(own.buffers[name], value) for name, value in buffers.items()])
            if kind.is_active is None:
                return pairs
            return [(old, _choose(kind.is_active, new, old)) for old, new in pairs]

    # Programs.

    def record(self, kinds: Collection[int], numbers: Sequence[Numbers]) -> None:
        """Makes ready the steps of these kinds. Raises `Cannot`."""
        self.tensors.set_numbers(numbers)
        with torch.no_grad():
            self._add_all(sorted(kinds))

    def capture(self, servers: Sequence[ServerState], numbers: Sequence[Numbers]) -> None:
        """On CUDA, captures a graph of each kind of step."""
        if self._device.type == "cuda":
            with torch.no_grad():
                for number in list(self._kinds):
                    self._capture(number, servers, numbers)

    def _add_all(self, numbers: Sequence[int]) -> None:
        """Records the steps of these kinds, from the first again where one of them changes what all have in common."""
        while any(self._add(number) for number in numbers):
            self._kinds.clear()

    def _add(self, number: int) -> bool:
        """Records the steps of a kind; returns whether that has changed what all kinds have in common."""
        kind = self._empty_kind(number)
        samples = VisitedSamples(self._dual, kind.x, kind.index) if kind.index is not None and self._dual else None
        with cannot():  # vmap refuses what it cannot batch with whatever exception fits
            try:
                self._record(kind, samples)
            except CannotRecord as error:
                # Of all runs, or of all clients, at once.
                if isinstance(error, MayRaise) or (isinstance(error, ReadsNumbers) and not self.tensors.is_shared):
                    raise Cannot(str(error)) from error
                self._why_not_compiled = str(error)
        if any(other.stepped != kind.stepped for other in self._kinds.values()):
            # They would have taken different numbers of steps, which optimizers ask for.
            raise Cannot("some parameters have a gradient in batches of one size and none in those of another")
        if samples is not None and (not samples.names or set(samples.names) != self._dual.names):  # type: ignore[union-attr]
            # All kinds of steps must keep a layer in one form.
            self._dual = None
            return True
        dual, program = self._dual, kind.program
        if self.tensors.stack_what_is_read(
            lambda t: program is None or program.reads(t) or (dual is not None and dual.reads(t))
        ):
            self._dual = self._make_dual(self._like) if self._dual is not None else None
            return True
        self._kinds[number] = kind
        if self._plans:
            kind.add_plan(self.extent.most_steps, self._count if kind.counts else None)
        return False

    def _record(self, kind: Kind, samples: VisitedSamples | None) -> None:
        _first_vmap()
        rewrite = samples.rewrite if samples is not None else None
        self._programs.record(kind, lambda: self._next(kind, self._count, self.tensors.numbers), rewrite)

    def _empty_kind(self, number: int) -> Kind:
        shape = (self.size, number or self.extent.width)
        x, y = self._data.x_train, self._data.y_train
        rows = torch.zeros(shape[0] * shape[1], dtype=torch.int64, device=self._device)
        weights = torch.zeros(shape, dtype=self.tensors.dtype, device=self._device) if number == MASKED else None
        is_active = torch.zeros(self.size, dtype=torch.bool, device=self._device) if number == MASKED else None
        x, y = x.new_zeros(*shape, *x.shape[1:]), y.new_zeros(*shape, *y.shape[1:])
        index = torch.zeros_like(rows) if self._dual is not None else None
        return Kind(rows, x, y, x.flatten(0, 1), y.flatten(0, 1), weights, is_active, index)

    def _capture(self, number: int, servers: Sequence[ServerState], numbers: Sequence[Numbers]) -> None:
        """Captures the graph that takes the next step of a kind's plan."""
        kind = self._kinds[number]
        orders = self.orders_at_trial(number)
        kept = self.kept_at_trial()

        def restart() -> None:
            self.begin(servers, numbers, orders, kept, self.facts_at_trial(), self.ids_at_trial())
            steps = self._to_device(schedule(orders, {number}, number or self.extent.width))
            self._plan_of(number).fill(steps[:1])

        def results() -> list[Tensor]:
            slots = [slot for own in self.tensors.slots.values() for slot in own]
            forms = self._dual.tensors if self._dual is not None else []
            return [*(p.detach() for p in self.tensors.params.values()), *self.tensors.buffers.values(), *slots, *forms]

        self._programs.capture(kind, partial(self._take_next, kind), restart, results)

    # What trials take (`lane_trial.py`).

    def kept_at_trial(self) -> State:
        """Of each lane's client."""
        kept = kept_at_trial(self.recipe.algorithm, self._trial.params)
        return {s: {name: t.expand(self.size, *t.shape) for name, t in ts.items()} for s, ts in kept.items()}

    def facts_at_trial(self) -> Tensors:
        """Of each lane's client."""
        facts = self._trial.facts.of_many(self.ids_at_trial())
        # What is measured once there is something to train; each lane's differs, or one that is another's went unseen.
        grows = 1 + torch.arange(self.size, dtype=self.tensors.dtype, device=self._device) / 8
        for name, t in self._trial.first_facts.items():
            if name not in facts:
                facts[name] = grows.to(t.dtype).view(-1, *[1] * t.dim()) * t
        return facts

    def ids_at_trial(self) -> list[int]:
        """The lanes' clients."""
        num_clients = len(self._trial.data.offsets) - 1
        return [lane % num_clients for lane in range(self.size)]

    def orders_at_trial(self, number: int) -> list[Order]:
        """Two steps of a kind in each lane."""
        n = number or self.extent.width
        some = np.arange(n * self.size) % len(self._data.x_train)
        batches = [some[i * n : (i + 1) * n] for i in range(self.size)]
        orders = [Order(np.concatenate([batch, batch[::-1]]), (n, n)) for batch in batches]
        if number == MASKED:  # the last lane: one step on a part of a batch; the second: two, and the other is a part
            part = max(self.extent.least, n // 2)
            if self.size > 2:
                orders[1] = Order(np.concatenate([batches[1], batches[1][:part]]), (n, part))
            orders[-1] = Order(batches[-1][:part], (part,))
        return orders


@functools.cache
def _first_vmap() -> None:
    """Has torch import what it imports at the first call: 2.6 its compiler, whose import computes, and was recorded."""
    torch.vmap(torch.neg)(torch.zeros(1))


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each sample, in fewer operations than vmap makes of torch's."""
    return -outputs.log_softmax(dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _choose(is_active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(is_active.view(-1, *[1] * (old.dim() - 1)), new, old)
