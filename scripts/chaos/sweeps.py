"""Which sweeps are run: small ones of every kind, drawn by number."""

import hashlib
import random
from dataclasses import dataclass

FOLDER = "sweep"
DATABASE = "study.db"


@dataclass(frozen=True)
class Sweep:
    """A sweep, as it is typed."""

    arguments: tuple[str, ...]
    kind: str
    """grid, replicates, fused, pruned, search"""
    is_database: bool = False
    is_packed: bool = True
    """under our launcher"""

    @property
    def key(self) -> str:
        """Names it: two numbers may draw the same one."""
        return hashlib.sha256(" ".join(self.arguments).encode()).hexdigest()[:12]

    @property
    def may_differ(self) -> bool:
        """Whether which points are pruned depends on which end first."""
        return self.kind == "pruned"


_KINDS = ("grid", "grid", "grid", "replicates", "replicates", "fused", "fused", "pruned", "search", "search")
_TASKS = (
    ("task=digits", "task.num_clients=5", "model=logistic", "num_rounds=160"),
    ("task=digits", "task.num_clients=5", "model=mlp", "model.hidden=[16]", "num_rounds=90"),
    ("task=synthetic", "task.num_clients=6", "model=logistic", "num_rounds=100", "num_steps=20"),
)


def draw(rng: random.Random) -> Sweep:
    """One sweep: half a dozen jobs of half a second to a second each."""
    kind = rng.choice(_KINDS)
    slots = rng.choice((1, 2, 2, 3))
    fixed = [*rng.choice(_TASKS), "proportion=0.4", f"checkpoint_interval={rng.choice((5, 20))}"]
    fixed += rng.choice(([], ["save_best=true"], ["save_best=true", "early_stop=40"]))
    launcher = [f"hydra.launcher.scheduler={rng.choice(('null', 'null', 'basic', 'random', 'auto'))}"]
    varied: list[str] = []
    settings: list[str] = []
    if kind == "grid":
        varied = rng.choice(
            (
                ["lr=0.1,0.05", "seed=0,1,2"],
                ["algorithm=fedavg,fedprox,scaffold", "lr=0.1,0.02"],
                ["num_epochs=1,3", "lr=0.1,0.02", "algorithm=fedavg,scaffold"],
            )
        )
    elif kind == "replicates":
        varied, settings = ["lr=0.1,0.03,0.01", "seed=0,1"], ["hydra.sweeper.replicate=seed"]
    elif kind == "fused":
        varied, launcher = ["lr=0.1,0.05,0.02", "seed=0,1"], [*launcher, "hydra.launcher.fuse=3"]
    elif kind == "pruned":
        varied = ["lr=0.1,0.03,0.01,0.003,0.001,0.0003"]
        settings = ["hydra.sweeper.pruner={name: median, n_startup_trials: 2, n_warmup_steps: 20}"]
    else:
        sampler = rng.choice(("tpe", "random", "qmc"))
        varied = ["lr=tag(log,interval(0.001,0.3))"]
        if sampler != "qmc":
            varied.append("algorithm=fedavg,fedprox")
        settings = [f"hydra.sweeper.sampler={sampler}", "hydra.sweeper.n_trials=6"]
        # What TPE chooses next depends on what has ended: with one slot that is always the same.
        slots = 1 if sampler == "tpe" else slots
    is_packed = kind in ("fused", "pruned") or rng.random() < 0.8
    if is_packed:
        launcher += [f"hydra.launcher.slots={slots}", "hydra.launcher.backoff_s=0.05"]
        launcher += [f"hydra.launcher.view={rng.choice(('auto', 'lines', 'none'))}"]
    else:
        launcher = ["hydra/launcher=basic"]
    is_database = rng.random() < 0.3
    if is_database:
        settings.append(f"hydra.sweeper.storage=sqlite:///{DATABASE}")
    arguments = (*fixed, *varied, *settings, *launcher, f"hydra.sweep.dir={FOLDER}")
    return Sweep(arguments, kind, is_database, is_packed)
