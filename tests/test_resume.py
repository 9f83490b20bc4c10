"""Going on in a folder: which command is given again, and where."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flgo_hydra.config.folder import conf_dir
from flgo_hydra.resume import Command, read_command

SMALL = ("num_rounds=2", "model=logistic", "num_steps=1", "task.num_clients=5")


def write_record(path: Path, hydra: list[str], task: list[str], **changed: object) -> None:
    """What Hydra writes of a command."""
    path.parent.mkdir(parents=True, exist_ok=True)
    node = {
        "mode": "MULTIRUN",
        "overrides": {"hydra": hydra, "task": task},
        "runtime": {"cwd": "/typed/here", "config_sources": [{"path": str(conf_dir()), "provider": "main"}]},
        "job": {"config_name": "config"},
        "sweep": {"dir": "multirun/${now:%H}"},
    }
    path.write_text(yaml.safe_dump({"hydra": {**node, **changed}}))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    write_record(
        tmp_path / "s" / "multirun.yaml",
        ["hydra.sweep.dir=s", "hydra/launcher=basic", "hydra.sweeper.retry_failed=true", "hydra.mode=MULTIRUN"],
        ["lr=0.1,0.01", "+model.extra=1"],
    )
    return tmp_path / "s"


def test_the_recorded_command_with_its_folder_pinned(sweep: Path) -> None:
    assert read_command(sweep) == Command(
        ("-m", "hydra/launcher=basic", "lr=0.1,0.01", "+model.extra=1", f"hydra.sweep.dir={sweep}"),
        Path("/typed/here"),
    )


def test_added_overrides_replace_recorded_ones_of_their_key(sweep: Path) -> None:
    more = ("lr=0.5", "--config-dir", "own", "hydra.launcher.slots=1", "model.extra=2", "hydra/launcher=joblib")
    own = ("-m", "--config-dir", str(Path("own").absolute()))
    others = ("hydra.launcher.slots=1", "hydra/launcher=joblib", f"hydra.sweep.dir={sweep}")
    only = set(read_command(sweep, ("--only", *more)).arguments)
    assert only == {*own, "lr=0.5", "model.extra=2", *others}
    arguments = read_command(sweep, more).arguments
    assert set(arguments) == {*own, "lr=0.1,0.01,0.5", "model.extra=2", *others}
    assert arguments[:3] == own and arguments[-1] == others[-1]


def test_flags_that_chose_configs_are_given_again(tmp_path: Path) -> None:
    sources = [
        {"path": "/another/checkout/conf", "provider": "main"},
        {"path": str(tmp_path / "own"), "provider": "command-line"},
    ]
    runtime = {"cwd": "/", "config_sources": sources}
    path = tmp_path / "s p" / "multirun.yaml"
    write_record(path, [], [], runtime=runtime, job={"config_name": "mine"})
    with pytest.raises(ValueError, match="own, which is gone: give --config-dir again"):
        read_command(path.parent)
    (tmp_path / "own").mkdir()
    assert read_command(path.parent).arguments == (
        *("-m", "--config-dir", str(tmp_path / "own"), "--config-name", "mine"),
        f"hydra.sweep.dir='{path.parent}'",
    )


def test_a_single_run(tmp_path: Path) -> None:
    write_record(tmp_path / ".hydra" / "hydra.yaml", ["hydra.run.dir=r", "hydra.mode=RUN"], ["lr=1"], mode="RUN")
    assert read_command(tmp_path).arguments == ("lr=1", f"hydra.run.dir={tmp_path}")


def test_what_cannot_go_on_says_why(tmp_path: Path, sweep: Path) -> None:
    with pytest.raises(ValueError, match="There is no folder .*/none"):
        read_command(tmp_path / "none")
    with pytest.raises(ValueError, match=f"neither multirun.yaml nor .* Did you mean {sweep}?"):
        read_command(tmp_path)
    with pytest.raises(ValueError, match="cannot be changed"):
        read_command(sweep, ["hydra.sweep.dir=other"])
    write_record(sweep / "0" / ".hydra" / "hydra.yaml", [], [], mode="RunMode.MULTIRUN")
    with pytest.raises(ValueError, match=f"is one run of a sweep. Go on with the sweep: {sweep}"):
        read_command(sweep / "0")
    (sweep / "multirun.yaml").write_text("hydra: [")
    with pytest.raises(ValueError, match="is no YAML"):
        read_command(sweep)
    (sweep / "multirun.yaml").write_text("hydra: {mode: RUN}\n")
    with pytest.raises(ValueError, match="holds no command"):
        read_command(sweep)
    (tmp_path / "app").mkdir()
    sources = [{"path": str(tmp_path / "app"), "provider": "main"}]
    write_record(sweep / "multirun.yaml", [], [], runtime={"cwd": "/", "config_sources": sources})
    with pytest.raises(ValueError, match="another Hydra app"):
        read_command(sweep)


def run(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parents[1]
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def test_a_sweep_goes_on_from_elsewhere_with_its_own_config_folder_and_data(command, empty_folder, tmp_path_factory):
    """Everything that the command says relative to where it was typed: its config folder, module, and data."""
    import numpy as np

    rng = np.random.default_rng(0)
    np.savez("my.npz", x_train=rng.normal(size=(60, 4)), y_train=np.arange(60) % 3)
    Path("own/algorithm").mkdir(parents=True)
    Path("own/algorithm/mine.yaml").write_text("_target_: typed_here.Mine\n")
    Path("typed_here.py").write_text("from flgo_hydra.federated.algorithm.fedavg import FedAvg as Mine\n")
    small = ("num_rounds=2", "model=logistic", "num_steps=1", "task.num_clients=5", "task=npz", "task.path=my.npz")
    typed = ("-m", "--config-dir", "own", "algorithm=mine", *small, "hydra.sweep.dir=sweep", "hydra/launcher=basic")
    done = command(*typed, "lr=0.1,0.01")
    assert done.status == 0, done.err
    before = Path("sweep/0/rounds.jsonl").stat().st_mtime_ns
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = run("flgo_hydra.resume", str(empty_folder / "sweep"), "lr=0.05", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"in {empty_folder}, where it was started" in done.stdout
    table = (empty_folder / "sweep" / "results.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in table[1:]] == [
        ["0", "completed", "0.1"],
        ["1", "completed", "0.01"],
        ["2", "completed", "0.05"],
    ]
    assert Path("sweep/0/rounds.jsonl").stat().st_mtime_ns == before
    assert list(elsewhere.iterdir()) == []
    # One process at a time.
    with open("sweep/.owner.lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run("flgo_hydra.resume", "sweep", cwd=empty_folder)
    assert done.returncode == 1 and "is in use by the sweep of process" in done.stderr


def test_a_stopped_run_goes_on_from_its_checkpoint(command, monkeypatch):
    from flgo_hydra import resume
    from flgo_hydra.launch import reporter

    arguments = ("num_rounds=4", *SMALL[1:], "checkpoint_interval=1")
    assert command(*arguments, "hydra.run.dir=whole").status == 0
    stops = iter([False, False, True])
    monkeypatch.setattr(reporter.Reporter, "stop_requested", lambda self: next(stops, False))
    done = command(*arguments, "hydra.run.dir=run")
    assert done.status == 130 and "python -m flgo_hydra.resume" in done.err
    assert Path("run/checkpoint.pt").exists()
    done = command(*resume.read_command(Path("run")).arguments)
    assert done.status == 0 and "going on after round" in done.out, done.out
    lines = [
        [line.partition(', "seconds"')[0] for line in Path(folder, "rounds.jsonl").read_text().splitlines()]
        for folder in ("whole", "run")
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 5


@pytest.mark.parametrize("arguments, status", [((), 2), (("--help",), 0), (("none",), 1)])
def test_the_command_line(arguments, status, tmp_path):
    done = run("flgo_hydra.resume", *arguments, cwd=tmp_path)
    assert done.returncode == status
    assert ("usage: python -m flgo_hydra.resume FOLDER" in done.stdout) == (status != 1)
    assert ("error: There is no folder" in done.stderr) == (status == 1)
