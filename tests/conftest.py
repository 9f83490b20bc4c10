"""Runs of flgo_hydra inside the test's process, in an empty folder, with a task cache of the session's own."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flgo_hydra.config.conf import Conf
from flgo_hydra.config.folder import conf_dir

# Before torch is imported, here and in what we start: threads of OpenMP otherwise spin while they wait for each other,
# and two processes of tests on two cores keep one another waiting for five times as long as they compute.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Whoever is started in the background of a shell ignores Ctrl-C, and so would all that we start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`@pytest.mark.few(n)`: of a test's cases n, spread over them, are quick, and the rest are `slow`."""
    of_tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few") is not None and item.get_closest_marker("slow") is None:
            of_tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in of_tests.values():
        marker = cases[0].get_closest_marker("few")
        assert marker is not None
        (n,) = marker.args
        quick = {i * len(cases) // n for i in range(n)}
        for i, case in enumerate(cases):
            if i not in quick:
                case.add_marker(pytest.mark.slow)


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tasks are built once a session, and never in the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True)
def hydra_as_it_was() -> Iterator[None]:
    """Hydra 1.3 remembers for the whole process which version's behaviour an app asked for."""
    from hydra.version import VersionBase

    before = VersionBase.instance().version_base
    yield
    VersionBase.instance().version_base = before


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: nothing of the checkout is in it. Modules that are imported from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def make_conf(empty_folder: Path) -> Callable[..., Conf]:
    """Composes a config from overrides, as a job would get it."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from flgo_hydra import compose

    def make(*overrides: str) -> Conf:
        compose.prepare()
        GlobalHydra.instance().clear()
        base = {k: v for k, v in compose.hydra_main_arguments().items() if k == "version_base"}
        with initialize_config_dir(config_dir=str(conf_dir()), **base):
            return compose.to_conf(hydra_compose("config", overrides=list(overrides)))

    return make


@pytest.fixture
def command(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Finished]]:
    """`command("-m", "lr=0.1,0.01")` is `python -m flgo_hydra -m lr=0.1,0.01` without a new process."""
    from hydra.core.global_hydra import GlobalHydra

    from flgo_hydra import __main__
    from flgo_hydra.launch.processes import server_process

    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*arguments: str) -> Finished:
        os.environ.pop("HYDRA_FULL_ERROR", None)  # what the run before has set
        monkeypatch.setattr(sys, "argv", ["flgo_hydra", *arguments])
        GlobalHydra.instance().clear()
        capfd.readouterr()
        try:
            status = __main__._run(list(arguments))
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        out, err = capfd.readouterr()
        return Finished(status, out, err)

    yield run
    server_process.take_early({})  # of a command that was refused before it had a launcher
    for handler in list(root.handlers):
        if handler not in before[0]:
            root.removeHandler(handler)
            handler.close()
    root.handlers, root.level = before
    os.environ.pop("HYDRA_FULL_ERROR", None)
