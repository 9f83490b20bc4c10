"""A grid whose points run as one program, from the command line: each point is what it would be alone."""

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GRID = ["lr=0.1,0.02", "seed=0,1", "num_rounds=4", "dtype=float64", "task.num_clients=5", "hydra.launcher.view=lines"]
MINE = """
import os
from pathlib import Path

def dying(record):
    '''Ends its process the first time that a run comes to round 3.'''
    if record[-1]["round"] == 3 and not Path("died").exists():
        Path("died").touch()
        os.kill(os.getpid(), 9)
    return {"alive": 1.0}

def told(record):
    from hydra.core.hydra_config import HydraConfig
    hydra = HydraConfig.get()
    assert hydra.runtime.output_dir.endswith(f"/{hydra.job.num}")
    return {"num": float(hydra.job.num)}
"""


def sweep(folder, name, *arguments, most_files=None):
    given = {text.partition("=")[0] for text in arguments}
    grid = [text for text in GRID if text.partition("=")[0] not in given]
    done = subprocess.run(
        [sys.executable, "-m", "flgo_hydra", "-m", *grid, *arguments, f"hydra.sweep.dir={name}"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=most_files and (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))),
    )
    runs = []
    for path in sorted(folder.glob(f"{name}/*/result.json"), key=lambda path: int(path.parent.name)):
        lines = [json.loads(line) for line in (path.parent / "rounds.jsonl").read_text().splitlines()]
        result = json.loads(path.read_text())
        runs.append(
            (result, [{k: math.nan if v is None else v for k, v in line.items() if k != "seconds"} for line in lines])
        )
    return done, runs


def assert_same(runs, others):
    assert len(runs) == len(others) > 1
    for (one, lines), (other, other_lines) in zip(runs, others, strict=True):
        keys = ("status", "best_round", "last_round", "seed", "fingerprint")
        assert {key: one[key] for key in keys} == {key: other[key] for key in keys}
        for line, other_line in zip(lines, other_lines, strict=True):
            assert line == pytest.approx(other_line, rel=1e-12, abs=1e-12, nan_ok=True)


def test_points_run_as_one_program_are_what_they_are_alone(tmp_path):
    """One of them diverges, others stop early; each has its folder, log and trial."""
    grid = ["lr=0.1,0.02,1e300", "early_stop=1", "algorithm=scaffold"]
    done, fused = sweep(tmp_path, "fused", *grid, "hydra.launcher.fuse=6")
    alone_done, alone = sweep(tmp_path, "alone", *grid)
    assert (done.returncode, alone_done.returncode) == (0, 0), done.stderr + done.stdout
    assert_same(fused, alone)
    assert {result["status"] for result, _ in fused} >= {"diverged"}
    assert [result["engine"]["backend"] for result, _ in fused] == ["fused"] * 6
    assert all("why_not_compiled" not in result["engine"] for result, _ in fused)  # nothing of each one's own loop
    assert [result["engine"]["backend"] for result, _ in alone] == ["loop"] * 6
    for run in tmp_path.glob("fused/[0-9]"):
        assert (run / ".hydra" / "overrides.yaml").is_file()
        assert (
            "best valid_loss" in (run / "flgo_hydra.log").read_text()
            or "diverged" in (run / "flgo_hydra.log").read_text()
        )
        assert not (run / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_killed_group_goes_on_one_by_one_with_the_same_digits(tmp_path):
    """In float32: each as a program of one, which rounds as that of all did."""
    (tmp_path / "mine.py").write_text(MINE)
    options = ["dtype=float32", "checkpoint_interval=1", "hydra.launcher.backoff_s=0.01", "hydra.launcher.fuse=4"]
    done, killed = sweep(tmp_path, "killed", "metrics=mine.dying", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "died").exists()
    _, undisturbed = sweep(tmp_path, "undisturbed", "metrics=mine.dying", *options)
    assert len(killed) == len(undisturbed) == 4
    for (one, lines), (_, others) in zip(killed, undisturbed, strict=True):
        assert lines == others
        assert (one["engine"]["backend"], one["engine"]["fuse"]) == ("fused", 4)
    for run in tmp_path.glob("killed/[0-9]"):
        assert "going on after round" in (run / "flgo_hydra.log").read_text()
        assert sorted(path.name for path in run.glob("attempt-*.log")) == ["attempt-1.log", "attempt-2.log"]


@pytest.mark.slow
def test_what_cannot_be_a_batch_runs_one_by_one(tmp_path):
    (tmp_path / "noisy.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))\n"
    )
    done, runs = sweep(tmp_path, "fused", "model=custom", "model._target_=noisy.build", "hydra.launcher.fuse=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [result["engine"]["backend"] for result, _ in runs] == ["loop"] * 4
    assert all(math.isfinite(result["best_valid_loss"]) for result, _ in runs)
    logs = [path.read_text() for path in tmp_path.glob("fused/0/attempt-*.log")]
    assert any("run one by one from here" in text and "random" in text for text in logs)


BREAKING = '''
import os

import torch

from flgo_hydra.federated.algorithm.scaffold import Scaffold
CALLS = os.memfd_create("calls")


class Breaking(Scaffold):
    """Fails in the fourth round of a program of several runs: their server updates come batched.

    It counts where nobody looks: what a run keeps in its own modules sends it apart before.
    """

    def update_server(self, params, *rest):
        if any(torch._C._functorch.is_batchedtensor(tensor) for tensor in params.values()):
            os.write(CALLS, b"1")
            if os.fstat(CALLS).st_size == 4:
                raise RuntimeError("a kernel has failed")
        return super().update_server(params, *rest)
'''


@pytest.mark.slow
def test_a_program_that_fails_leaves_its_runs_to_begin_anew_alone(tmp_path):
    """To the last digit as if nobody had tried: a run is no mixture of two ways of rounding."""
    (tmp_path / "breaking.py").write_text(BREAKING)
    options = ["algorithm=custom", "algorithm._target_=breaking.Breaking", "+algorithm.eta=1.0", "dtype=float32"]
    options += ["checkpoint_interval=1"]
    done, fused = sweep(tmp_path, "fused", *options, "hydra.launcher.fuse=4")
    assert done.returncode == 0, done.stdout + done.stderr
    _, alone = sweep(tmp_path, "alone", *options)
    assert [lines for _, lines in fused] == [lines for _, lines in alone]
    assert all("a kernel has failed" in result["engine"].pop("why_not_fused") for result, _ in fused)
    assert [result["engine"] for result, _ in fused] == [result["engine"] for result, _ in alone]
    log = (tmp_path / "fused/0/attempt-1.log").read_text()
    assert "Traceback" in log and "one by one from here: their program failed: RuntimeError: a kernel has failed" in log
    for run in tmp_path.glob("fused/[0-9]"):
        assert "begins anew, not to mix" in (run / "flgo_hydra.log").read_text()


def test_metrics_see_the_config_of_their_own_job(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    done, runs = sweep(tmp_path, "fused", "metrics=mine.told", "hydra.launcher.fuse=4", "num_rounds=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [[line["num"] for line in lines] for _, lines in runs] == [[float(i)] * 3 for i in range(4)]
    assert all(result["engine"]["backend"] == "fused" for result, _ in runs)


@pytest.mark.slow
def test_groups_of_64_run_side_by_side_where_1024_files_may_be_open(tmp_path):
    """In the launcher a job has three descriptors, in its group's process these and its own records."""
    grid = ("lr=0.1", "seed=range(0,128)", "num_rounds=1", "num_steps=1", "task.num_clients=2", "model=logistic")
    done, runs = sweep(tmp_path, "some", *grid, "hydra.launcher.fuse=64", "hydra.launcher.slots=2", most_files=1024)
    assert done.returncode == 0 and len(runs) == 128, done.stdout + done.stderr
    assert "cannot be started" not in done.stdout and not list(tmp_path.glob("some/*/attempt-2.log"))
    logs = [path.read_text() for path in tmp_path.glob("some/*/attempt-1.log")]
    assert sum("Ran in one process with other jobs" not in log for log in logs) == 2


@pytest.mark.slow
def test_a_group_that_needs_more_files_than_may_be_open_is_smaller(tmp_path):
    few = ("lr=0.1", "seed=range(0,32)", "num_rounds=1", "model=logistic", "hydra.launcher.fuse=32")
    done, runs = sweep(tmp_path, "some", *few, most_files=100)
    assert done.returncode == 0 and len(runs) == 32, done.stderr
    assert "32 jobs cannot be started as one program (Too many open files): 16 at once" in done.stdout
    assert "ulimit -n" in done.stdout and not list(tmp_path.glob("some/*/attempt-2.log"))
