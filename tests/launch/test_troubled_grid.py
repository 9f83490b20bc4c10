"""Real processes, real deaths: a grid of twelve jobs of which four are in trouble, and a parent that is killed."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_rounds

ROOT = Path(__file__).resolve().parents[2]
TROUBLED = '''
import os
import resource
import signal

import numpy as np

from flgo_hydra.federated.algorithm.scaffold import Scaffold


class Troubled(Scaffold):
    """Scaffold, but for four learning rates."""

    rounds = 0

    def update_server(self, params, server, message, participation, hyper):
        Troubled.rounds += 1
        attempt = os.environ.get("FLGO_HYDRA_ATTEMPT")
        if "CALM" in os.environ:
            pass
        elif hyper["lr"] == 0.01 and attempt in ("1", "2") and Troubled.rounds == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        elif hyper["lr"] == 0.02:
            raise ValueError("0.02 cannot be")
        elif hyper["lr"] == 0.03:
            os._exit(3)
        elif hyper["lr"] == 0.04:
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
            kept = []
            while True:
                kept.append(np.ones(2**22))
        elif "WAIT" in os.environ:
            with open(os.environ["WAIT"], "w") as pipe:  # says "I am in the middle"
                pipe.write("x")
            signal.pause()
        return super().update_server(params, server, message, participation, hyper)
'''
ARGUMENTS = [
    "-m",
    "task.num_clients=5",
    "model=logistic",
    "num_rounds=6",
    "checkpoint_interval=1",
    "algorithm=custom",
    "algorithm._target_=troubled.Troubled",
    "+algorithm.eta=1.0",
    "hydra.launcher.slots=2",
    "hydra.launcher.threads=1",  # as the forkserver that is started early has, with one slot too
    "hydra.launcher.backoff_s=0",
]


def command(folder: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    (folder / "troubled.py").write_text(TROUBLED)
    return subprocess.Popen(
        [sys.executable, "-m", "flgo_hydra", *ARGUMENTS, *overrides],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_rounds(RunPaths(run))]


def ours(folder: Path) -> list[psutil.Process]:
    """Processes that work in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_the_others_finish_and_the_report_names_the_rest(tmp_path):
    (tmp_path / "tmp").mkdir()
    rates = [0.01, 0.02, 0.03, 0.04, *(round(0.1 + 0.01 * i, 2) for i in range(8))]
    sweep = command(tmp_path, "lr=" + ",".join(map(str, rates)), "hydra.sweep.dir=sweep")
    out, err = sweep.communicate(timeout=200)
    assert sweep.returncode == 1, out + err
    with open(tmp_path / "sweep" / "results.csv", newline="") as file:
        rows = {float(row["lr"]): row for row in csv.DictReader(file)}
    assert {lr: row["status"] for lr, row in rows.items()} == {
        lr: "failed" if lr in (0.02, 0.03, 0.04) else "completed" for lr in rates
    }
    # The killed one went on from its checkpoints, with the numbers of one that was never disturbed.
    killed = tmp_path / "sweep" / rows[0.01]["job"]
    assert sorted(path.name for path in killed.glob("attempt-*.log")) == [f"attempt-{n}.log" for n in (1, 2, 3)]
    calm = command(tmp_path, "lr=0.01", "hydra.sweep.dir=calm", CALM="1")
    calm.communicate(timeout=100)
    assert calm.returncode == 0
    assert losses(killed) == losses(tmp_path / "calm" / "0")
    # The rest is on record, and the report says where.
    failures = {
        lr: json.loads((tmp_path / "sweep" / rows[lr]["job"] / "failure.json").read_text()) for lr in (0.02, 0.03, 0.04)
    }
    assert len(failures[0.02]["attempts"]) == 1 and "0.02 cannot be" in failures[0.02]["message"]
    assert len(failures[0.03]["attempts"]) == 3 and "3" in failures[0.03]["message"]
    assert failures[0.04]["kind"] == "out_of_memory" and failures[0.04]["wanted_memory_mib"] > 100
    assert len(failures[0.04]["attempts"]) == 3  # again, then alone
    for lr in (0.02, 0.03, 0.04):
        line = next(line for line in out.splitlines() if line.startswith(f"  job {rows[lr]['job']}  "))
        assert f"lr={lr}" in line
        assert (tmp_path / line.split()[-1]).is_file()
    # Nothing is left.
    assert ours(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not [path for path in (tmp_path / "sweep").rglob(".*.*") if path.name != ".owner.lock" and path.is_file()]


@pytest.mark.slow
def test_children_do_not_outlive_a_parent_that_is_killed(tmp_path):
    (tmp_path / "tmp").mkdir()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    sweep = command(tmp_path, "lr=0.1,0.2", "hydra.sweep.dir=sweep", WAIT=str(fifo))
    with open(fifo) as pipe:
        assert pipe.read(1) == "x"  # a job is in the middle of a round
        # The pipe stays open until both jobs are dead: without a reader, the other one's "x" is an error of its code.
        children = psutil.Process(sweep.pid).children(recursive=True)
        assert children
        sweep.kill()
        sweep.communicate(timeout=30)
        _, alive = psutil.wait_procs(children, timeout=5)
        assert alive == []
    # and the same command goes on
    again = command(tmp_path, "lr=0.1,0.2", "hydra.sweep.dir=sweep")
    out, err = again.communicate(timeout=100)
    assert again.returncode == 0, out + err
    assert "optimal combination" in out


@pytest.mark.slow
def test_a_stopped_sweep_says_how_to_go_on_and_does(tmp_path):
    (tmp_path / "tmp").mkdir()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for number in (signal.SIGINT, signal.SIGTERM):  # the second one has gone on already
        sweep = command(tmp_path, "lr=0.1,0.2,0.3", "hydra.sweep.dir=sweep", "hydra.launcher.slots=1", WAIT=str(fifo))
        with open(fifo) as pipe:
            assert pipe.read(1) == "x"
        for _ in range(2):  # the job waits for ever in the middle of a round: once would wait with it
            sweep.send_signal(number)
            line = sweep.stdout.readline()
            while line and "stop" not in line.lower():
                line = sweep.stdout.readline()
        out, err = sweep.communicate(timeout=60)
        assert sweep.returncode == 130, out + err
        assert "not run: 3 points" in out and "resume:" in out
        assert ours(tmp_path) == []
    again = command(tmp_path, "lr=0.1,0.2,0.3", "hydra.sweep.dir=sweep")
    out, err = again.communicate(timeout=100)
    assert again.returncode == 0, out + err
