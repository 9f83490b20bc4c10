"""A run made ready to go: config, task, model, algorithm, backend and watcher put together."""

import logging
import os
import shlex
import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flgo_hydra import compose, objective, own_code, reference, where_typed
from flgo_hydra.config.conf import Conf
from flgo_hydra.job.device import count_threads, resolve_device
from flgo_hydra.job.outcome import result_of
from flgo_hydra.job.watcher import Watcher
from flgo_hydra.launch import reporter
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import RunResult

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    import torch

    from flgo_hydra.federated.algorithm.base import Algorithm, Hyper
    from flgo_hydra.federated.backend.choice import ChosenBackend
    from flgo_hydra.federated.data.on_device import Data
    from flgo_hydra.federated.data.task import Task
    from flgo_hydra.federated.metrics import OwnMetrics
    from flgo_hydra.federated.rounds import Run, RunState, Status

_log = logging.getLogger("flgo_hydra")


@dataclass
class ReadyRun:
    """A run that is ready to go, or under way."""

    conf: Conf
    paths: RunPaths
    device: "torch.device"
    data: "Data"
    model: "torch.nn.Module"
    algorithm: "Algorithm"
    hyper: "Hyper"
    """the algorithm's numbers and the first learning rate"""
    backend: "ChosenBackend"
    state: "RunState"
    watcher: Watcher
    rounds: "Run"
    warnings: list[str]
    """of the settings, for the result"""
    own: "OwnMetrics | None" = None
    source: str = ""
    """of the task"""

    def end(self, status: "Status") -> RunResult:
        """Returns the result of a run that ended so.

        Raises:
            KeyboardInterrupt: it was stopped, and has written a checkpoint.
            CannotWrite: its record has been moved away or removed.
        """
        if status == "stopped":
            self.watcher.save(self.state)
            again = f"python -m flgo_hydra.resume {shlex.quote(str(self.paths.folder))}"
            raise KeyboardInterrupt(f"stopped after round {self.state.round_num}; {again} goes on")
        self.watcher.require_record()
        reason = self.watcher.prune_reason or ""
        record, note = self.watcher.record, self.backend.note
        note |= {"why_not_fused": why} if (why := os.environ.get(reporter.WHY_APART)) else {}
        known = self.watcher.data_sha256, self.source, self.watcher.code
        return result_of(self.conf, self.state, status, self.device, reason, note, record, self.warnings, *known)


def prepare(
    conf: Conf,
    paths: RunPaths,
    task: "Task | None",
    line: reporter.Reporter,
    is_interrupted: threading.Event,
    data: "Data | None" = None,
    form: Mapping[str, Any] | None = None,
    why_plain: str = "",
) -> ReadyRun:
    """Makes a run ready: a new one, or one that goes on from its folder's checkpoint.

    Args:
        task: the config's, if it has been built already.
        line: to the launcher.
        is_interrupted: set when the run shall end at its next round boundary.
        data: of the task, if another run has them on the device already.
        why_plain: why only plain steps will do, which is known already.
        form: what of the backend's `form` another one replaces, that trains this run in its place.
    """
    import torch

    from flgo_hydra.federated import torch_settings
    from flgo_hydra.federated.algorithm.base import Algorithm
    from flgo_hydra.federated.algorithm.build import build_algorithm
    from flgo_hydra.federated.backend.choice import build_backend
    from flgo_hydra.federated.clients.client_state import ClientStates
    from flgo_hydra.federated.clients.personal import Personal
    from flgo_hydra.federated.cohort import caveats, count_drawn
    from flgo_hydra.federated.data.dependencies import Record, named_by, reads_of, recording
    from flgo_hydra.federated.data.on_device import to_data
    from flgo_hydra.federated.data.task import build_task
    from flgo_hydra.federated.fit import build_fitting_model
    from flgo_hydra.federated.metrics import OwnMetrics
    from flgo_hydra.federated.model import arrange_for_cpu
    from flgo_hydra.federated.optimizer import build_optimizer
    from flgo_hydra.federated.parts.build import build_parts
    from flgo_hydra.federated.parts.composed import composed
    from flgo_hydra.federated.parts.in_a_run import poisoned, require_fitting, selecting
    from flgo_hydra.federated.patience import Patience
    from flgo_hydra.federated.randomness import Purpose, seed_all, torch_seed
    from flgo_hydra.federated.rounds import RunState, rounds
    from flgo_hydra.federated.training import LocalStep, LocalWork, server_state
    from flgo_hydra.federated.users_code import no_silent_end
    from flgo_hydra.federated.weights import load_weights, names_of

    torch_settings.reset()
    device = resolve_device(conf.device)
    dtype = getattr(torch, conf.dtype)
    task = task or build_task(conf.task)
    targets = _targets(conf)
    has_users_code = not all(t.startswith("flgo_hydra.") for t, _ in targets if t != conf.metrics)
    work = LocalWork(conf.batch_size, conf.num_epochs, conf.num_steps, conf.seed, has_users_code)
    is_ours = all(target.startswith("flgo_hydra.") for target, _ in targets)
    with nullcontext(Record()) if is_ours else recording() as seen:
        seed_all(torch_seed(conf.seed, Purpose.SERVER), device)
        algorithm, numbers = build_algorithm(compose.parameters(conf.algorithm))
        built, of_parts = build_parts(conf.parts)
        selection = require_fitting(built, conf)
        algorithm, numbers = composed(algorithm, built, of_parts, conf.seed), {**numbers, **of_parts}
        warnings = [*caveats(conf.sample, conf.aggregate), *algorithm.caveats(conf, numbers)]
        warnings += objective.caveats(conf.monitor, conf.monitor_mode)
        for text in warnings:
            _log.warning("%s", text)
        has_own_loss = type(algorithm).loss is not Algorithm.loss
        fitting = build_fitting_model(compose.parameters(conf.model), task, work, dtype, device, has_own_loss)
        model = fitting.model
        data = data or poisoned(to_data(task, device, dtype, fitting.takes_integers), built, of_parts, conf.seed)
        if conf.initial_weights:
            load_weights(model, conf.initial_weights)
        model.to(device)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # the one whose generator a model's dropout draws from
        if device.type == "cpu":
            arrange_for_cpu(model)
            torch.set_num_threads(count_threads(conf))
        optimizer = build_optimizer(conf.optimizer, conf.momentum, conf.weight_decay)
        step = LocalStep(algorithm, optimizer, conf.clip_grad)
        proportion = 1.0 if conf.sample == "full" else conf.proportion
        cohort_size = count_drawn(task.num_clients, proportion)
        engine = replace(conf.engine, backend="loop", compile="off") if why_plain else conf.engine
        backend = build_backend(engine, model, data, step, work, cohort_size, conf.num_rounds * proportion)
        if why_plain:
            backend.say_why_plain(why_plain)
        seed_all(torch_seed(conf.seed, Purpose.SERVER), device)  # again: backends have asked for such states too
        server = server_state(model, algorithm)
        first = backend.loop.own_buffers.first(algorithm.init_client(server.params), server.buffers)
        clients = ClientStates(first, task.num_clients, paths.folder)
        state = RunState(server, clients, patience=Patience(conf.followed))
        hyper = {**numbers, "lr": conf.lr}
        if form is None:
            backend.prepare(server, hyper)
        seed_all(torch_seed(conf.seed, Purpose.OWN_METRICS), device)
        own = OwnMetrics(conf.metrics, task, data) if conf.metrics is not None else None
    if own is not None:
        backend.loop.begin_to_watch(has_users_metrics=True)
    rounding = {**backend.form, **(form or {})}
    watcher = Watcher(
        conf,
        paths,
        device,
        line,
        is_interrupted,
        rounding,
        task.data_sha256,
        lambda: backend.loop.kept_by_python,
        names_of(model),
    )
    for target, part in targets:
        if not target.startswith("flgo_hydra."):
            # Of metrics one call shows what they read.
            seen.files |= named_by(reference.load(target, "_target_"), part) if target != conf.metrics else set()
            watcher.tell_reads(own_code.read_at_import(target))
    watcher.tell_reads(reads_of(seen, paths.folder))
    watcher.resume(state)

    def measure(model: torch.nn.Module, state: RunState) -> dict[str, float]:
        assert own is not None
        before = data.versions
        with recording() as read, no_silent_end():
            found = own(model, watcher.record_with(state))
        if data.versions != before:
            raise ValueError(
                f"`metrics={conf.metrics}` must leave the task's samples as they are, which are trained on, but it "
                "changes them in place: compute on a copy (`x.clone()`)."
            )
        with where_typed.entered():  # names are from there
            watcher.tell_reads(reads_of(read, paths.folder))
        own.look()
        watcher.tell_kept(own.keeps)
        return found

    has_own_models = type(algorithm).personal is not Algorithm.personal or bool(backend.loop.own_buffers.names)
    has_own_models = has_own_models or data.own_test is not None
    steps = rounds(
        backend,
        data,
        algorithm,
        numbers,
        conf,
        state,
        watcher,
        None if own is None else measure,
        Personal(model, data, algorithm) if has_own_models else None,
        None if selection is None else selecting(selection, backend.load, data, numbers),
    )
    parts = (model, algorithm, hyper, backend, state, watcher, steps, warnings, own, task.source)
    return ReadyRun(conf, paths, device, data, *parts)


def _targets(conf: Conf) -> list[tuple[str, dict[str, Any]]]:
    """What the config names of code that computes, with the parameters that it gives it."""
    named = (compose.parameters(conf.model), compose.parameters(conf.algorithm), *conf.parts.values())
    found = [(str(one["_target_"]), one) for one in named]
    return found if conf.metrics is None else [*found, (conf.metrics, {})]
