"""A cohort's clients one after another in one working model.

A local step is a recorded program (`recorded_steps.py`) for the batch sizes where that pays, and plain autograd for the
others.
"""

import copy
import logging
import uuid
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flgo_hydra.config.option import AUTO, EngineConf
from flgo_hydra.federated.algorithm.base import Hyper, takes_all_messages
from flgo_hydra.federated.backend.cannot import Cannot
from flgo_hydra.federated.backend.habits import Habits, look
from flgo_hydra.federated.backend.local_steps import LocalSteps
from flgo_hydra.federated.backend.loop_trial import record_alike
from flgo_hydra.federated.backend.python_state import outside_kept
from flgo_hydra.federated.backend.recorded_steps import paying_sizes
from flgo_hydra.federated.backend.watch import Watch, late
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort
from flgo_hydra.federated.data.on_device import Data
from flgo_hydra.federated.randomness import Purpose, generators_kept, seed_all, torch_seed
from flgo_hydra.federated.training import (
    MEAN,
    LocalStep,
    LocalWork,
    Mean,
    ServerState,
    Stack,
    changes_of,
    finish_round,
    row_of,
    weights_of,
)
from flgo_hydra.federated.transfer import to_device
from flgo_hydra.recorder.graph import exact_convolutions

KEPT_BY_PYTHON = "kept by Python"
"""In a run's `form`: what no checkpoint has."""
_log = logging.getLogger(__name__)


class LoopBackend(LocalSteps):
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
        super().__init__(model, data, step, work)
        self._offsets = np.array(data.offsets)
        self._engine = engine
        self._paying = paying_sizes(np.diff(data.offsets), work, visits) if engine.compiles else frozenset()
        self._habits: Habits | None = None
        self._watch: Watch | None = None
        self._is_prepared = not engine.compiles
        self.why_not_compiled = "engine.compile=off"
        if engine.compiles:
            self.why_not_compiled = "" if self._paying else "the run is too short"

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
        if self.recorded is not None:
            note |= {"compiled_batch_sizes": self.recorded.sizes, **self.recorded.graph_note}
        return note | ({"why_not_compiled": self.why_not_compiled} if self.why_not_compiled else {})

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
        if self.recorded is not None:
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

    def habits(self, server: ServerState, hyper: Hyper) -> Habits:
        """What the model and the algorithm do beside computing, found out before the first round.

        Raises:
            Refused: something that no backend can honour.
        """
        if self._habits is None:
            self._habits = look(self, sorted(self.all_sizes()), server, hyper)
        return self._habits

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
        kept = {"model": original, "algorithm": self.step.algorithm} if self.has_users_code else {}
        try:
            with generators_kept(), exact_convolutions(), outside_kept(**kept):
                record_alike(self, plain, sorted(self._paying), server, hyper, self._engine)
        except Cannot:
            self.recorded = None
            self._bind(original)
            self.find_program(server, hyper)
            raise
        assert self.recorded is not None
        with generators_kept():
            self.recorded.capture(lambda: self.load(server), server, hyper)

    def begin_to_watch(self, has_users_metrics: bool = False) -> None:
        """Before the first round: from now on it is noticed where Python keeps something else.

        Args:
            has_users_metrics: the user's metrics are given the model, whoever's it is.
        """
        if self._watch is None and (has_users_metrics or self.runs_users_code):
            self._watch = Watch(model=self.model, algorithm=self.step.algorithm)

    def why_plain_from(self, round_num: int) -> str:
        """Before a round: why steps must be plain from now on, since something has changed, or nothing."""
        name = self._watch.changed() if self._watch is not None and not self._keeps else ""
        if not name:
            return ""
        why = late(name, round_num)
        _log.warning("from now on local steps run uncompiled: %s", why)
        self.recorded, self._is_prepared, self.why_not_compiled = None, True, why
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
