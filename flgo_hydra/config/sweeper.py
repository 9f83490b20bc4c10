"""How a grid is run and recorded."""

from dataclasses import dataclass, field
from typing import Any

from flgo_hydra.config.laws import MISSING, hold, hold_whole_numbers

# by the name of Optuna's class
PRUNERS = {
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "asha": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "wilcoxon": "WilcoxonPruner",
}


SAMPLERS = ("grid", "tpe", "random", "qmc", "cmaes", "gp")


@dataclass
class SweeperConf:
    """How a grid (`-m`) is run and recorded (`study/sweeper.py`)."""

    # the plugin class Hydra starts
    _target_: str = MISSING
    # Hydra 1.3 would build nested `_target_`s by itself
    _recursive_: bool = False
    # what varies, as on the command line: {lr: "0.1,0.01"}; the command line wins
    params: dict[str, Any] = field(default_factory=dict)
    # points that are no product, each "algorithm=fedprox lr=0.1"; what varies besides is run for each of them
    points: list[Any] = field(default_factory=list)
    # any Optuna storage URL; null: study.journal in the sweep folder
    storage: str | None = None
    # name of the study; null: from the sweep folder
    study_name: str | None = None
    # jobs handed at once to a launcher that is not ours; null: one to Hydra's basic launcher, to others all of a grid,
    # and as many as there are cores where a sampler chooses
    batch_size: int | None = None
    # when going on with a sweep: run failed points again
    retry_failed: bool = False
    # when going on with a sweep: run points again whose code of yours (algorithm, model, …) has changed since
    rerun_changed: bool = False
    # metric drawn in curves.png, by round; null: the monitor
    curve: str | None = None
    # ends runs that fall behind others of the same task and seed: null (none), median, percentile, asha, hyperband,
    # wilcoxon, one of them with Optuna's settings ({name: median, n_warmup_steps: 5}; a step is a round), or your
    # class's {_target_: …}
    pruner: Any = None
    # who chooses the points: grid (every one), or one of Optuna's samplers, which learn from the points before: tpe,
    # random, qmc, cmaes, gp, or your class's {_target_: …}
    sampler: Any = "grid"
    # points that a sampler tries in total, over all runs of the sweep; not for grid
    n_trials: int | None = None
    # decides what a sampler chooses; null: 0; not for grid
    sampler_seed: int | None = None
    # a swept key, or a list of them, that makes no point of its own: a point's value is the mean over its values
    replicate: Any = None

    def __post_init__(self) -> None:
        hold_whole_numbers(self, "hydra.sweeper.")
        size = self.batch_size
        hold(size is None or size >= 1, "hydra.sweeper.batch_size >= 1, or null for automatic", size)
        self._hold_sampler()
        keys = self.replicate_keys
        is_list = isinstance(keys, list) and all(isinstance(key, str) and key for key in keys)
        hold(is_list, "hydra.sweeper.replicate is a key or a list of keys", self.replicate)
        if keys and self.pruner not in (None, "none"):
            raise ValueError(
                "`hydra.sweeper.pruner` and `hydra.sweeper.replicate` exclude each other: a mean over replicates needs "
                "every one of them to its end. Drop one of the two."
            )
        if self.pruner in (None, "none"):
            self.pruner = None
        elif isinstance(self.pruner, str):
            self._hold_pruner(self.pruner)
        elif not (isinstance(self.pruner, dict) and isinstance(self.pruner.get("_target_"), str)):
            self._hold_pruner(self.pruner.get("name", self.pruner) if isinstance(self.pruner, dict) else self.pruner)

    @property
    def replicate_keys(self) -> list[str]:
        """`replicate` as a list."""
        return [] if self.replicate is None else [self.replicate] if isinstance(self.replicate, str) else self.replicate

    def _hold_sampler(self) -> None:
        target = self.sampler.get("_target_") if isinstance(self.sampler, dict) else None
        if not isinstance(target, str) and self.sampler not in SAMPLERS:
            raise ValueError(
                f"`hydra.sweeper.sampler` must be one of {', '.join(SAMPLERS)}, or your class's {{_target_: …}}, "
                f"but got {self.sampler!r}."
            )
        num, seed = self.n_trials, self.sampler_seed
        if self.sampler == "grid":
            for key, value in (("n_trials", num), ("sampler_seed", seed)):
                if value is not None:
                    raise ValueError(
                        f"`hydra.sweeper.{key}` has no effect with `hydra.sweeper.sampler=grid`, which runs every "
                        f"point, but got {value}. Choose another sampler: {', '.join(SAMPLERS[1:])}."
                    )
        elif num is None:
            raise ValueError(
                f"`hydra.sweeper.n_trials` must be given with `hydra.sweeper.sampler={target or self.sampler}`: how "
                "many points to try."
            )
        hold(num is None or num >= 1, "hydra.sweeper.n_trials >= 1", num)
        hold(seed is None or seed >= 0, "hydra.sweeper.sampler_seed >= 0", seed)

    def _hold_pruner(self, name: Any) -> None:
        if name == "patience":
            raise ValueError(
                "`hydra.sweeper.pruner=patience`: patience needs no other runs. Set `early_stop=…`: the run ends by "
                "itself and counts as a result."
            )
        if not isinstance(name, str) or name not in PRUNERS:
            raise ValueError(
                f"`hydra.sweeper.pruner` must be one of {', '.join(PRUNERS)}, one of them with settings "
                f"({{name: median, n_warmup_steps: 5}}), your class's {{_target_: …}}, or null, but got {name!r}."
            )
