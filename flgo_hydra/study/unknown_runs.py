"""Finished runs that the study does not know, since a loss of power has taken its last entries.

A run's result is on the disk before its trial has ended, and may be so before the entry is that began the trial. Run
folders are the truth: what such a folder says of its point is taken over, and nothing is run twice.
"""

import os
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

from flgo_hydra.record.paths import RunPaths, SweepPaths
from flgo_hydra.record.result import RunResult, read_result
from flgo_hydra.study.points import Point
from flgo_hydra.study.recorded import read_job


class UnknownRuns:
    """The finished runs below a sweep's folder that are nobody's yet."""

    def __init__(self, paths: SweepPaths, known: Collection[str]) -> None:
        """
        Args:
            known: the run folders of the study's jobs, from the sweep folder.
        """
        self._paths = paths
        self._known = {os.path.normpath(folder) for folder in known}

    @cached_property
    def _runs(self) -> dict[str, list[tuple[str, RunResult]]]:
        """Folder and result by the fingerprint of the config."""
        found: dict[str, list[tuple[str, RunResult]]] = {}
        for folder in self._folders(self._paths.folder):
            name = os.path.relpath(folder, self._paths.folder)
            if name not in self._known and (result := read_result(RunPaths(folder))) is not None:
                found.setdefault(result.fingerprint, []).append((name, result))
        return found

    def _folders(self, above: Path) -> list[Path]:
        found = []
        with os.scandir(above) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                    folder = Path(entry.path)
                    is_run = (folder / "result.json").is_file() or (folder / ".hydra").is_dir()
                    found += [folder] if is_run else self._folders(folder)
        return found

    def take(self, point: Point) -> tuple[int, str] | None:
        """The number and the folder of the job that has computed a point; nobody else gets it. None: there is none."""
        candidates = self._runs.get(point.run_fingerprint, [])
        for candidate in candidates:
            folder, result = candidate
            if result.data_sha256 not in ("", point.data_sha256) and point.data_sha256:
                continue
            try:
                number, overrides = read_job(self._paths.folder / folder, ".hydra")
            except ValueError:
                continue
            if set(point.overrides) <= set(overrides):
                candidates.remove(candidate)
                return number, folder
        return None
