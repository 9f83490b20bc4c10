"""Hydra's sweeper of flgo_hydra: reads the grid and checks what may run before the sweep begins."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf

from flgo_hydra import compose, reference
from flgo_hydra.composer import Composer
from flgo_hydra.config.sweeper import SweeperConf
from flgo_hydra.launch.launcher import PackingLauncher
from flgo_hydra.overrides import override
from flgo_hydra.record.paths import SweepPaths, free_folder, is_by_the_second
from flgo_hydra.study.folders import RunFolders
from flgo_hydra.study.ownership import check_files, owning
from flgo_hydra.study.space.common import Common
from flgo_hydra.study.space.grid import (
    Grid,
    give_axes,
    read_grid,
    read_points,
    refuse_repeated,
    refuse_twice,
    write_axis,
)
from flgo_hydra.study.space.points import PointChecker, check_points
from flgo_hydra.study.space.replicates import split_replicates

if TYPE_CHECKING:  # Hydra imports this module for single runs too
    from flgo_hydra.study.sweep import Outcome, Plan

set_up_listeners: list[Callable[["StudySweeper"], None]] = []
"""Called with each sweeper when it has its launcher: how a Python program reaches the one that Hydra makes for it."""


class StudySweeper(Sweeper):
    """Runs a grid with whatever launcher is configured. Run folders are the truth; study and tables follow them."""

    def __init__(
        self,
        params: DictConfig | None = None,
        storage: str | None = None,
        study_name: str | None = None,
        batch_size: int | None = None,
        retry_failed: bool = False,
        rerun_changed: bool = False,
        curve: str | None = None,
        pruner: Any = None,
        sampler: Any = "grid",
        n_trials: int | None = None,
        sampler_seed: int | None = None,
        replicate: Any = None,
        points: ListConfig | None = None,
    ) -> None:
        self._settings = SweeperConf(  # its laws
            "",
            storage=storage,
            study_name=study_name,
            batch_size=batch_size,
            retry_failed=retry_failed,
            rerun_changed=rerun_changed,
            curve=curve,
            pruner=_as_plain(pruner),
            sampler=_as_plain(sampler),
            n_trials=n_trials,
            sampler_seed=sampler_seed,
            replicate=_as_plain(replicate),
        )
        self._params: dict[str, Any] = {str(key): _as_plain(value) for key, value in (params or {}).items()}
        self._points = read_points(_as_plain(points) or [])
        self.outcome: Outcome | None = None
        self._made: SweepPaths | None = None
        """a folder that nobody chose, made for this sweep"""
        self._config: DictConfig | None = None
        self._launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        # From here on it is only written and printed: who opens the study has the storage from `__init__`.
        self._config = config = self._in_a_free_folder(config).copy()
        compose.hide_passwords(config)
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        # Our launcher's own: what is composed to be checked need not be composed again to run.
        launcher = self._launcher
        self._composer = (
            launcher.composer
            if isinstance(launcher, PackingLauncher)
            else Composer(hydra_context.config_loader, config)
        )

        for tell in set_up_listeners:
            tell(self)

    @property
    def job_launcher(self) -> Launcher:
        assert self._launcher is not None
        return self._launcher

    def sweep(self, arguments: list[str]) -> None:
        """Runs every point that has no result yet; prints what came out. Folders, tables, study and `outcome` have it.

        Raises:
            ValueError: a point breaks a law: nothing was started.
            SystemExit: with status 1, when a job has no result or no point has a finite loss.
        """
        try:
            self._sweep(arguments)
        finally:
            self._give_back()

    def _sweep(self, arguments: list[str]) -> None:
        assert self._config is not None and self.hydra_context is not None
        if self._settings.batch_size is not None and isinstance(self._launcher, PackingLauncher):
            raise ValueError(
                "`hydra.sweeper.batch_size` has no effect with hydra/launcher=flgo_hydra, which fills slots one by "
                "one. Set `hydra.launcher.slots`."
            )
        self._check_pruner()
        grid = self._read_grid(arguments)
        paths = SweepPaths(Path(self._config.hydra.sweep.dir).resolve())
        with contextlib.ExitStack() as stack:
            is_old = paths.folder.exists()
            if is_old:  # who is not let in need not wait for the checks
                check_files(paths)
                stack.enter_context(owning(paths))
            plan = self._plan(grid)
            self._check_folders(plan, paths)
            if not is_old:  # nothing is made before everything is checked
                stack.enter_context(owning(paths))
            from flgo_hydra.study.sweep import Sweep

            sweep = Sweep(self._config, self._settings, self.job_launcher, self._composer, plan, paths)
            stack.callback(sweep.close)
            self.outcome = sweep.outcome()
            sweep.run()

    def _in_a_free_folder(self, config: DictConfig) -> DictConfig:
        """The config, whose folder is another one where nobody has chosen it and another sweep has it."""
        node: Any = OmegaConf.to_container(config.hydra, resolve=False)
        if not is_by_the_second(str(node["sweep"]["dir"])):
            return config
        wanted = Path(str(config.hydra.sweep.dir))
        folder = free_folder(wanted)
        self._made = SweepPaths(folder)
        if folder == wanted:
            return config
        given = [*node["overrides"]["hydra"], override("hydra.sweep.dir", str(folder))]
        config = config.copy()
        compose.change_hydra(config, {"sweep.dir": str(folder), "overrides.hydra": given})
        return config

    def _give_back(self) -> None:
        """Of a sweep that was refused nothing stays."""
        with contextlib.suppress(OSError):
            if self._made is not None and os.listdir(self._made.folder) in ([], [self._made.owner.name]):
                self._made.owner.unlink(missing_ok=True)
                self._made.folder.rmdir()

    def _plan(self, grid: Grid) -> "Plan":
        """What may run, checked: every point of a grid, the edges of a search's space."""
        assert self._config is not None
        sampler = self._settings.sampler
        keys = self._settings.replicate_keys
        grid = give_axes(grid, keys)  # one value is one replicate
        space, replicates = split_replicates(grid, keys)
        if sampler == "grid":
            points = space.points()
        else:
            name = reference.described(sampler)
            if grid.listed:
                raise ValueError(f"`hydra.sweeper.points` has no effect with `hydra.sweeper.sampler={name}`. Drop one.")
            from flgo_hydra.study.samplers import check_sampler

            check_sampler(sampler)
            if not space.axes and not space.intervals:
                raise ValueError(
                    f"`hydra.sweeper.sampler={name}` has nothing to choose: let a key vary, e.g. "
                    "`lr=tag(log,interval(0.001,0.3))`."
                )
            points = space.edges()
        common = Common(grid.keys())
        checker = PointChecker(self._composer, self._config, grid.fixed, common)
        # Workers may begin with their imports while the other points are checked.
        warm = self._launcher.warm if isinstance(self._launcher, PackingLauncher) else lambda: None
        checked = check_points(checker, [(*point, *more) for point in points for more in replicates], warm)
        from flgo_hydra.study.sweep import Plan

        return Plan(space, replicates, checked, common, frozenset(checker.apart))

    def _check_folders(self, plan: "Plan", paths: SweepPaths) -> None:
        """Each job of a grid has a folder of its own, below the sweep's; of a search that shows point by point."""
        assert self._config is not None
        folders = RunFolders(self._composer, self._config, paths, plan.space.fixed)
        if not folders.is_by_number and self._settings.sampler == "grid":
            for number, point in enumerate(plan.checked):
                folders.claim(folders.of(number, point.overrides), number, point.overrides)

    def _check_pruner(self) -> None:
        if self._settings.pruner is None:
            return
        from flgo_hydra.study.pruning import Pruning  # imports optuna

        Pruning(self._settings.pruner)
        if not isinstance(self._launcher, PackingLauncher):
            raise ValueError(
                "`hydra.sweeper.pruner` needs hydra/launcher=flgo_hydra: under other launchers a run cannot be told to "
                "end. Choose that launcher, or `hydra.sweeper.pruner=null`."
            )

    def _read_grid(self, arguments: Sequence[str]) -> Grid:
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        written = [write_axis(key, value) for key, value in self._params.items()]
        refuse_repeated(parser.parse_overrides(list(arguments)))
        grid = replace(read_grid(parser.parse_overrides([*written, *arguments])), listed=self._points)
        refuse_twice(grid)
        return grid


def _as_plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
