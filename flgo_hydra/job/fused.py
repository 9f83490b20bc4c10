"""Several jobs as one program: which may run so, and how they do (see `launch/processes/fused.py`)."""

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from flgo_hydra import compose
from flgo_hydra.config.conf import Conf
from flgo_hydra.job import native
from flgo_hydra.job.engines import engine_of
from flgo_hydra.job.isolation import modules_kept
from flgo_hydra.job.outcome import describe, read_finished, record_failure
from flgo_hydra.job.preparation import ReadyRun, prepare
from flgo_hydra.launch import reporter
from flgo_hydra.record.paths import RunPaths, run_of_sweep
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


def fuse_key(cfg: DictConfig | Conf) -> str:
    """The same text for jobs that can run as one program, since they differ in values only; for our launcher.

    Args:
        cfg: typed, where the launcher has it so already.
    """
    conf = cfg if isinstance(cfg, Conf) else compose.to_conf(cfg, has_known_keys=True)
    if not engine_of(conf).can_fuse(conf):
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


def job_group(jobs: Sequence[reporter.GroupJob], fuse: int) -> None:
    """Runs jobs of one `fuse_key` as one program; each has the folder, records and end that it would have alone.

    One that is left over runs so too: how a point is rounded must not depend on which others are left.

    Args:
        fuse: train so many of them at once, at most.
    """
    with contextlib.ExitStack() as kept:
        _job_group(jobs, fuse, kept)


def _job_group(jobs: Sequence[reporter.GroupJob], fuse: int, kept: contextlib.ExitStack) -> None:
    import torch

    from flgo_hydra.federated.backend.fused import CannotFuse, FusedBackend, Member, form_of
    from flgo_hydra.federated.backend.watch import ChangedLate
    from flgo_hydra.federated.fused_rounds import run_together
    from flgo_hydra.federated.rounds import RoundWork
    from flgo_hydra.federated.training import LocalWork, ServerState
    from flgo_hydra.federated.users_code import no_silent_end

    runs: dict[int, ReadyRun] = {}
    members: dict[int, Member] = {}
    stopped: list[int] = []
    never = threading.Event()

    def fail(i: int, error: Exception) -> None:
        with jobs[i].current():
            record_failure(run_of_sweep(jobs[i].folder), error)
            _log.exception("the job failed", exc_info=error)
        jobs[i].fail(error)

    def ended(i: int, how: "Status | Exception") -> None:
        if isinstance(how, Exception):
            return fail(i, how)
        with jobs[i].current():
            try:
                result = runs[i].end(how)
            except KeyboardInterrupt as stop:
                _log.info("%s", stop)
                stopped.append(i)
                return
            except OSError as error:
                return fail(i, error)
            result = replace(result, engine={**backend.note, **runs[i].backend.threads})
            try:
                write_result(runs[i].paths, result)
            except OSError as error:
                return fail(i, error)
            _log.info("%s", describe(result))
        jobs[i].finish(result.value)

    task, data = None, None
    known: dict[str, tuple[str, str]] = {}
    for i, job in enumerate(jobs):
        paths = run_of_sweep(job.folder)
        try:
            conf = compose.to_conf(job.cfg)
            with job.current():
                finished = read_finished(conf, paths, native.data_sha256)
            if finished is not None:
                jobs[i].finish(finished.value)
                continue
            if _has_begun_apart(conf, paths):
                raise reporter.RunApart("one of them has begun so")
            if not runs:  # all have the same model and algorithm
                kept.enter_context(modules_kept(native.targets(conf)))
            with no_silent_end():
                task = native.check(conf, known) or task
            with jobs[i].current(), no_silent_end():
                run = prepare(conf, paths, task, job.reporter, never, data, form_of(fuse))
                data = run.data
        except reporter.RunApart:
            raise
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
    backend = FusedBackend(first.model, first.data, members, fuse, first.conf.engine)

    def train(works: Mapping[int, RoundWork]) -> dict[int, ServerState]:
        shared = next((run.own.shares for run in runs.values() if run.own is not None and run.own.shares), "")
        if shared and len(runs) > 1:
            raise reporter.RunApart(f"their metrics share `{shared}`, which they change")
        try:
            with no_silent_end():
                return backend.train(works)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except (CannotFuse, ChangedLate) as error:
            raise reporter.RunApart(str(error)) from None
        except Exception as error:
            # Whose fault it is shows where each runs alone. They begin anew, not to mix two ways of rounding.
            first_line = str(error).strip().partition("\n")[0]
            raise reporter.RunApart(f"their program failed: {type(error).__name__}: {first_line}") from error

    try:
        backend.prepare(first.hyper)
    except (CannotFuse, ValueError) as error:
        raise reporter.RunApart(str(error)) from None
    run_together(
        {i: run.rounds for i, run in runs.items()}, train, backend.evaluate, ended, lambda i: jobs[i].current()
    )
    if stopped:
        raise KeyboardInterrupt


def _has_begun_apart(conf: Conf, paths: RunPaths) -> bool:
    """The folder's checkpoint is of a run alone: of this sweep's, whose points could not run as one program."""
    if not paths.checkpoint.exists():
        return False
    from flgo_hydra.record.checkpoint import load_checkpoint

    saved = load_checkpoint(paths.checkpoint, compose.fingerprint(conf), is_of_sweep=paths.sweep is not None)
    return saved is not None and (saved["form"] or {}).get("backend") != "fused"
