"""Which folder each job of a sweep runs in: where Hydra's config says (`hydra.sweep.dir`, `hydra.sweep.subdir`).

Nearly always that is the job's number in the sweep folder. Where the config says something else
(`run_${hydra.job.num}`, `${hydra.job.override_dirname}`, a key that varies), the job is composed to know it, and the
study remembers it: a job that goes on does so in the folder it began in. Two jobs in one folder, and folders outside
the sweep's, are refused.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from flgo_hydra.composer import Composer, number_config, run_folder
from flgo_hydra.overrides import override
from flgo_hydra.record.paths import SweepPaths

_NUMBER = "${hydra.job.num}"
_SAME_IN_ALL = re.compile(r"\$\{(now|oc\.env):[^${}]*\}")


class RunFolders:
    """The folders of one sweep's jobs, relative to the sweep folder."""

    def __init__(self, composer: Composer, config: DictConfig, paths: SweepPaths, fixed: Sequence[str]) -> None:
        """Args:
        config: the sweep's own, with Hydra's node.
        fixed: the overrides that all jobs share.
        """
        self._composer = composer
        self._fixed = tuple(fixed)
        self._root = Path(os.path.realpath(paths.folder))
        ours = (paths.results, paths.points, paths.best, paths.curves, paths.study, paths.owner)
        self._ours = {path.name for path in ours} | {"multirun.yaml"}
        sweep = OmegaConf.to_container(config.hydra.sweep, resolve=False)
        assert isinstance(sweep, dict)
        self.rule = f"{sweep['dir']}/{sweep['subdir']}"
        """as it was written"""
        is_one_place = "${" not in _SAME_IN_ALL.sub("", str(sweep["dir"]))
        self.is_by_number = is_one_place and str(sweep["subdir"]) == _NUMBER
        self._places: dict[tuple[int, tuple[str, ...]], str] = {}
        self._owners: dict[str, int] = {}  # jobs by folder
        self._inside: dict[str, int] = {}  # folders that hold a job's

    def of(self, number: int, overrides: Sequence[str]) -> str:
        """Where Hydra runs a job.

        Raises:
            ValueError: outside the sweep folder.
        """
        if self.is_by_number:
            return str(number)
        job = number, tuple(overrides)
        if job not in self._places:
            self._places[job] = self._compose(number, overrides)
        return self._places[job]

    def _compose(self, number: int, overrides: Sequence[str]) -> str:
        config = number_config(self._composer.compose([*self._fixed, *overrides]), number)
        folder = Path(os.path.realpath(run_folder(config)))
        if self._root not in folder.parents:
            raise ValueError(
                f"{_called(overrides)} would run in {folder}, which is not below the sweep folder {self._root}. "
                "`hydra.sweep.dir` must be the same for all jobs; `hydra.sweep.subdir` names a job's own folder below "
                "it: `run_${hydra.job.num}`."
            )
        return str(folder.relative_to(self._root))

    def claim(self, folder: str, number: int, overrides: Sequence[str]) -> None:
        """Gives a folder to a job.

        Raises:
            ValueError: another job has it, or one around or inside it.
        """
        if self.is_by_number:
            return
        if Path(folder).parts[0] in self._ours:
            raise ValueError(
                f"{_called(overrides)} would run in {folder}, but the sweep's own {Path(folder).parts[0]} lies there. "
                "Let `hydra.sweep.subdir` name the job: `run_${hydra.job.num}`."
            )
        around = [str(parent) for parent in Path(folder).parents][:-1]
        others = [self._owners.get(other) for other in (folder, *around)] + [self._inside.get(folder)]
        for other in others:
            if other not in (None, number):
                raise ValueError(
                    f"{_called(overrides)} would run in the folder {folder}, where job {other} runs too: they "
                    "would overwrite each other. Let `hydra.sweep.subdir` name the job: `run_${hydra.job.num}`, or "
                    "`${hydra.job.override_dirname}`."
                )
        self._owners[folder] = number
        self._inside.update(dict.fromkeys(around, number))

    def pin(self, number: int, overrides: Sequence[str], folder: str) -> list[str]:
        """Overrides that make Hydra run a job in the folder that it has."""
        if self.is_by_number or self.of(number, overrides) == folder:
            return []
        return [override("hydra.sweep.dir", str(self._root)), override("hydra.sweep.subdir", folder)]


def _called(overrides: Sequence[str]) -> str:
    return f"The job {' '.join(overrides)}" if overrides else "The job"
