"""What every algorithm shares: the keys at the root, and the engine's."""

import math
import re
from dataclasses import dataclass, field

from flgo_hydra.config.laws import MOST_THREADS, hold, one_of
from flgo_hydra.objective import Objective

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "adadelta")


SAMPLES = ("uniform", "md", "full")


AGGREGATES = ("other", "uniform", "weighted_com", "weighted_scale")


DTYPES = ("float32", "float64")


LR_SCHEDULES = ("constant", "step", "step_<k>", "multistep_<a>_<b>…", "ratiostep_<q>", "divide_by_round", "cosine")


_LR_SCHEDULE = re.compile(r"constant|step|step_[1-9]\d*|multistep(_[1-9]\d*)+|ratiostep_0?\.\d+|divide_by_round|cosine")


_DECAYING = re.compile(r"step|multistep|ratiostep")


_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


_DEFAULT_LR_DECAY = 0.998


BACKENDS = ("auto", "loop", "vmap")


SWITCHES = ("auto", "off")


@dataclass
class EngineConf:
    """How local training is computed. The numbers of a run differ between these choices by rounding only."""

    # loop: a cohort's clients one after another; vmap: side by side, as a batch dimension; auto: what should be faster,
    # by shapes and numbers of steps (never by a clock: the choice decides how numbers are rounded)
    backend: str = "auto"
    # auto: local steps are recorded once and replayed as a flat program, for batch sizes that a run takes often enough;
    # off: plain autograd
    compile: str = "auto"
    # auto: clients side by side keep a dense layer on the samples as what it does to the samples that they visit, where
    # that is less work; off: as its weights
    dual: str = "auto"
    # on: on a GPU, a local step is captured as a CUDA graph (it has not run on one yet); off: launched operation by
    # operation
    graph: str = "off"

    def __post_init__(self) -> None:
        for name in ("compile", "dual", "graph"):  # YAML reads `off` as false, `on` as true
            if getattr(self, name) == "False":
                setattr(self, name, "off")
        self.graph = "on" if self.graph == "True" else self.graph
        one_of("engine.backend", self.backend, BACKENDS)
        one_of("engine.compile", self.compile, SWITCHES)
        one_of("engine.dual", self.dual, SWITCHES)
        one_of("engine.graph", self.graph, ("off", "on"))

    @property
    def compiles(self) -> bool:
        return self.compile == "auto"

    @property
    def has_dual(self) -> bool:
        return self.dual == "auto"

    @property
    def captures(self) -> bool:
        """On CUDA, graphs of steps."""
        return self.graph == "on"


AUTO = EngineConf()
"""What is found faster."""
PLAIN = EngineConf(compile="off")
"""Plain autograd."""


@dataclass
class OptionConf:
    """What every algorithm shares. These keys stand at the root: `lr=0.1`, not `option.lr=0.1`."""

    # communication rounds
    num_rounds: int = 20
    # share of the clients sampled in a round, in (0, 1]; at least one client is sampled
    proportion: float = 0.2
    # how a cohort is drawn: uniform (without replacement), md (with replacement, by data volume), full (everyone)
    sample: str = "uniform"
    # weights of a cohort's updates: other (the algorithm's own; FedAvg: by data volume; with sample=md, which has drawn
    # by volume, even ones), uniform, weighted_com, weighted_scale
    aggregate: str = "other"
    # passes over a client's training samples in a round
    num_epochs: int = 5
    # local steps in a round, in place of num_epochs; null: by num_epochs
    num_steps: int | None = None
    # samples a local step; below 1: that share of the client's samples; -1: all of them
    batch_size: int | float = 64
    # learning rate of the clients' optimizer
    lr: float = 0.1
    # lr by round: constant, step, step_<k>, multistep_<a>_<b>…, ratiostep_<q>, divide_by_round, cosine
    lr_schedule: str = "constant"
    # factor of the lr at each step of step, multistep and ratiostep
    lr_decay: float = _DEFAULT_LR_DECAY
    # the clients' optimizer: sgd, momentum, nesterov, adam, adamw, rmsprop, adagrad, adadelta; new in each round
    optimizer: str = "sgd"
    # momentum of sgd and rmsprop; momentum and nesterov take 0.9 where this is 0
    momentum: float = 0.0
    # L2 penalty added to the gradient (adamw: decoupled weight decay)
    weight_decay: float = 0.0
    # largest norm of a local step's gradient; 0: no clipping
    clip_grad: float = 0.0
    # rounds between evaluations; the untrained model (round 0) and the last round are always evaluated
    eval_interval: int = 1
    # stop after this many rounds in a row without a better `monitor`; null: never
    early_stop: int | None = None
    # your own metrics: a function or class, package.module.name, called at each evaluated round (federated/metrics.py)
    metrics: str | None = None
    # the metric that best round, early stop, tuning and save_best follow: valid_loss, another one, or one of your own
    monitor: str = "valid_loss"
    # min or max: which way the monitor is better; null: accuracies of ours max, losses of ours min (a metric of your
    # own needs one of the two)
    monitor_mode: str | None = None
    # decides initial weights, cohorts and batch order; task.seed decides the data split
    seed: int = 0
    # auto (a GPU where there is one), cpu, cuda, cuda:<i>, mps
    device: str = "auto"
    # threads of a run on the CPU; null: hydra.launcher.threads, else one. More are faster for a large model alone on a
    # machine, and round otherwise
    num_threads: int | None = None
    # float32 or float64
    dtype: str = "float32"
    # rounds between checkpoints; null: as often as costs under 1 % of the time; 0: none
    checkpoint_interval: int | None = None
    # keep the weights of the best round in best_model.safetensors
    save_best: bool = False
    # start from these weights: a .safetensors file with the names of the model's state dict
    initial_weights: str | None = None
    # how local training is computed
    engine: EngineConf = field(default_factory=EngineConf)

    def __post_init__(self) -> None:
        hold(self.num_rounds >= 1, "num_rounds >= 1", self.num_rounds)
        hold(0 < self.proportion <= 1, "0 < proportion <= 1", self.proportion)
        one_of("sample", self.sample, SAMPLES)
        one_of("aggregate", self.aggregate, AGGREGATES)
        hold(self.num_epochs >= 1, "num_epochs >= 1", self.num_epochs)
        hold(self.num_steps is None or self.num_steps >= 1, "num_steps >= 1, or null for num_epochs", self.num_steps)
        size = self.batch_size
        is_size = size == -1 or 0 < size < 1 or (size >= 1 and float(size).is_integer())
        hold(is_size, "batch_size is a whole number >= 1, a share in (0, 1), or -1 for all", size)
        # One form: 10.0 and 10 are the same run.
        self.batch_size = size if 0 < size < 1 else int(size)
        hold(0 < self.lr < math.inf, "lr > 0 and finite", self.lr)
        if not _LR_SCHEDULE.fullmatch(self.lr_schedule):
            one_of("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        hold(0 < self.lr_decay <= 1, "0 < lr_decay <= 1", self.lr_decay)
        if self.lr_decay != _DEFAULT_LR_DECAY and not _DECAYING.match(self.lr_schedule):
            raise ValueError(
                f"`lr_decay` has no effect with lr_schedule={self.lr_schedule}, but got {self.lr_decay}. "
                "Set `lr_schedule` to step, step_<k>, multistep_<a>_<b>… or ratiostep_<q>."
            )
        one_of("optimizer", self.optimizer, OPTIMIZERS)
        hold(0 <= self.momentum < 1, "0 <= momentum < 1", self.momentum)
        if self.momentum and self.optimizer not in ("sgd", "momentum", "nesterov", "rmsprop"):
            raise ValueError(f"`momentum` has no effect with optimizer={self.optimizer}, but got {self.momentum}.")
        hold(0 <= self.weight_decay < math.inf, "weight_decay >= 0 and finite", self.weight_decay)
        hold(self.clip_grad >= 0, "clip_grad >= 0", self.clip_grad)
        hold(self.eval_interval >= 1, "eval_interval >= 1", self.eval_interval)
        hold(self.early_stop is None or self.early_stop >= 1, "early_stop >= 1, or null for never", self.early_stop)
        Objective.asked(self.monitor, self.monitor_mode)
        hold(self.seed >= 0, "seed >= 0", self.seed)
        if not _DEVICE.fullmatch(self.device):
            one_of("device", self.device, ("auto", "cpu", "cuda", "cuda:<i>", "mps"))
        threads = self.num_threads
        is_number = threads is None or 1 <= threads <= MOST_THREADS
        hold(is_number, f"1 <= num_threads <= {MOST_THREADS}, or null", threads)
        one_of("dtype", self.dtype, DTYPES)
        hold(self.dtype == "float32" or self.device != "mps", "dtype is float32 on device mps", self.dtype)
        interval = self.checkpoint_interval
        hold(interval is None or interval >= 0, "checkpoint_interval >= 0, or null for automatic", interval)

    @property
    def followed(self) -> Objective:
        """What decides which round is best."""
        return Objective.asked(self.monitor, self.monitor_mode)
