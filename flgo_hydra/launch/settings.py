"""What can be set of the launcher (`hydra.launcher.*`), and its laws."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from flgo_hydra.config import hold, one_of

MEMORY_KEYS = ("task", "model", "algorithm._target_", "batch_size", "proportion", "optimizer", "dtype")
VIEWS = ("auto", "table", "lines", "none")


@dataclass
class LauncherConf:
    """How the jobs of a sweep (`-m`) share this machine (`launch/launcher.py`)."""

    # the plugin class Hydra starts
    _target_: str = MISSING
    # Hydra 1.3 would build nested `_target_`s by itself
    _recursive_: bool = False
    # auto (the GPUs, or the CPU where there is none), cpu, or a list of GPU indices and UUIDs
    devices: Any = "auto"
    # which job starts where: auto, basic, random, ledger, or {name: auto, put_interval: 2}, or a class's {_target_: …}
    scheduler: Any = "ledger"
    # most jobs at once on a device; null: the cores, shared by the devices
    slots: int | None = None
    # threads of a job; null: the cores, shared by the jobs that run at once
    threads: int | None = None
    # expected peak memory of a job, MiB; null: learned from the first job of its kind
    job_memory_mib: int | None = None
    # config keys whose values decide how much memory a job needs; jobs of an app that has none of them count as alike
    memory_keys: list[str] = field(default_factory=lambda: list(MEMORY_KEYS))
    # config keys that, with those, decide how long a job takes: the longest start first
    duration_keys: list[str] = field(default_factory=lambda: ["num_rounds", "num_epochs", "num_steps", "early_stop"])
    # new attempts for a job that was killed or crashed; out of memory does not count
    max_retries: int = 2
    # wait before the first retry, seconds; doubled each time
    backoff_s: float = 2.0
    # longest time of a job over all its attempts, minutes; null: no limit
    timeout_min: float | None = None
    # time a job gets to end after SIGTERM, seconds; then SIGKILL
    grace_s: float = 10.0
    # what is shown while it runs: auto (a table on a terminal, else lines), table, lines, none
    view: str = "auto"

    def __post_init__(self) -> None:
        slots, threads, memory = self.slots, self.threads, self.job_memory_mib
        hold(slots is None or slots >= 1, "hydra.launcher.slots >= 1, or null for automatic", slots)
        hold(threads is None or threads >= 1, "hydra.launcher.threads >= 1, or null for automatic", threads)
        hold(memory is None or memory >= 1, "hydra.launcher.job_memory_mib >= 1, or null to learn it", memory)
        hold(self.max_retries >= 0, "hydra.launcher.max_retries >= 0", self.max_retries)
        hold(self.backoff_s >= 0, "hydra.launcher.backoff_s >= 0", self.backoff_s)
        limit = self.timeout_min
        hold(limit is None or limit > 0, "hydra.launcher.timeout_min > 0, or null for no limit", limit)
        hold(self.grace_s >= 0, "hydra.launcher.grace_s >= 0", self.grace_s)
        one_of("hydra.launcher.view", self.view, VIEWS)
