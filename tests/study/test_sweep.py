"""What a sweep keeps of jobs that have ended: their rows, and nothing of how they came to be."""

import collections
import gc
from pathlib import Path

import pytest

from flgo_hydra.study.sweep import Sweep

MINE = """
import os
from pathlib import Path

def troubled(record):
    from hydra.core.hydra_config import HydraConfig
    num = HydraConfig.get().job.num
    if num == 1:
        raise ValueError("this one never works")
    if num == 2 and not Path(DIED).exists():
        Path(DIED).touch()
        os.kill(os.getpid(), 9)
    return {"num": float(num)}
"""
SMALL = ("model=logistic", "task.num_clients=2", "num_rounds=1", "num_steps=1", "metrics=mine.troubled")
ROW, JOB = "flgo_hydra.report.rows.Row", "flgo_hydra.study.jobs.Job"
FORGOTTEN = (
    "hydra.core.utils.JobReturn",
    "flgo_hydra.launch.processes.returned.Returned",
    "flgo_hydra.launch.processes.returned.Arrived",
    "flgo_hydra.launch.queue.Job",
    "flgo_hydra.launch.queue.Running",
    "flgo_hydra.launch.queue.Event",
    "flgo_hydra.launch.failures.Attempt",
    "flgo_hydra.launch.failures.Failure",
    "flgo_hydra.launch.processes.pool._Process",
    "flgo_hydra.launch.processes.channel.MessageReader",
    "flgo_hydra.launch.processes.worker.Assignment",
    "flgo_hydra.record.result.RunResult",
    "flgo_hydra.record.result.Failure",
    "optuna.trial._trial.Trial",
)


def count() -> collections.Counter[str]:
    """The objects of this process, by type."""
    gc.collect()
    return collections.Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())


@pytest.mark.parametrize("fuse", [1, 2])
@pytest.mark.few(1)
def test_a_job_that_has_ended_leaves_its_row_only(command, empty_folder: Path, monkeypatch, fuse: int) -> None:
    """One completes, one fails, one is killed and runs again, one diverges; alone, and two as one program."""
    (empty_folder / "mine.py").write_text(f"DIED = {str(empty_folder / 'died')!r}\n{MINE}")
    grid = ("lr=0.1,0.2,0.3,3e38", f"hydra.launcher.fuse={fuse}", "hydra.sweep.dir=sweep")
    before, kept = count(), count()
    finish = Sweep._finish_writing

    def counting(sweep: Sweep) -> bool:  # the last job has ended, and all that the sweep has is still needed
        kept.clear()
        kept.update(count())
        return finish(sweep)

    monkeypatch.setattr(Sweep, "_finish_writing", counting)
    done = command("-m", *SMALL, *grid)
    assert done.status == 1 and (empty_folder / "died").exists(), done.out + done.err
    assert "failed" in done.out and "diverged" in done.out
    assert kept[ROW] - before[ROW] == kept[JOB] - before[JOB] == 4
    assert {kind: kept[kind] for kind in FORGOTTEN if kept[kind] > before[kind]} == {}
