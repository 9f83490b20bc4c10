"""Every file of a run folder and of a sweep folder, by name."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path


def cache_folder(root: str | None = None) -> Path | None:
    """What is kept for this user, beside all runs: `flgo_hydra` in `root`, `XDG_CACHE_HOME` or `~/.cache`.

    None: the user has no home, as in a container under a user number of its own.
    """
    try:
        found = Path(root or os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute()
    except RuntimeError:
        return None
    return found / "flgo_hydra"


@dataclass(frozen=True)
class RunPaths:
    """Files of one job. The folder is Hydra's job folder."""

    folder: Path
    sweep: Path | None = None
    """the folder of the sweep that owns this one; None: a run by itself, whose folder the user has chosen"""

    @property
    def config(self) -> list[Path]:
        """Hydra's record of the command."""
        return sorted((self.folder / ".hydra").glob("*.yaml"))

    @property
    def rounds(self) -> Path:
        return self.folder / "rounds.jsonl"

    @property
    def result(self) -> Path:
        return self.folder / "result.json"

    @property
    def failure(self) -> Path:
        return self.folder / "failure.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def best_model(self) -> Path:
        return self.folder / "best_model.safetensors"

    @property
    def owner(self) -> Path:
        """Held by the process of a single run; of a sweep's run by its sweeper, in the folder above."""
        return self.folder / ".owner.lock"

    def newest_log(self) -> Path:
        """The log of the last attempt; without one Hydra's, or where the failure is told."""
        try:
            attempts = sorted(self.folder.glob("attempt-*.log"), key=lambda path: path.stat().st_mtime)
            logs = attempts or sorted(self.folder.glob("*.log"))
        except OSError:  # a folder that cannot be looked into
            logs = []
        return logs[-1] if logs else self.failure

    def attempt_log(self, attempt: int) -> Path:
        return self.folder / f"attempt-{attempt}.log"


@dataclass(frozen=True)
class SweepPaths:
    """Files of a sweep."""

    folder: Path

    def run(self, folder: str | int) -> RunPaths:
        """A job's run folder, by its name: the job's number, unless the config says otherwise."""
        return RunPaths(self.folder / str(folder))

    @property
    def results(self) -> Path:
        return self.folder / "results.csv"

    @property
    def points(self) -> Path:
        return self.folder / "points.csv"

    @property
    def best(self) -> Path:
        return self.folder / "best.yaml"

    @property
    def curves(self) -> Path:
        return self.folder / "curves.png"

    @property
    def study(self) -> Path:
        return self.folder / "study.journal"

    @property
    def owner(self) -> Path:
        return self.folder / ".owner.lock"


def run_of_sweep(folder: Path) -> RunPaths:
    """The run folder of a sweep's job: the sweep is the nearest folder above that has Hydra's record of one."""
    above = (parent for parent in folder.parents if (parent / "multirun.yaml").exists())
    return RunPaths(folder, next(above, folder.parent))


def is_by_the_second(pattern: str) -> bool:
    """Whether a folder, as a config has it, is named by the time of the command: nobody means to go on in it."""
    return "${now:" in pattern and "%S" in pattern


def free_folder(wanted: Path) -> Path:
    """Makes a folder that nobody has: as wanted, or with a number behind its name.

    Two commands may come within one second, which their folders are named by.
    """
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        folder = wanted if number == 0 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("numbers do not end")
