"""A cohort's clients one after another in one working model.

A local step is a recorded program (`traced.py`) for the batch sizes where that pays, and plain autograd for the others.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, Tensors
from flgo_hydra.federated.backend.timing import seconds_of
from flgo_hydra.federated.backend.traced import TracedSteps
from flgo_hydra.federated.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.data import Data
from flgo_hydra.federated.optimizer import is_zero
from flgo_hydra.federated.randomness import Purpose, seed_all, torch_seed
from flgo_hydra.federated.training import LocalStep, LocalWork, Mean, ServerState, buffers_of, finish_round
from flgo_hydra.federated.transfer import to_device

_log = logging.getLogger(__name__)
PAYS_AFTER = 100
"""Steps of a run after which recording a program has paid: it takes as long as 20 to 60 plain steps (measured on an
MLP and the FedAvg paper's CNN), and each step then saves a third."""


_SLOWER = 1.5
"""A recorded step is given up when it takes so many times as long as a plain one, or more: no matter of chance."""


class LoopBackend:
    """Trains a cohort's clients one after another in one working model."""

    name = "loop"

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        step: LocalStep,
        work: LocalWork,
        compiles: bool = True,
        visits: float = float("inf"),
        graphs: bool = True,
    ) -> None:
        """
        Args:
            compiles: record steps as programs where it pays.
            visits: rounds of the run in which a client is expected to take part.
            graphs: on CUDA, capture graphs of them.
        """
        self._model = model
        self._data = data
        self._offsets = np.array(data.offsets)
        self._step = step
        self._work = work
        self.params: Tensors = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._param_list = list(self.params.values())
        self.buffers = buffers_of(model)
        self._slots = step.start(self.params)
        # What a plain FedAvg client does in place, without the general step's copies.
        self._corrects = type(step.algorithm).correct is not Algorithm.correct or not is_zero(step.clip_grad)
        self._has_own_loss = type(step.algorithm).loss is not Algorithm.loss
        self._paying = paying_sizes(np.diff(data.offsets), work, visits) if compiles else frozenset()
        self._traced: TracedSteps | None = None
        self.is_recorded: bool | None = None
        """whether recorded steps were found to pay; None: no step has been recorded yet"""
        self._why_not_compiled = "engine.compile=off"
        if compiles:
            self._traced = TracedSteps(self.params, self.buffers, self._slots, self._loss, step, data, graphs)
            self._why_not_compiled = "" if self._paying else "the run is too short"

    @property
    def note(self) -> dict[str, Any]:
        """What ran, for result.json."""
        sizes = sorted(self._traced.sizes) if self._traced is not None else []
        note: dict[str, Any] = {"backend": self.name, "compiled_batch_sizes": sizes}
        if self._traced is not None and self._data.x_train.device.type == "cuda":
            note |= self._traced.graph_note
        return note | ({"why_not_compiled": self._why_not_compiled} if self._why_not_compiled else {})

    def decide(self, is_recorded: bool | None) -> None:
        """Takes over what an earlier process found out, so that the run's numbers go on as they began."""
        self.is_recorded = is_recorded
        if is_recorded is False and self._traced is not None:
            self._traced, self._why_not_compiled = None, "checkpoint"

    def load(self, server: ServerState) -> nn.Module:
        with torch.no_grad():
            torch._foreach_copy_(self._param_list, list(server.params.values()))
            for name, buffer in self.buffers.items():
                buffer.copy_(server.buffers[name])
        return self._model

    def train(
        self, server: ServerState, clients: ClientStates, cohort: Cohort, hyper: Hyper, round_num: int
    ) -> ServerState:
        algorithm = self._step.algorithm
        ids = cohort.clients.tolist()
        batches = self._batches(cohort.clients, round_num)
        self._model.train()
        self._compile(server, batches, hyper)
        message, buffers = Mean(), Mean()
        buffer_weights = cohort.weights / cohort.weights.sum()
        for k, steps, weight, buffer_weight in zip(ids, batches, cohort.weights, buffer_weights, strict=True):
            self.load(server)
            client = Client(server.params, server.state, clients.get(k))
            seed_all(torch_seed(self._work.seed, Purpose.LOCAL_NOISE, round_num, k), self._param_list[0].device)
            self.train_client(steps, client, hyper)
            with torch.no_grad():
                sent, kept = algorithm.finish(self.params, client, len(steps), hyper)
                message.add(sent, float(weight))
                clients.put(k, kept)
                if self.buffers:
                    buffers.add({"": self.buffers}, float(buffer_weight))
        with torch.no_grad():
            mean_buffers = buffers.value()[""] if self.buffers else {}
            seed_all(torch_seed(self._work.seed, Purpose.SERVER, round_num), self._param_list[0].device)
            return finish_round(server, algorithm, message.value(), mean_buffers, cohort, hyper)

    def estimate(self, server: ServerState, cohort: Cohort, hyper: Hyper, round_num: int) -> float:
        """Seconds that the cohort's local steps would take, from a few steps of each batch size."""
        batches = self._batches(cohort.clients, round_num)
        self._model.train()
        self._compile(server, batches, hyper)
        self.load(server)
        state = self._step.algorithm.init_client(self.params)
        client = Client(server.params, server.state, state)
        by_size = {len(rows): rows for steps in batches for rows in steps}
        num_steps = Counter(len(rows) for steps in batches for rows in steps)
        device = self._param_list[0].device
        seconds = 0.0
        for size, rows in by_size.items():
            steps = partial(self.train_client, [rows] * 4, client, hyper)
            seconds += num_steps[size] * seconds_of(steps, device) / 4
        return seconds

    def _batches(self, clients: np.ndarray, round_num: int) -> list[tuple[Tensor, ...]]:
        """The rows of the training samples in each step of each client, brought to the device in one go."""
        orders = self._work.orders(self._offsets, clients, round_num)
        flat = torch.from_numpy(np.concatenate([order.rows for order in orders]))
        lengths = [size for order in orders for size in order.sizes]
        steps = torch.split(to_device(flat, self._data.x_train.device), lengths)
        ends = np.cumsum([len(order) for order in orders])
        return [steps[end - len(order) : end] for end, order in zip(ends.tolist(), orders, strict=True)]

    def train_client(self, steps: Iterable[Tensor], client: Client, hyper: Hyper) -> None:
        """Takes local steps on these rows of the training samples in the working model, as it is."""
        with torch.no_grad():
            for tensors in self._slots.values():
                for tensor in tensors:
                    tensor.zero_()
            if self._traced is not None:
                self._traced.start(client, hyper)
            for count, rows in enumerate(steps, start=1):
                if self._traced is not None and self._traced.run(rows, count):
                    continue
                x, y = self._data.x_train[rows], self._data.y_train[rows]
                with torch.enable_grad():
                    loss = self._loss(x, y)
                    grads = torch.autograd.grad(loss, self._param_list, allow_unused=True, materialize_grads=True)
                self._apply(grads, count, client, hyper)

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        try:
            outputs = self._model(x)
        except ValueError as error:
            if len(x) == 1 and "more than 1 value per channel" in str(error):
                raise ValueError(
                    f"{error}. A client's last batch has a single sample, which batch normalisation cannot train on: "
                    "set another `batch_size` (-1: all samples at once), or a model with group normalisation."
                ) from error
            raise
        if self._has_own_loss:
            return self._step.algorithm.loss(outputs, y, self._data.criterion).mean()
        return self._data.mean_criterion(outputs, y)

    def _apply(self, grads: tuple[Tensor, ...], count: int, client: Client, hyper: Hyper) -> None:
        optimizer = self._step.optimizer
        if not optimizer.is_plain_sgd:
            by_name = dict(zip(self.params, grads, strict=True))
            next_params, next_slots = self._step(self.params, by_name, self._slots, count, client, hyper)
            torch._foreach_copy_(self._param_list, [next_params[name] for name in self.params])
            for name, tensors in next_slots.items():
                for slot, tensor in zip(self._slots[name], tensors, strict=True):
                    slot.copy_(tensor)
            return
        if self._corrects:
            by_name = dict(zip(self.params, grads, strict=True))
            direction = self._step.direction(self.params, by_name, client, hyper)
            grads = tuple(direction[name] for name in self.params)
        if optimizer.weight_decay:
            grads = torch._foreach_add(grads, self._param_list, alpha=optimizer.weight_decay)
        torch._foreach_add_(self._param_list, grads, alpha=-hyper["lr"])

    def _compile(self, server: ServerState, batches: list[tuple[Tensor, ...]], hyper: Hyper) -> None:
        """Records programs for the batch sizes of this cohort that are new and pay."""
        if self._traced is None:
            return
        by_size = {len(rows): rows for steps in batches for rows in steps}
        for size, rows in by_size.items():
            if size in self._paying and size not in self._traced.sizes:
                why_not = self._traced.compile(rows, lambda: self.load(server), server, hyper)
                if not why_not and self.is_recorded is None:
                    why_not = self._measure(rows, server, hyper)
                self.is_recorded = not why_not
                if why_not:
                    _log.info("local steps run uncompiled: %s", why_not)
                    self._traced, self._why_not_compiled = None, why_not
                    return

    def _measure(self, rows: Tensor, server: ServerState, hyper: Hyper) -> str:
        """Takes a few steps by program and plainly; says why not by program, where that is clearly slower."""
        self.load(server)
        client = Client(server.params, server.state, self._step.algorithm.init_client(self.params))
        steps = partial(self.train_client, [rows] * 2, client, hyper)
        device = self._param_list[0].device
        traced = self._traced
        compiled_s = plain_s = float("inf")
        # In turn, and more often if it seems slower: what else the machine does shall not decide.
        for tries in (3, 12):
            for _ in range(tries):
                compiled_s = min(compiled_s, seconds_of(steps, device, 1))
                self._traced = None
                plain_s = min(plain_s, seconds_of(steps, device, 1))
                self._traced = traced
            if compiled_s < _SLOWER * plain_s:
                return ""
        return f"a recorded step takes {compiled_s / plain_s:.2f} times as long as a plain one"


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
