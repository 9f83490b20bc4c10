"""A client's local steps in a working model: by recorded programs for the batch sizes that have one, else plainly.

Plain steps run whatever Python can say, and are what every faster form is held to.
"""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flgo_hydra.config.option import EngineConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors, runs_program
from flgo_hydra.federated.algorithm.message import Messages
from flgo_hydra.federated.backend.buffers import Buffers
from flgo_hydra.federated.backend.only_torch import runs_only_torch
from flgo_hydra.federated.backend.recorded_steps import RecordedSteps, paying_sizes
from flgo_hydra.federated.clients.client_program import ClientProgram, StepInputs, apart, unflat
from flgo_hydra.federated.clients.measured import Measured, stacked
from flgo_hydra.federated.clients.own_buffers import OwnBuffers
from flgo_hydra.federated.data.facts import Facts
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.model import to_dtype
from flgo_hydra.federated.optimizer import StepCounts, is_zero
from flgo_hydra.federated.randomness import Purpose, seed_all, seed_torch, torch_seed
from flgo_hydra.federated.training import LocalStep, LocalWork, ServerState, kept_at_trial


class LocalSteps:
    """Takes the steps of one client after another.

    Args:
        model: the working model; its own weights do not matter.
    """

    def __init__(self, model: nn.Module, data: Data, step: LocalStep, work: LocalWork) -> None:
        self.data = data
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
        self.recorded: RecordedSteps | None = None
        """programs of steps on batches of some sizes"""

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
        seed = seed_all if self.runs_users_code else seed_torch
        seed(torch_seed(self._work.seed, Purpose.LOCAL_NOISE, round_num, k), self._param_list[0].device)

    def copy(self, data: Data | None = None, dtype: torch.dtype | None = None) -> "LocalSteps":
        """Plain steps in a copy of the working model, of the algorithm and of what they keep."""
        # Together: a model and an algorithm may hold the same thing.
        model, step = copy.deepcopy((self.model, self.step))
        return LocalSteps(to_dtype(model, dtype) if dtype else model, data or self.data, step, self._work)

    @property
    def has_users_code(self) -> bool:
        """A model or an algorithm of the user's computes."""
        return self._work.has_users_code

    @functools.cached_property
    def runs_users_code(self) -> bool:
        """A user's own model may be made of torch's layers alone."""
        is_ours = type(self.step.algorithm).__module__.startswith("flgo_hydra.")
        return self.has_users_code and not (is_ours and runs_only_torch(self.model))

    def load(self, server: ServerState) -> nn.Module:
        with torch.no_grad():
            torch._foreach_copy_(self._param_list, list(server.params.values()))
            self._buffers.put(server.buffers)
        return self.model

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
            if self.recorded is not None:
                self.recorded.start(client, hyper, len(steps))
            counts = StepCounts(self.carried)
            for rows in steps:
                if self.recorded is not None and self.recorded.run(rows, counts):
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
                if self.recorded is not None:  # the next step may be a program
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

    def record(self, batches: Sequence[Tensor], server: ServerState, hyper: Hyper, engine: EngineConf) -> RecordedSteps:
        """Records a program for each of these batches' sizes. Raises `Cannot`."""
        client = self.client_at_trial(server, 0, hyper)
        self.recorded = RecordedSteps(
            self.params,
            self.carried,
            self._buffers,
            self.slots,
            self.loss,
            self.step,
            self.data,
            client,
            engine,
            self._next if self.program is not None else None,
        )
        self.load(server)
        self.model.train()
        for rows in batches:
            self.recorded.compile(rows, lambda: self.load(server), hyper)
        return self.recorded

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

    def all_sizes(self) -> frozenset[int]:
        """Of the batches that clients of the task take."""
        return paying_sizes(np.diff(self.data.offsets), self._work, float("inf"))

    def check_buffers(self) -> None:
        """Raises `Refused` where a buffer has become something else."""
        self._buffers.now()
