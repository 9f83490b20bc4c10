"""Who computes a run: our engine (`native.py`), or FLGo in its place (`flgo.py`). What differs is asked here."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from flgo_hydra.config.algorithm import FlgoConf
from flgo_hydra.config.conf import Conf
from flgo_hydra.config.task import TaskConf
from flgo_hydra.job import flgo, native
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import RunResult

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    from flgo_hydra.federated.data.task import Task


class Engine(Protocol):
    """Computes runs. Both are modules of these functions."""

    def check(self, conf: Conf, data: dict[str, tuple[str, str]] | None = None) -> "Task | None":
        """Checks what the config refers to: a user's own functions and classes, data files, and the task they make.

        Args:
            data: hashes of the tasks that the caller has had checked, by `repr(conf.task)`; gets this one's.
        Returns:
            the task, where it had to be built for that: a partition that its data do not allow shows only there.
        Raises:
            ValueError: something is missing or impossible; the error says what to do.
        """

    def check_model(self, conf: Conf, task: "Task | None" = None) -> None:
        """Tries a user's own model on the task, where only a job would find out that it does not fit.

        Args:
            task: the config's, if it has been built already.
        Raises:
            ValueError: the model does not fit the task.
        """

    def data_sha256(self, task: TaskConf) -> str:
        """A hash of the task's content. Raises ValueError where it is not here."""

    def targets(self, conf: Conf) -> Mapping[str, str]:
        """Code of the config's whose modules a run must leave as it finds them, by key."""

    def can_fuse(self, conf: Conf) -> bool:
        """Whether runs that differ in values only may be one program."""

    def train(self, conf: Conf, paths: RunPaths, task: "Task | None") -> RunResult:
        """Runs a checked config to its end.

        Args:
            task: what `check` has returned.
        Raises:
            KeyboardInterrupt: stopped by request at a round boundary.
        """


def engine_of(conf: Conf) -> Engine:
    return flgo if isinstance(conf.algorithm, FlgoConf) else native


def check(conf: Conf, data: dict[str, tuple[str, str]] | None = None) -> None:
    """Checks whatever can be checked of a config before anything runs, see `Engine.check` and `Engine.check_model`."""
    engine = engine_of(conf)
    engine.check_model(conf, engine.check(conf, data))
