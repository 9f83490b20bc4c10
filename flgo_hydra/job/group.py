"""Several jobs as one program: which may run so, and how they do (see `launch/group.py`)."""

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from flgo_hydra import compose
from flgo_hydra.config import FlgoConf
from flgo_hydra.job.checks import check
from flgo_hydra.job.outcome import describe, read_finished, record_failure
from flgo_hydra.job.preparation import ReadyRun, prepare
from flgo_hydra.launch import reporter
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import write_result

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    from flgo_hydra.federated.rounds import Status

_log = logging.getLogger("flgo_hydra")

_VALUES = ("num_rounds", "lr", "lr_schedule", "lr_decay", "early_stop", "seed", "eval_interval", "initial_weights")
"""Options in which runs of one program may differ."""
_VALUES_OR_0 = ("momentum", "weight_decay", "clip_grad")
"""The same, but 0 is another program."""
_EACH_ITS_OWN = ("checkpoint_interval", "save_best")
"""What each run of a program does by itself."""


def fuse_key(cfg: DictConfig) -> str:
    """The same text for jobs that can run as one program, since they differ in values only; for our launcher."""
    conf = compose.to_conf(cfg, has_known_keys=True)
    if isinstance(conf.algorithm, FlgoConf):
        return ""
    if conf.engine.backend != "auto":  # one was asked for
        return ""
    how = {key: value for key, value in compose.not_deciding(conf).items() if key not in _EACH_ITS_OWN}
    values = {**compose.deciding(conf), "how": how}  # one program has one device, its threads, and one task's data
    option = values["option"]
    for name in _VALUES:
        option.pop(name)
    for name in _VALUES_OR_0:
        option[name] = option[name] == 0
    values["algorithm"] = {
        name: None if isinstance(value, int | float) and not isinstance(value, bool) else value
        for name, value in values["algorithm"].items()
    }
    return compose.hash_of(values)


def job_group(jobs: Sequence[reporter.GroupJob], is_auto: bool) -> None:
    """Runs jobs of one `fuse_key` as one program; each has the folder, records and end that it would have alone.

    Args:
        is_auto: train as many of them at once as pays; else all.
    """
    import torch

    from flgo_hydra.federated.backend.fused import CannotFuse, FusedBackend, Member
    from flgo_hydra.federated.rounds import RoundWork
    from flgo_hydra.federated.together import run_together
    from flgo_hydra.federated.training import LocalWork, ServerState

    runs: dict[int, ReadyRun] = {}
    members: dict[int, Member] = {}
    stopped: list[int] = []
    never = threading.Event()

    def fail(i: int, error: Exception) -> None:
        with jobs[i].logging():
            record_failure(RunPaths(jobs[i].folder), error)
            _log.exception("the job failed", exc_info=error)
        jobs[i].fail(error)

    def ended(i: int, how: "Status | Exception") -> None:
        if isinstance(how, Exception):
            return fail(i, how)
        with jobs[i].logging():
            try:
                result = runs[i].end(how)
            except KeyboardInterrupt as stop:
                _log.info("%s", stop)
                stopped.append(i)
                return
            result = replace(result, engine=backend.note)
            write_result(runs[i].paths, result)
            _log.info("%s", describe(result))
        jobs[i].finish(result.objective)

    task, data = None, None
    known: dict[str, str] = {}
    for i, job in enumerate(jobs):
        paths = RunPaths(job.folder)
        try:
            conf = compose.to_conf(job.cfg)
            finished = read_finished(conf, paths)
            if finished is not None:
                jobs[i].finish(finished.objective)
                continue
            task = check(conf, known) or task
            with jobs[i].logging():
                run = prepare(conf, paths, task, job.reporter, never, data)
                data = run.data
        except Exception as error:
            fail(i, error)
            continue
        runs[i] = run
        work = LocalWork(conf.batch_size, conf.num_epochs, conf.num_steps, conf.seed)
        numbers = (conf.optimizer, conf.momentum, conf.weight_decay, conf.clip_grad)
        members[i] = Member(run.algorithm, *numbers, work, run.backend.loop)
    if not runs:
        return
    first = next(iter(runs.values()))
    engine = first.conf.engine
    switches = (switch == "auto" for switch in (engine.compile, engine.dual, engine.graph))
    backend = FusedBackend(first.model, first.data, members, is_auto, *switches)

    def train(works: Mapping[int, RoundWork]) -> dict[int, ServerState]:
        try:
            if backend.is_not_worth_it:
                raise CannotFuse("two at once are no faster than one after the other")
            return backend.train(works)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            # Whose fault it is shows where each runs alone, and goes on after the round before.
            for i in works.keys() - backend.half_trained:
                with contextlib.suppress(Exception):  # a GPU that has failed gives nothing back
                    runs[i].watcher.save(runs[i].state)
            if isinstance(error, CannotFuse):
                raise reporter.RunApart(str(error)) from None
            first_line = str(error).strip().partition("\n")[0]
            raise reporter.RunApart(f"their program failed: {type(error).__name__}: {first_line}") from error

    run_together({i: run.rounds for i, run in runs.items()}, train, backend.evaluate, ended)
    if stopped:
        raise KeyboardInterrupt
