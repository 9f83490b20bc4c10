"""The launcher under Hydra's own sweeper and a small app: real processes, real failures, nothing left behind."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hydra.core.plugins import Plugins
from hydra.test_utils.launcher_common_tests import LauncherTestSuite
from omegaconf import OmegaConf

import flgo_hydra
from flgo_hydra.launch.launcher import PackingLauncher, make_scheduler, signature
from flgo_hydra.launch.processes.task_reference import TaskReference
from flgo_hydra.launch.scheduling.scheduler import BasicScheduler

ROOT = Path(flgo_hydra.__file__).parents[1]
PLUGINS = str(ROOT / "flgo_hydra" / "plugins")
# Here, because Hydra looks for plugins once a process: before any test runs.
if not any((Path(folder) / "hydra_plugins" / "flgo_hydra").is_dir() for folder in sys.path):
    sys.path.append(PLUGINS)
Plugins.instance()
KNOWS_VERSIONS = __import__("hydra").__version__.startswith("1.3")

APP = '''
import json, os, resource, signal, sys, threading
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from flgo_hydra.launch import reporter


class Unpicklable(Exception):
    def __init__(self, lock):
        super().__init__("cannot travel")
        self.lock = lock


class Own:
    def __init__(self, x):
        self.x = x


def train(cfg, folder, kill_at=None):
    """Six rounds, a checkpoint after each; the sum depends on every one of them."""
    checkpoint = folder / "checkpoint.json"
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"round": 0, "sum": 0.0}
    while state["round"] < 6:
        state["round"] += 1
        state["sum"] += cfg.x / state["round"]
        checkpoint.write_text(json.dumps(state))
        metrics = {"valid_loss": state["sum"]}
        reporter.report("round", round=state["round"], num_rounds=6, metrics=metrics, best=state["sum"])
        if state["round"] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
    return state["sum"]


@hydra.main(config_path=None, config_name="config", VERSION)
def main(cfg):
    folder = Path(HydraConfig.get().runtime.output_dir)
    attempt = int(os.environ.get("FLGO_HYDRA_ATTEMPT", 1))
    print("printed by job", cfg.x, "in", os.getcwd())
    if cfg.mode == "killed":
        return train(cfg, folder, {1: 2, 2: 4}.get(attempt))
    if cfg.mode == "config":
        raise ValueError("`lr > 0` must hold")
    if cfg.mode == "exit":
        sys.exit(3)
    if cfg.mode == "memory":
        here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (here + 2**28, -1))
        kept = []
        while True:
            kept.append(bytearray(2**24))
    if cfg.mode == "unpicklable_error":
        raise Unpicklable(threading.Lock())
    if cfg.mode == "unpicklable_value":
        return threading.Lock()
    if cfg.mode == "own":
        return Own(cfg.x)
    if cfg.mode == "wait":
        with open(cfg.fifo, "w") as fifo:
            fifo.write(f"{os.getpid()}\\n")
        while not reporter.stop_requested():
            threading.Event().wait(0.02)
        (folder / "checkpoint.json").write_text("{}")
        raise KeyboardInterrupt("stopped at a round boundary")
    if cfg.mode == "deaf":
        with open(cfg.fifo, "w") as fifo:
            fifo.write(f"{os.getpid()}\\n")
        threading.Event().wait()
    return train(cfg, folder)


if __name__ == "__main__":
    from flgo_hydra.launch import launcher
    launcher.PRELOAD = ()
    main()
'''
# Nothing here uses torch, and importing it is most of what a small sweep takes.
WITHOUT_TORCH = "    from flgo_hydra.launch import launcher\n    launcher.PRELOAD = ()\n"


@pytest.fixture
def app(tmp_path):
    """A script with a Hydra app, its config in a store beside it."""
    version = 'version_base="1.3"' if KNOWS_VERSIONS else ""
    script = APP.replace("VERSION", version).replace(", )", ")")
    head = f"import sys\nsys.path[:0] = [{str(ROOT)!r}]\nsys.path.append({PLUGINS!r})\n"
    store = (
        "from hydra.core.config_store import ConfigStore\n"
        'ConfigStore.instance().store("config", {"x": 1.0, "mode": "train", "fifo": None})\n'
    )
    path = tmp_path / "my_app.py"
    path.write_text(head + store + script)
    return path


def command(app, *arguments):
    sweep = app.parent / "sweep"
    fixed = ["hydra/launcher=flgo_hydra", "hydra.launcher.backoff_s=0.01", f"hydra.sweep.dir={sweep}"]
    return [sys.executable, "-W", "error", str(app), "-m", *fixed, *arguments]


def run(app, *arguments):
    return subprocess.run(command(app, *arguments), capture_output=True, text=True, cwd=app.parent, timeout=100)


def folder_names(sweep):
    return sorted(path.name for path in sweep.iterdir() if path.is_dir())


def test_hydras_basic_sweeper_gets_what_it_would_get(app):
    app.write_text(app.read_text().replace(WITHOUT_TORCH, ""))
    done = run(app, "x=1,2,3")
    assert done.returncode == 0, done.stderr
    sweep = app.parent / "sweep"
    assert folder_names(sweep) == ["0", "1", "2"]
    for num in range(3):
        log = (sweep / str(num) / "attempt-1.log").read_text()
        assert log.startswith(f"printed by job {num + 1} in {app.parent}\n")
        assert f"x={num + 1}" in (sweep / str(num) / ".hydra" / "overrides.yaml").read_text()
        assert (sweep / str(num) / "my_app.log").exists()
    assert "printed by job" not in done.stdout
    assert "3 jobs: 3 done" in done.stdout


def test_twelve_jobs_of_which_four_go_wrong(app):
    """One is killed twice, one raises at once, one leaves with status 3, one runs out of memory."""
    modes = {3: "killed", 5: "config", 7: "exit", 9: "memory"}
    children_before = {child.pid for child in psutil.Process().children(recursive=True)}
    temporary_before = set(os.listdir("/tmp"))
    script = app.parent / "batch.py"
    script.write_text(BATCH)
    jobs = [[f"x={num + 1}", f"mode={modes.get(num, 'train')}"] for num in range(12)]
    done = subprocess.run(
        [sys.executable, str(script), PLUGINS, str(ROOT), json.dumps(jobs)],
        capture_output=True,
        text=True,
        cwd=app.parent,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    sweep = app.parent / "sweep"

    def total(num):
        value = 0.0
        for round_num in range(1, 7):
            value += (num + 1) / round_num
        return value

    for num, (status, value) in enumerate(outcome):
        if num in (5, 7, 9):
            assert status == "FAILED"
            assert json.loads((sweep / str(num) / "failure.json").read_text())["attempts"]
        else:
            assert (status, value) == ("COMPLETED", total(num))
    kinds = {num: json.loads((sweep / str(num) / "failure.json").read_text()) for num in (5, 7, 9)}
    assert {num: kind["kind"] for num, kind in kinds.items()} == {5: "error", 7: "crashed", 9: "out_of_memory"}
    assert [len(kinds[num]["attempts"]) for num in (5, 7, 9)] == [1, 3, 3]
    assert kinds[9]["wanted_memory_mib"] > 256
    assert [attempt["alone"] for attempt in kinds[9]["attempts"]] == [False, False, True]
    assert "attempt-3.log" in outcome[7][1] and "status 3" in outcome[7][1]
    assert sorted(path.name for path in (sweep / "3").glob("attempt-*")) == [f"attempt-{n}.log" for n in (1, 2, 3)]
    assert {child.pid for child in psutil.Process().children(recursive=True)} == children_before
    left = [name for name in set(os.listdir("/tmp")) - temporary_before if not name.startswith("pytest")]
    assert not [name for name in left if name.startswith(("tmp", "pymp"))]


BATCH = """
import json, sys
sys.path[:0] = [sys.argv[2], "."]
sys.path.append(sys.argv[1])
import my_app
from hydra import initialize
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.types import HydraContext, RunMode

if __name__ == "__main__":
    from flgo_hydra.launch import launcher as module
    module.PRELOAD = ()
    import hydra as module
    kw = {"version_base": "1.3"} if module.__version__.startswith("1.3") else {}
    with initialize(config_path=None, **kw):
        hydra = GlobalHydra.instance().hydra
        overrides = ["hydra/launcher=flgo_hydra", "hydra.launcher.backoff_s=0.01", "hydra.sweep.dir=sweep",
                     "hydra.job.name=batch"]
        config = hydra.compose_config("config", overrides, RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=hydra.callback_cls(config)
                               if hasattr(hydra, "callback_cls") else __import__(
                                   "hydra._internal.callbacks", fromlist=["Callbacks"]).Callbacks(config))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=my_app.main.__wrapped__, config=config)
        jobs = json.loads(sys.argv[3])
        returns = [*launcher.launch(jobs[:5], 0), *launcher.launch(jobs[5:], 5)]
        print(json.dumps([[r.status.name, str(r._return_value) if r.status.name == "FAILED" else r.return_value]
                          for r in returns]))
"""


def test_what_cannot_travel_arrives_as_text(app):
    done = run(app, "mode=unpicklable_error")
    assert done.returncode == 1
    assert "cannot travel" in done.stderr
    done = run(app, "mode=unpicklable_value,own")
    assert done.returncode == 0, done.stderr
    assert "cannot be pickled" in (app.parent / "sweep" / "0" / "attempt-2.log").read_text()


def test_a_composed_config_error_is_that_jobs_failure(app):
    script = app.parent / "batch.py"
    script.write_text(BATCH)
    done = subprocess.run(
        [sys.executable, str(script), PLUGINS, str(ROOT), json.dumps([["x=1"], ["nothing=1"], ["x=2"]])],
        capture_output=True,
        text=True,
        cwd=app.parent,
        timeout=100,
    )
    # The second batch is empty, and an empty batch is no error.
    assert done.returncode == 0, done.stderr
    statuses = [status for status, _ in json.loads(done.stdout.splitlines()[-1])]
    assert statuses == ["COMPLETED", "FAILED", "COMPLETED"]


@pytest.fixture
def waiting_sweep(app):
    """Starts a sweep of three jobs on two slots, of which two wait; yields it and their process ids."""
    fifo = app.parent / "fifo"
    os.mkfifo(fifo)
    started = []

    def start(mode):
        arguments = [f"mode={mode}", "x=1,2,3", f"fifo={fifo}", "hydra.launcher.slots=2", "hydra.launcher.grace_s=0.5"]
        sweep = subprocess.Popen(
            command(app, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=app.parent
        )
        started.append(sweep)
        # Open for writing too: it never ends, and no job's write finds it without a reader.
        with open(fifo, "r+b", buffering=0) as file:
            pids = [int(file.readline()) for _ in range(2)]
        return sweep, pids

    yield start
    for sweep in started:
        sweep.kill()
        sweep.wait()
        sweep.stdout.close()


def test_ctrl_c_once_stops_at_the_round_boundary(waiting_sweep, app):
    sweep, pids = waiting_sweep("wait")
    sweep.send_signal(signal.SIGINT)
    out, _ = sweep.communicate(timeout=60)
    assert sweep.returncode != 0
    assert "with a checkpoint" in out and "3 jobs: 0 done, 3 stopped" in out
    assert sorted(path.parent.name for path in (app.parent / "sweep").glob("*/checkpoint.json")) == ["0", "1"]
    assert not (app.parent / "sweep" / "2").exists()
    assert_gone(pids)


def test_ctrl_c_twice_stops_now(waiting_sweep):
    sweep, pids = waiting_sweep("deaf")
    sweep.send_signal(signal.SIGINT)
    for line in sweep.stdout:
        if "round boundary" in line:
            break
    sweep.send_signal(signal.SIGINT)
    out, _ = sweep.communicate(timeout=60)
    assert sweep.returncode != 0
    assert "0 done, 3 stopped" in out
    assert_gone(pids)


def test_the_parent_killed(waiting_sweep):
    sweep, pids = waiting_sweep("deaf")
    server = [child.pid for child in psutil.Process(sweep.pid).children()]
    assert server
    sweep.kill()
    assert_gone([*pids, *server])


def assert_gone(pids, timeout_s=5):
    processes = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_many_jobs_that_do_nothing(app):
    """scripts/benchmarks/launcher.py times 200 of them."""
    done = run(app, "x=range(20)", "hydra.launcher.slots=2")
    assert done.returncode == 0, done.stderr
    assert "20 jobs: 20 done" in done.stdout
    numbers = [int(num) for num in re.findall(r"#(\d+) x=\d+: done", done.stdout)]
    assert sorted(numbers) == list(range(20))


def test_an_unguarded_script_is_refused(app):
    guarded = f'if __name__ == "__main__":\n{WITHOUT_TORCH}    main()'
    assert guarded in app.read_text()
    app.write_text(app.read_text().replace(guarded, "main()"))
    done = run(app, "x=1,2")
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr


def test_a_package_run_with_m(app):
    package = app.parent / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(app.read_text())
    python, *_ = done = command(app, "x=1,2", "mode=own")
    done = subprocess.run(
        [python, "-m", "my_package", *done[done.index("-m") :]],
        capture_output=True,
        text=True,
        cwd=app.parent,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "2 jobs: 2 done" in done.stdout


@pytest.mark.parametrize("launcher_name, overrides", [("flgo_hydra", ["hydra.launcher.view=none"])])
class TestHydrasOwnSuite(LauncherTestSuite):
    """What Hydra asks of every launcher. Its task functions are closures: cloudpickle carries them."""

    @pytest.fixture(autouse=True)
    def without_torch(self, monkeypatch):
        monkeypatch.setattr("flgo_hydra.launch.launcher.PRELOAD", ())

    @pytest.mark.skip("its resolver exists in this process only; an app's own module registers it in a worker too")
    def test_sweep_with_custom_resolver(self, launcher_name, overrides):
        """Hydra's other launchers copy all of Hydra's state into workers, by cloudpickle."""


def test_settings_are_checked():
    with pytest.raises(ValueError, match="`hydra.launcher.slots >= 1, or null for automatic` must hold, but got 0"):
        PackingLauncher(slots=0)
    with pytest.raises(ValueError, match="hydra.launcher.view"):
        PackingLauncher(view="film")


class Mine(BasicScheduler):
    pass


@pytest.mark.parametrize(
    "wanted, name",
    [
        ("basic", "BasicScheduler"),
        ("auto", "AutoScheduler"),
        ("ledger", "LedgerScheduler"),
        ({"name": "auto", "put_interval": 1}, "AutoScheduler"),
        ({"_target_": "flgo_hydra.launch.scheduling.scheduler.RandomScheduler", "seed": 1}, "RandomScheduler"),
    ],
)
def test_schedulers_by_name(wanted, name):
    assert type(make_scheduler(wanted)).__name__ == name


@pytest.mark.parametrize(
    "wanted, says",
    [
        ("fastest", "must be one of basic, random, auto, ledger"),
        ({"name": "auto", "put": 1}, "cannot be called"),
        ({"_target_": "pathlib.Path"}, "must be a subclass of"),
        ({"_target_": "nowhere.at.All"}, "there is no module"),
    ],
)
def test_wrong_schedulers(wanted, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make_scheduler(wanted)


def test_the_signature_is_what_decides_memory():
    task = TaskReference("app", "job")
    conf = {"lr": 0.1, "batch_size": 8, "model": {"name": "mlp", "hidden": [3]}}
    keys = ["model", "batch_size", "absent.key"]

    def of(**changes):
        return signature(OmegaConf.create({**conf, **changes}), keys, task)

    assert of(lr=0.5) == of()
    assert of(batch_size=16) != of()
    assert of(model={"name": "mlp", "hidden": [4]}) != of()
    # Of an app that has none of the keys nothing is known: its jobs are alike, and not another app's.
    other = [signature(OmegaConf.create({"depth": depth}), keys, task) for depth in (1, 2)]
    assert other[0] == other[1] != signature(OmegaConf.create({"depth": 1}), keys, TaskReference("another", "job"))


def test_launch_outside_the_main_thread(app):
    """Nobody can catch Ctrl-C there; all else works."""
    script = app.parent / "batch.py"
    script.write_text(
        BATCH.replace(
            "returns = [*launcher.launch(jobs[:5], 0), *launcher.launch(jobs[5:], 5)]",
            "import threading; returns = []\n"
            "        thread = threading.Thread(target=lambda: returns.extend(launcher.launch(jobs, 0)))\n"
            "        thread.start(); thread.join()",
        )
    )
    done = subprocess.run(
        [sys.executable, str(script), PLUGINS, str(ROOT), json.dumps([["x=1"], ["x=2"]])],
        capture_output=True,
        text=True,
        cwd=app.parent,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert [status for status, _ in json.loads(done.stdout.splitlines()[-1])] == ["COMPLETED", "COMPLETED"]
