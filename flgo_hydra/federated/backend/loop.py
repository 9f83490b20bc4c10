"""A cohort's clients one after another in one working model.

A local step is a recorded program (`traced.py`) for the batch sizes where that pays, and plain autograd for the others.
"""

import copy
import functools
import logging
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flgo_hydra.config.option import AUTO, PLAIN, EngineConf
from flgo_hydra.federated.algorithm.base import (
    Algorithm,
    Client,
    Hyper,
    State,
    Tensors,
    runs_program,
    takes_all_messages,
)
from flgo_hydra.federated.algorithm.message import Messages
from flgo_hydra.federated.backend.buffers import Buffers
from flgo_hydra.federated.backend.cannot import Cannot, cannot
from flgo_hydra.federated.backend.habits import TRIAL_LR, Habits, look
from flgo_hydra.federated.backend.only_torch import runs_only_torch
from flgo_hydra.federated.backend.python_state import outside_kept
from flgo_hydra.federated.backend.traced import TracedSteps
from flgo_hydra.federated.backend.trial import Difference, Differs, difference, few, is_wide, rounded, verdict, widened
from flgo_hydra.federated.backend.watch import Watch, late
from flgo_hydra.federated.clients.client_program import ClientProgram, StepInputs, apart, unflat
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.clients.measured import Measured, stacked
from flgo_hydra.federated.clients.own_buffers import OwnBuffers
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.data.facts import Facts
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.model import to_dtype
from flgo_hydra.federated.optimizer import StepCounts, is_zero
from flgo_hydra.federated.randomness import Purpose, generators_kept, seed_all, seed_torch, torch_seed
from flgo_hydra.federated.training import (
    MEAN,
    LocalStep,
    LocalWork,
    Mean,
    ServerState,
    Stack,
    changes_of,
    finish_round,
    kept_at_trial,
    row_of,
    weights_of,
)
from flgo_hydra.federated.transfer import to_device
from flgo_hydra.recorder.graph import exact_convolutions

KEPT_BY_PYTHON = "kept by Python"
"""In a run's `form`: what no checkpoint has."""
_log = logging.getLogger(__name__)
PAYS_AFTER = 100
"""Steps of a run after which recording a program has paid: it takes as long as 20 to 60 plain steps (measured on an
MLP and the FedAvg paper's CNN), and each step then saves a third."""


class LoopBackend:
    """Trains a cohort's clients one after another in one working model."""

    name = "loop"

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        step: LocalStep,
        work: LocalWork,
        engine: EngineConf = AUTO,
        visits: float = float("inf"),
    ) -> None:
        """
        Args:
            engine: whether steps are recorded as programs where it pays, and captured as graphs.
            visits: rounds of the run in which a client is expected to take part.
        """
        self.data = data
        self._offsets = np.array(data.offsets)
        self.step = step
        self._work = work
        more = step.algorithm.more_facts(len(data.offsets) - 1)
        self.facts = Facts(data, next(model.parameters()).dtype, more)
        self.first_facts = self.facts.of(0)
        """what client 0 knows; of what is measured, since `find_program`"""
        step.algorithm.bind(model)
        self.own_buffers = OwnBuffers(step.algorithm, model)
        self._runs_program = runs_program(step.algorithm)
        self._bind(model)
        self._messages = Messages(step.algorithm, self.params)
        # What a plain FedAvg client does in place, without the general step's copies.
        self._corrects = type(step.algorithm).correct is not Algorithm.correct or not is_zero(step.clip_grad)
        self._has_own_loss = type(step.algorithm).loss is not Algorithm.loss
        self._paying = paying_sizes(np.diff(data.offsets), work, visits) if engine.compiles else frozenset()
        self._engine = engine
        self._traced: TracedSteps | None = None
        self._habits: Habits | None = None
        self._watch: Watch | None = None
        self._is_prepared = not engine.compiles
        self.why_not_compiled = "engine.compile=off"
        if engine.compiles:
            self.why_not_compiled = "" if self._paying else "the run is too short"

    def _bind(self, model: nn.Module) -> None:
        """Makes this the working model."""
        self.model = model
        self.params: Tensors = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._param_list = list(self.params.values())
        self._buffers = Buffers(model)
        self.buffers: Tensors = self._buffers.homes
        self.carried: Tensors = self.params
        """what a client's steps change: the working model, or what its algorithm's program carries"""
        self.slots = self.step.start(self.params)
        """what the optimizer keeps of it"""
        self.program: ClientProgram | None = None
        self.measured = Measured(self.step.algorithm, model, self.data)

    def find_program(self, server: ServerState, hyper: Hyper) -> None:
        """Before a first step: what the algorithm's program carries, if it has one, and what its clients know."""
        if self.measured.is_before and len(self.first_facts) == len(self.facts.of(0)):
            self.first_facts = self.client_at_trial(server, 0, hyper).facts
        if self.program is not None or not self._runs_program:
            return
        program = ClientProgram(self.step.algorithm, self.model, self.data.criterion)
        self.load(server)
        self.model.train()
        try:
            algorithm = copy.deepcopy(self.step.algorithm)
        except Exception:  # whatever it holds that cannot be copied
            algorithm = self.step.algorithm
        of_copy = ClientProgram(algorithm, self.model, self.data.criterion)
        x, y = self.data.x_train[:2], self.data.y_train[:2]
        given = StepInputs(x, y, None, 1, 1, self.client_at_trial(server, 0, hyper), hyper)
        self.carried = of_copy.find_form(self.step, given, *self.buffers_and_fixed())
        program.take_form(of_copy)
        self.slots = {name: tuple(slot.clone() for slot in slots) for name, slots in program.slots.items()}
        self.program = program

    def buffers_and_fixed(self) -> tuple[Tensors, Tensors]:
        """The model's state that is not trained: what a step may change, and frozen parameters."""
        fixed: Tensors = {name: b for name, b in self.buffers.items() if isinstance(b, nn.Parameter)}
        return {name: b for name, b in self.buffers.items() if name not in fixed}, fixed

    def client_at_trial(self, server: ServerState, k: int, hyper: Hyper) -> Client:
        """Client k, with something else in its state than at first: zeros would hide what is done with them."""
        state = kept_at_trial(self.step.algorithm, server.params)
        return self._client(k, server, state, server.buffers, hyper)

    def _client(self, k: int, server: ServerState, state: State, buffers: Tensors, hyper: Hyper) -> Client:
        client = Client(server.params, server.state, state, self.facts.of(k))
        found = self.measured.before(k, client, hyper, buffers)
        return client._replace(facts={**client.facts, **found}) if found else client

    def facts_of_many(
        self, ids: Sequence[int], server: ServerState, kept: State, hyper: Hyper, round_num: int
    ) -> Tensors:
        """What these clients know, stacked.

        Args:
            kept: what they keep, stacked.
        """
        if not self.measured.is_before:
            return self.facts.of_many(ids)
        found = []
        for i, k in enumerate(ids):
            state, own_buffers = self.own_buffers.apart({s: {n: t[i] for n, t in ts.items()} for s, ts in kept.items()})
            self._seed(k, round_num)
            found.append(self._client(k, server, state, {**server.buffers, **own_buffers}, hyper).facts)
        return stacked(found)

    def end(
        self, k: int, carry: State, client: Client, num_steps: Any, hyper: Hyper, buffers: Tensors
    ) -> tuple[State, State]:
        """What a client sends and what it keeps, after its steps.

        Args:
            buffers: that it has come to.
        """
        if found := self.measured.after(k, carry, client, hyper, buffers):
            client = client._replace(facts={**client.facts, **found})
        return self._messages.read(self.step.algorithm.end(carry, client, num_steps, hyper))

    def _seed(self, k: int, round_num: int) -> None:
        # Ours draw from no other generators, and seeding these would be 2 % of a small client's time.
        seed = seed_all if self._runs_users_code else seed_torch
        seed(torch_seed(self._work.seed, Purpose.LOCAL_NOISE, round_num, k), self._param_list[0].device)

    def copy(self, data: Data | None = None, dtype: torch.dtype | None = None) -> "LoopBackend":
        """Plain steps in a copy of the working model, of the algorithm and of what they keep."""
        # Together: a model and an algorithm may hold the same thing.
        model, step = copy.deepcopy((self.model, self.step))
        return LoopBackend(to_dtype(model, dtype) if dtype else model, data or self.data, step, self._work, PLAIN)

    @property
    def has_users_code(self) -> bool:
        """A model or an algorithm of the user's computes."""
        return self._work.has_users_code

    @property
    def form(self) -> dict[str, Any]:
        """What decides how numbers are rounded, whatever a model then allows."""
        return {"backend": self.name}

    @property
    def kept_by_python(self) -> dict[str, str]:
        """What a model or an algorithm keeps beside its tensors, if any: no checkpoint has it, nor another process."""
        name = self._keeps or (self._watch.changed() if self._watch is not None else "")
        return {KEPT_BY_PYTHON: f"{name} of process {uuid.uuid4()}"} if name else {}

    @property
    def _keeps(self) -> str:
        return self._habits.keeps if self._habits is not None else ""

    @property
    def note(self) -> dict[str, Any]:
        """What ran, for result.json."""
        note: dict[str, Any] = {"backend": self.name, "compiled_batch_sizes": []}
        if self._traced is not None:
            note |= {"compiled_batch_sizes": self._traced.sizes, **self._traced.graph_note}
        return note | ({"why_not_compiled": self.why_not_compiled} if self.why_not_compiled else {})

    def load(self, server: ServerState) -> nn.Module:
        with torch.no_grad():
            torch._foreach_copy_(self._param_list, list(server.params.values()))
            self._buffers.put(server.buffers)
        return self.model

    def train(
        self, server: ServerState, clients: ClientStates, cohort: Cohort, hyper: Hyper, round_num: int
    ) -> ServerState:
        algorithm = self.step.algorithm
        ids = cohort.clients.tolist()
        batches = self._batches(cohort.clients, round_num)
        self.prepare(server, hyper)
        self.why_plain_from(round_num)
        self.model.train()
        message: Mean | Stack = Stack(algorithm, cohort, hyper) if takes_all_messages(algorithm) else Mean()
        changes = Mean()
        for k, steps, weights in zip(ids, batches, weights_of(cohort).T.tolist(), strict=True):
            self.load(server)
            state, own_buffers = self.own_buffers.apart(clients.get(k))
            buffers = server.buffers
            if own_buffers:
                buffers = {**buffers, **own_buffers}
                self._buffers.put(buffers)
            self._seed(k, round_num)
            client = self._client(k, server, state, buffers, hyper)
            self.train_client(steps, client, hyper)
            with torch.no_grad():
                now = self._buffers.now() if self.buffers else {}
                sent, kept = self.end(k, self.carry, client, len(steps), hyper, now)
                for entry, tensors in sent.items():
                    message.add({entry: tensors}, weights[row_of(entry, algorithm)])
                clients.put(k, self.own_buffers.joined(kept, now))
                if now:
                    changes.add({"": changes_of(now, self.own_buffers.averaged(server.buffers))}, weights[MEAN])
        if self._traced is not None:
            self.require_unchanged(round_num)
        with torch.no_grad():
            mean_changes = changes.value()[""] if self.buffers else {}
            seed_all(torch_seed(self._work.seed, Purpose.SERVER, round_num), self._param_list[0].device)
            return finish_round(server, algorithm, message.value(), mean_changes, cohort, hyper)

    def _batches(self, clients: np.ndarray, round_num: int) -> list[tuple[Tensor, ...]]:
        """The rows of the training samples in each step of each client, brought to the device in one go."""
        orders = self._work.orders(self._offsets, clients, round_num)
        flat = torch.from_numpy(np.concatenate([order.rows for order in orders]))
        lengths = [size for order in orders for size in order.sizes]
        steps = torch.split(to_device(flat, self.data.x_train.device), lengths)
        ends = np.cumsum([len(order) for order in orders])
        return [steps[end - len(order) : end] for end, order in zip(ends.tolist(), orders, strict=True)]

    @property
    def carry(self) -> State:
        """What the client's steps have come to."""
        return unflat(self.carried) if self.program is not None else {"model": self.params}

    def train_client(self, steps: Sequence[Tensor], client: Client, hyper: Hyper) -> None:
        """Takes local steps on these rows of the training samples in the working model, as it is."""
        with torch.no_grad():
            if self.program is not None:
                for name, start in self.program.begin(client, hyper).items():
                    self.carried[name].copy_(start)
            for tensors in self.slots.values():
                for tensor in tensors:
                    tensor.zero_()
            if self._traced is not None:
                self._traced.start(client, hyper, len(steps))
            counts = StepCounts(self.carried)
            for rows in steps:
                if self._traced is not None and self._traced.run(rows, counts):
                    continue
                x, y = self.data.x_train[rows], self.data.y_train[rows]
                if self.program is not None:
                    count = next(iter(counts.next(self.carried).values()))
                    for state, value in self._next(StepInputs(x, y, None, count, len(steps), client, hyper)):
                        state.copy_(value)
                    continue
                with torch.enable_grad():
                    loss = self.loss(x, y)
                    grads = torch.autograd.grad(loss, self._param_list, allow_unused=True)
                self._apply(grads, counts, client, hyper)
                if self._traced is not None:  # the next step may be a program
                    self._buffers.bring_home()

    def _next(self, given: StepInputs) -> list[tuple[Tensor, Tensor]]:
        """A step of the algorithm's program: pairs of a tensor and its next value."""
        assert self.program is not None
        carried, slots, buffers = self.program.next(
            self.step, given, self.carried, self.slots, *self.buffers_and_fixed()
        )
        pairs = [(self.carried[name], value) for name, value in carried.items()]
        pairs += [pair for name, new in slots.items() for pair in zip(self.slots[name], new, strict=True)]
        return apart(pairs + [(self.buffers[name], value) for name, value in buffers.items()])

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        try:
            outputs = self.model(x)
        except ValueError as error:
            if len(x) == 1 and "more than 1 value per channel" in str(error):
                raise ValueError(
                    f"{error}. A client's last batch has a single sample, which batch normalisation cannot train on: "
                    "set another `batch_size` (-1: all samples at once), or a model with group normalisation."
                ) from error
            raise
        if self._has_own_loss:
            return self.step.algorithm.loss(outputs, y, self.data.criterion).mean()
        return self.data.mean_criterion(outputs, y)

    def _apply(self, found: Sequence[Tensor | None], counts: StepCounts, client: Client, hyper: Hyper) -> None:
        grads = {name: g for name, g in zip(self.params, found, strict=True) if g is not None}
        optimizer = self.step.optimizer
        if not optimizer.is_plain_sgd:
            next_params, next_slots = self.step(self.params, grads, self.slots, counts, client, hyper)
            if next_params:
                torch._foreach_copy_([self.params[name] for name in next_params], list(next_params.values()))
            for name, tensors in next_slots.items():
                for slot, tensor in zip(self.slots[name], tensors, strict=True):
                    slot.copy_(tensor)
            return
        if self._corrects:
            grads = self.step.direction(self.params, grads, client, hyper)
        if not grads:
            return
        params, directions = [self.params[name] for name in grads], list(grads.values())
        if optimizer.weight_decay:
            directions = list(torch._foreach_add(directions, params, alpha=optimizer.weight_decay))
        torch._foreach_add_(params, directions, alpha=-hyper["lr"])

    def habits(self, server: ServerState, hyper: Hyper) -> Habits:
        """What the model and the algorithm do beside computing, found out before the first round.

        Raises:
            Refused: something that no backend can honour.
        """
        if self._habits is None:
            self._habits = look(self, sorted(self._all_sizes()), server, hyper)
        return self._habits

    def _all_sizes(self) -> frozenset[int]:
        """Of the batches that clients of the task take."""
        return paying_sizes(np.diff(self.data.offsets), self._work, float("inf"))

    def prepare(self, server: ServerState, hyper: Hyper) -> None:
        """Before the first round: records programs for the batch sizes that pay, where they do what plain steps do."""
        habits = self.habits(server, hyper)
        self.find_program(server, hyper)
        if not self._is_prepared and self._paying:
            self._is_prepared = True
            try:
                if habits.why_plain:
                    raise Cannot(habits.why_plain)
                self._record_alike(server, hyper)
            except Cannot as error:
                self.why_not_compiled = str(error)
                _log.info("local steps run uncompiled: %s", error)
        self.begin_to_watch()

    def _record_alike(self, server: ServerState, hyper: Hyper) -> None:
        """Records programs that do what plain steps do. Raises `Cannot`, and is then as before."""
        original = self.model
        plain = self.copy()
        # The programs are of a copy, which from now on is trained: the trial leaves no trace in the user's model.
        self._bind(copy.deepcopy(original))
        self.find_program(server, hyper)
        kept = {"model": original, "algorithm": self.step.algorithm} if self.has_users_code else {}
        try:
            with generators_kept(), exact_convolutions(), outside_kept(**kept):
                traced = self._record(sorted(self._paying), server, hyper)
                self._require_alike(plain, server, hyper)
        except Cannot:
            self._traced = None
            self._bind(original)
            self.find_program(server, hyper)
            raise
        with generators_kept():
            traced.capture(lambda: self.load(server), server, hyper)

    def begin_to_watch(self, has_users_metrics: bool = False) -> None:
        """Before the first round: from now on it is noticed where Python keeps something else.

        Args:
            has_users_metrics: the user's metrics are given the model, whoever's it is.
        """
        if self._watch is None and (has_users_metrics or self._runs_users_code):
            self._watch = Watch(model=self.model, algorithm=self.step.algorithm)

    @functools.cached_property
    def _runs_users_code(self) -> bool:
        """A user's own model may be made of torch's layers alone."""
        is_ours = type(self.step.algorithm).__module__.startswith("flgo_hydra.")
        return self.has_users_code and not (is_ours and runs_only_torch(self.model))

    def why_plain_from(self, round_num: int) -> str:
        """Before a round: why steps must be plain from now on, since something has changed, or nothing."""
        name = self._watch.changed() if self._watch is not None and not self._keeps else ""
        if not name:
            return ""
        why = late(name, round_num)
        _log.warning("from now on local steps run uncompiled: %s", why)
        self._traced, self._is_prepared, self.why_not_compiled = None, True, why
        self._habits = Habits(why_plain=why, why_apart=why, keeps=name)
        return why

    def require_unchanged(self, round_num: int) -> None:
        """After the clients' steps of a round, which were not all plain: `Watch.require_unchanged`."""
        if self._watch is not None and not self._keeps:
            self._watch.require_unchanged(round_num)

    def put_back(self) -> None:
        """Gives what other runs share with this one the values that it had before the first round."""
        if self._watch is not None:
            self._watch.put_back()

    def _record(self, sizes: list[int], server: ServerState, hyper: Hyper) -> TracedSteps:
        """Records a program for each of these batch sizes. Raises `Cannot`."""
        client = self.client_at_trial(server, 0, hyper)
        self._traced = traced = TracedSteps(
            self.params,
            self.carried,
            self._buffers,
            self.slots,
            self.loss,
            self.step,
            self.data,
            client,
            self._engine,
            self._next if self.program is not None else None,
        )
        self.load(server)
        self.model.train()
        for size in sizes:
            traced.compile(_batches_of(self.data, size)[0], lambda: self.load(server), hyper)
        return traced

    def _require_alike(self, plain: "LoopBackend", server: ServerState, hyper: Hyper) -> None:
        """Raises `Cannot` where the recorded steps differ from plain ones."""
        sizes = sorted(self._paying)

        def native(is_rounded: bool) -> Difference | None:
            return self._differs(plain, sizes, server, hyper, is_rounded)

        def wide() -> Differs | None:
            data, wide_server = few(self.data, 2 * max(sizes)), widened(server)
            ours, theirs = (plain.copy(data, torch.float64) for _ in range(2))
            ours.load(wide_server)
            ours.model.train()
            if not is_wide(ours.model, data.x_train[:2]):
                return None
            ours._record(sizes, wide_server, hyper)
            return partial(ours._differs, theirs, sizes, wide_server, hyper)

        with cannot():
            found = verdict(native, wide, self._param_list[0].dtype)
        if found:
            raise Cannot(f"recorded steps differ from plain ones: {found}")

    def _differs(
        self, plain: "LoopBackend", sizes: list[int], server: ServerState, hyper: Hyper, is_rounded: bool
    ) -> Difference | None:
        """The worst difference between our steps and plain ones, two of each size, and of two sizes in turn."""
        hyper = {**hyper, "lr": TRIAL_LR}
        client = self.client_at_trial(server, 0, hyper)
        tried = [_batches_of(self.data, size) for size in sizes]
        others = self._all_sizes() - set(sizes)
        if others:  # a client takes recorded steps and plain ones
            first, second = tried[-1]
            tried.append((first, _batches_of(self.data, max(others))[0], second))
        for batches in tried:
            theirs = plain.after(batches, server, client, hyper)
            noise = plain.after(batches, rounded(server), client, hyper) if is_rounded else None
            ours = self.after(batches, server, client, hyper)
            if (found := difference(plain.after((), server, client, hyper), theirs, ours, noise)) is not None:
                return found
        return None

    def after(self, batches: Sequence[Tensor], server: ServerState, client: Client, hyper: Hyper) -> Tensors:
        """A trial: everything that a client's steps change, after these steps, by name."""
        self.find_program(server, hyper)
        self.load(server)
        self.model.train()
        seed_all(0, self._param_list[0].device)
        self.train_client(batches, client, hyper)
        ends: Tensors = {**self.carried, **self._buffers.now()}
        for name, slots in self.slots.items():
            ends |= {f"slot {i} of {name}": slot for i, slot in enumerate(slots)}
        return {name: t.detach().clone() for name, t in ends.items()}

    def check_buffers(self) -> None:
        """Raises `Refused` where a buffer has become something else."""
        self._buffers.now()


def _batches_of(data: Data, size: int) -> tuple[Tensor, ...]:
    """The rows of two batches that share few samples or none, from all over the training samples."""
    n = len(data.x_train)
    rows = torch.arange(size, device=data.x_train.device) * max(1, n // size)
    return rows % n, (rows.flip(0) + 1) % n


def paying_sizes(num_samples: np.ndarray, work: LocalWork, visits: float) -> frozenset[int]:
    """Batch sizes that a run takes often enough. They follow from the config, and so do a run's numbers."""
    steps: dict[int, float] = {}
    for n, num_clients in zip(*np.unique(num_samples, return_counts=True), strict=True):
        size, num_steps = work.size(int(n))
        per_epoch = -(-int(n) // size)
        num_partial = num_steps // per_epoch if n % size else 0
        steps[size] = steps.get(size, 0) + visits * int(num_clients) * (num_steps - num_partial)
        if num_partial:
            steps[int(n) % size] = steps.get(int(n) % size, 0) + visits * int(num_clients) * num_partial
    return frozenset(size for size, count in steps.items() if count >= PAYS_AFTER)
