"""How the jobs of a sweep share this machine."""

from dataclasses import dataclass, field
from typing import Any

from flgo_hydra.config.laws import MISSING, MOST_SECONDS, MOST_THREADS, hold, hold_whole_numbers, one_of

VIEWS = ("auto", "table", "lines", "none")


MEMORY_KEYS = ("task", "model", "algorithm._target_", "batch_size", "proportion", "optimizer", "dtype")


MOST_FUSED = 64
"""Jobs in one process; more gain nothing, and their pipes must be sent at once."""


@dataclass
class LauncherConf:
    """How the jobs of a sweep (`-m`) share this machine (`launch/launcher.py`)."""

    # the plugin class Hydra starts
    _target_: str = MISSING
    # Hydra 1.3 would build nested `_target_`s by itself
    _recursive_: bool = False
    # auto (the GPUs, or the CPU where there is none), cpu, or a list of GPU indices and UUIDs
    devices: Any = "auto"
    # which job starts where: auto, ledger, basic, random, {name: auto, put_interval: 2}, or your class's {_target_: …};
    # null: auto on GPUs, ledger on the CPU
    scheduler: Any = None
    # most jobs at once on a device; null: the cores, shared by the devices
    slots: int | None = None
    # threads of a job that sets no num_threads; null: one (of another app's job: the cores, shared by jobs at once)
    threads: int | None = None
    # expected peak memory of a job, MiB; null: learned from the first job of its kind
    job_memory_mib: int | None = None
    # config keys whose values decide how much memory a job needs; jobs of an app that has none of them count as alike
    memory_keys: list[str] = field(default_factory=lambda: list(MEMORY_KEYS))
    # config keys that, with those, decide how long a job takes: the longest start first
    duration_keys: list[str] = field(default_factory=lambda: ["num_rounds", "num_epochs", "num_steps", "early_stop"])
    # how many points that differ in values only (lr, momentum, seed, …) run as one program, in one process; off: none.
    # A point is then rounded in one way, however many are left to run with it (on GPUs it has not run yet)
    fuse: Any = "off"
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
        hold_whole_numbers(self, "hydra.launcher.")
        slots, threads, memory = self.slots, self.threads, self.job_memory_mib
        hold(slots is None or slots >= 1, "hydra.launcher.slots >= 1, or null for automatic", slots)
        is_threads = threads is None or 1 <= threads <= MOST_THREADS
        hold(is_threads, f"1 <= hydra.launcher.threads <= {MOST_THREADS}, or null for automatic", threads)
        hold(memory is None or memory >= 1, "hydra.launcher.job_memory_mib >= 1, or null to learn it", memory)
        self._hold_places()
        is_number = isinstance(self.fuse, int) and not isinstance(self.fuse, bool)
        fuse = 1 if self.fuse is False else self.fuse  # YAML reads `off` as false
        self.fuse = "off" if fuse == 1 else fuse
        is_known = self.fuse == "off" or (is_number and 1 <= self.fuse <= MOST_FUSED)
        hold(is_known, f"hydra.launcher.fuse is off, or a number from 1 to {MOST_FUSED}", self.fuse)
        hold(self.max_retries >= 0, "hydra.launcher.max_retries >= 0", self.max_retries)
        hold(
            0 <= self.backoff_s <= MOST_SECONDS, f"0 <= hydra.launcher.backoff_s <= {MOST_SECONDS:.0f}", self.backoff_s
        )
        limit = self.timeout_min
        is_limit = limit is None or 0 < limit <= MOST_SECONDS / 60
        hold(is_limit, f"0 < hydra.launcher.timeout_min <= {MOST_SECONDS / 60:.0f}, or null for no limit", limit)
        hold(0 <= self.grace_s <= MOST_SECONDS, f"0 <= hydra.launcher.grace_s <= {MOST_SECONDS:.0f}", self.grace_s)
        one_of("hydra.launcher.view", self.view, VIEWS)

    def _hold_places(self) -> None:
        """What names devices and a scheduler has the form of names: whether they are there, the machine says."""
        if type(self.devices) is int:
            self.devices = [self.devices]
        names = self.devices if isinstance(self.devices, list) else [self.devices]
        is_names = all((type(name) is int and name >= 0) or (isinstance(name, str) and name.strip()) for name in names)
        law = "hydra.launcher.devices is auto, cpu, or a list of GPUs' indices and UUIDs"
        hold(bool(names) and is_names, law, self.devices)
        is_one = not isinstance(self.scheduler, bool | int | float | list)
        hold(is_one, "hydra.launcher.scheduler is a name, {name: auto, …}, or {_target_: …}", self.scheduler)
