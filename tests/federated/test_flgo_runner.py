"""FLGo's algorithms inside our job. What needs the real package is marked `flgo` and skips without it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_result, read_rounds

HAS_FLGO = importlib.util.find_spec("flgo") is not None
needs_flgo = pytest.mark.skipif(not HAS_FLGO, reason="the package flgo is not installed")

# A benchmark as FLGo's users write them, over digits; run by FLGo alone it needs what the harness mends.
BENCHMARK = """
import torch
from sklearn.datasets import load_digits

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), [int(label) for label in labels]


class Digits(torch.utils.data.Dataset):
    def __init__(self, begin, end):
        self.x, self.y, self.classes = x[begin:end], y[begin:end], list(range(10))

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]


train_data, test_data = Digits(0, 200), Digits(200, 300)


def get_model(*args, **kwargs):
    return torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 10))
"""
GENERATE = """
import sys; sys.path.insert(0, ".")
import importlib, flgo, flgo.benchmark.partition
flgo.gen_benchmark_from_file("bench_tiny", "config_tiny.py", data_type="cv", task_type="classification")
benchmark = importlib.import_module("bench_tiny")
flgo.gen_task_by_(benchmark, flgo.benchmark.partition.IIDPartitioner(num_clients=4), "tiny")
"""
BY_FLGO = """
import sys; sys.path.insert(0, ".")
import importlib, json, flgo
core = importlib.import_module("bench_tiny.core")
core.TaskPipe.TaskDataset.__getitems__ = lambda self, indices: [self[i] for i in indices]
algorithm = importlib.import_module("flgo.algorithm.moon")
option = {"num_rounds": 3, "num_steps": 2, "proportion": 0.5, "gpu": [], "no_log_console": True, "no_tqdm": True}
runner = flgo.init("tiny", algorithm, option)
runner.run()
output = runner.gv.logger.output
print("RECORD", json.dumps({name: output[name] for name in ("val_loss", "val_accuracy", "test_loss", "test_accuracy")}))
"""
MOON = ["algorithm=flgo", "algorithm.module=flgo.algorithm.moon", "task=flgo", "task.path=tiny"]
SMALL = ["num_rounds=3", "num_steps=2", "proportion=0.5"]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder with the benchmark and the task, made by FLGo."""
    folder = tmp_path_factory.mktemp("flgo")
    (folder / "config_tiny.py").write_text(BENCHMARK)
    python(f"import os; os.chdir({str(folder)!r})\n{GENERATE}")
    return folder


@pytest.fixture
def tiny(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.syspath_prepend(str(made))


@pytest.mark.flgo
@needs_flgo
def test_the_numbers_are_those_that_flgo_records_itself(tiny, command, made):
    record = json.loads(python(f"import os; os.chdir({str(made)!r})\n{BY_FLGO}").split("RECORD ")[1])
    os.chdir(made)  # the command's own folder is an empty one
    done = command(*MOON, *SMALL, "hydra.run.dir=same")
    assert done.status == 0, done.err
    ours = read_rounds(RunPaths(Path("same")))
    for name, theirs in record.items():
        assert [line[name.replace("val_", "valid_")] for line in ours] == theirs
    result = read_result(RunPaths(Path("same")))
    assert result.status == "completed" and result.versions["flgo"] and result.model["name"] == "flgo"
    assert len(result.data_sha256) == 64
    info, before = Path("tiny/info"), Path("tiny/info").read_text()
    try:
        info.write_text(before.replace("}", ', "more": 1}', 1))
        assert "holds the result of other data" in command(*MOON, *SMALL, "hydra.run.dir=same").err
    finally:
        info.write_text(before)
    assert "already finished" in command(*MOON, *SMALL, "hydra.run.dir=same").out


@pytest.mark.flgo
@needs_flgo
def test_its_algorithms_sweep_stop_early_and_diverge_like_ours(made):
    modules = ",".join(f"flgo.algorithm.{name}" for name in ("moon", "feddyn", "ditto"))
    arguments = [*MOON[:1], f"algorithm.module={modules}", *MOON[2:], "num_steps=20", "num_rounds=5"]
    arguments += ["early_stop=3", "proportion=1.0", "monitor=test_accuracy"]
    run = [sys.executable, "-W", "ignore", "-m", "flgo_hydra", "-m", *arguments, "lr=0.5,1e-30,1e30"]
    done = subprocess.run([*run, "hydra.sweep.dir=swept"], cwd=made, capture_output=True, text=True, timeout=600)
    results = [read_result(RunPaths(made / "swept" / str(job))) for job in range(9)]
    assert all(results), done.stdout + done.stderr
    assert [result.status for result in results] == ["completed", "early_stopped", "diverged"] * 3
    assert [result.last_round for result in results[1::3]] == [3, 3, 3], "nothing can improve at this rate"
    curves = [read_rounds(RunPaths(made / "swept" / str(job))) for job in (0, 3, 6)]
    assert len({line[-1]["valid_loss"] for line in curves}) == 3 and all(len(lines) == 6 for lines in curves)
    assert not list((made / "tiny" / "record").glob("*Watching*")), "records are ours"


@pytest.mark.flgo
@needs_flgo
@pytest.mark.parametrize(
    "arguments, says",
    [
        (["algorithm.module=flgo.algorithm.absent"], "`algorithm.module=flgo.algorithm.absent`: there is no module"),
        (["algorithm.module=json"], "must define Server and Client"),
        (["+algorithm.option.num_step=3"], "`algorithm.option` has 'num_step', which FLGo does not know"),
        (["model=mlp"], "trains the benchmark's model"),
        (["task.path=."], "needs a task folder that FLGo's gen_task has written"),
        (["dtype=float64"], "`dtype` has no effect with algorithm=flgo"),
        (["monitor=valid_f1", "monitor_mode=max"], "`monitor=valid_f1` is not among the metrics of round 0"),
    ],
)
def test_what_flgo_cannot_run_is_said(tiny, command, made, arguments, says):
    os.chdir(made)
    done = command(*MOON, *SMALL, *arguments, "hydra.run.dir=refused")
    assert done.status == 1 and says in done.err


@pytest.mark.skipif(HAS_FLGO, reason="the package flgo is installed")
def test_without_the_package_the_error_names_the_install_command(command, empty_folder):
    done = command(*MOON)
    assert done.status == 1 and "pip install 'flgo_hydra[flgo]'" in done.err and "Traceback" not in done.err


def test_the_benchmarks_model_is_for_flgo_only(command):
    done = command("model=flgo", "num_rounds=1")
    assert done.status == 1 and "for `algorithm=flgo` only" in done.err
