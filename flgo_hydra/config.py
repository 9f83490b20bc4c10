"""Every schema of flgo_hydra, its defaults and its laws.

A field's comment is its documentation: `python -m flgo_hydra --help` prints it. A law is checked in
`__post_init__`, which runs where a composed config becomes a dataclass (`compose.to_conf`), for every point of a
grid before the first one trains. Nobody changes one of these objects afterwards.

`_target_` names what a choice stands for, ours or a user's own: `package.module.name`, imported by `reference.py`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from flgo_hydra.objective import Objective

MISSING: Any = "???"
"""OmegaConf's mark of a value that must be given, spelled out: what trains needs torch and numpy only."""
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "adadelta")
SAMPLES = ("uniform", "md", "full")
AGGREGATES = ("other", "uniform", "weighted_com", "weighted_scale")
DTYPES = ("float32", "float64")
LR_SCHEDULES = ("constant", "step", "step_<k>", "multistep_<a>_<b>…", "ratiostep_<q>", "divide_by_round", "cosine")
_LR_SCHEDULE = re.compile(r"constant|step|step_[1-9]\d*|multistep(_[1-9]\d*)+|ratiostep_0?\.\d+|divide_by_round|cosine")
_DECAYING = re.compile(r"step|multistep|ratiostep")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_DEFAULT_LR_DECAY = 0.998
MEMORY_KEYS = ("task", "model", "algorithm._target_", "batch_size", "proportion", "optimizer", "dtype")
BACKENDS = ("auto", "loop", "vmap")
SWITCHES = ("auto", "off")
# by the name of Optuna's class
PRUNERS = {
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "asha": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "wilcoxon": "WilcoxonPruner",
}
SAMPLERS = ("grid", "tpe", "random", "qmc", "cmaes", "gp")
VIEWS = ("auto", "table", "lines", "none")


MOST_THREADS = 1024
"""of one process; ten thousand end it without a word"""
MOST_SECONDS = 30 * 86400.0
"""that anything is waited for; the kernel counts no more than 2**31 milliseconds"""


MOST_WHOLE = 2**63 - 1
"""of whole numbers that are counted with: what a machine's word and torch hold"""
LARGEST = {"float32": 3.4028234663852886e38, "float64": 1.7976931348623157e308}
"""number of a dtype"""


def hold(is_true: bool, law: str, got: object) -> None:
    """Raises ValueError with the law and what came, unless the law holds."""
    if not is_true:
        raise ValueError(f"`{law}` must hold, but got {got!r}.")


def hold_whole_numbers(part: Any, above: str = "") -> None:
    """Raises ValueError for a whole number that is beyond what can be counted with, in any key of a schema.

    Seeds are not counted with: NumPy's may have 128 bits.

    Args:
        above: what comes before a field in its key: `hydra.launcher.`
    """
    for one in fields(part):
        name, value = one.name, getattr(part, one.name)
        if is_dataclass(value):
            hold_whole_numbers(value, f"{above}{name}.")
        if one.type is Any:  # it need not be a number, and has a law of its own
            continue
        for item in value if isinstance(value, list) else [value]:
            if type(item) is int and abs(item) > MOST_WHOLE and not name.endswith("seed"):
                got = str(item) if abs(item) < 10**40 else f"{str(item)[:8]}…, of {len(str(item))} digits"
                raise ValueError(f"`{above}{name}` must be a whole number below 2**63, but got {got}.")


def hold_representable(values: Mapping[str, Any], dtype: str) -> None:
    """Raises ValueError for a number, by its key, that tensors of a dtype cannot hold; infinity they can."""
    for key, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int | float) and LARGEST[dtype] < abs(item) < math.inf:
                raise ValueError(
                    f"`{key}` must be a number that dtype={dtype} holds, at most {LARGEST[dtype]:.2g}, but got {item}."
                )


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError with the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"`{key}` must be one of {', '.join(choices)}, but got {value!r}.")


def are_widths(values: Any) -> bool:
    """Whether it is a list of whole numbers from 1 on: a list in a list escapes the types."""
    return isinstance(values, list) and all(type(value) is int and value >= 1 for value in values)


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


@dataclass
class SourceConf:
    """Where samples come from: a function that returns arrays (`federated/sources.py`)."""

    # the function, as package.module.name
    _target_: str = MISSING


@dataclass
class Cifar100Conf(SourceConf):
    """CIFAR-100."""

    # the 20 coarse labels in place of the 100 fine ones
    coarse: bool = False


@dataclass
class FlgoSourceConf(SourceConf):
    """A task folder of FLGo."""

    # .npz file with x_train, y_train, x_test and y_test of FLGo's benchmark; null: by the folder's benchmark
    data: str | None = None


@dataclass
class SyntheticConf(SourceConf):
    """Synthetic(alpha, beta) of the FedProx paper."""

    # spread of the clients' models: how much they differ in what they predict
    alpha: float = 1.0
    # spread of the clients' inputs: how much they differ in what they see
    beta: float = 1.0
    # features of a sample
    num_features: int = 60
    # classes
    num_classes: int = 10

    def __post_init__(self) -> None:
        hold(0 <= self.alpha < math.inf, "task.source.alpha >= 0 and finite", self.alpha)
        hold(0 <= self.beta < math.inf, "task.source.beta >= 0 and finite", self.beta)
        hold(self.num_features >= 1, "task.source.num_features >= 1", self.num_features)
        hold(self.num_classes >= 2, "task.source.num_classes >= 2", self.num_classes)


@dataclass
class PartitionConf:
    """How the training samples are split over the clients (`federated/partition.py`)."""

    # the function, as package.module.name
    _target_: str = MISSING
    # name in results
    name: str = MISSING
    # no client gets fewer samples: they are moved, one at a time, from the largest clients
    min_samples: int = 1

    def __post_init__(self) -> None:
        hold(self.min_samples >= 1, "task.partition.min_samples >= 1", self.min_samples)


@dataclass
class DirichletConf(PartitionConf):
    """Label skew: class shares follow Dirichlet(alpha)."""

    # concentration; small is skewed, large is iid
    alpha: float = 0.5
    # false: each class is divided by shares with alpha a client, so sizes vary (Yurochkin et al. 2019); true: equal
    # sizes, each client's mix of classes has alpha in all, spread over the classes by their frequency (Hsu et al. 2019)
    balanced: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        hold(0 < self.alpha < math.inf, "task.partition.alpha > 0 and finite", self.alpha)


@dataclass
class ShardsConf(PartitionConf):
    """Pathological label skew: samples sorted by label, cut into shards (McMahan et al. 2017)."""

    # shards a client
    shards_per_client: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        hold(self.shards_per_client >= 1, "task.partition.shards_per_client >= 1", self.shards_per_client)


@dataclass
class ClassesConf(PartitionConf):
    """Pathological label skew: every client holds a fixed number of classes."""

    # classes a client
    classes_per_client: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        hold(self.classes_per_client >= 1, "task.partition.classes_per_client >= 1", self.classes_per_client)


@dataclass
class QuantityConf(PartitionConf):
    """Quantity skew: log-normal client sizes, labels iid."""

    # standard deviation of the logarithm of a client's size; 0 is iid
    sigma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        hold(0 <= self.sigma < math.inf, "task.partition.sigma >= 0 and finite", self.sigma)


@dataclass
class TaskConf:
    """Data, its partition over clients, and the split into training, validation and test samples."""

    # name in results
    name: str = MISSING
    # where samples come from: `_target_` is a function that returns arrays
    source: Any = MISSING
    # how samples are split over clients (group task/partition)
    partition: Any = MISSING
    # clients; null: as many as there are client ids (partition given)
    num_clients: int | None = 20
    # share of each client's samples held out for valid_loss; a client with one sample keeps it for training
    train_holdout: float = 0.1
    # share of those that are a client's own test samples instead (personal_test_loss, …), at least one of two; 0: none
    local_test: float = 0.0
    # share of all samples held out for test, for sources without a test set of their own
    test_holdout: float = 0.2
    # subtract the training images' mean and divide by their standard deviation, channel by channel
    standardize: bool = False
    # decides the data split (and generated data); seed decides everything else
    seed: int = 0
    # folder of standard data files (mnist, fashion_mnist, cifar10, cifar100)
    data_dir: str = "data"
    # a user's own file or folder (task npz)
    path: str | None = None
    # built tasks are kept in its flgo_hydra/tasks; null: the user's cache folder
    cache_dir: str | None = None
    # false: every process calls the source itself, for one that depends on what nobody can see (a C library's files,
    # the network)
    cache: bool = True

    def __post_init__(self) -> None:
        clients = self.num_clients
        hold(clients is None or clients >= 1, "task.num_clients >= 1", clients)
        hold(0 < self.train_holdout < 1, "0 < task.train_holdout < 1", self.train_holdout)
        hold(0 <= self.local_test < 1, "0 <= task.local_test < 1", self.local_test)
        hold(0 < self.test_holdout < 1, "0 < task.test_holdout < 1", self.test_holdout)
        hold(self.seed >= 0, "task.seed >= 0", self.seed)


@dataclass
class ModelConf:
    """A function that returns a `torch.nn.Module`; it is given `input_shape` and `num_outputs` where it takes them."""

    # the function or class, as package.module.name
    _target_: str = MISSING
    # name in results
    name: str = MISSING


@dataclass
class MlpConf(ModelConf):
    """Fully connected layers with ReLU between them."""

    # widths of the hidden layers
    hidden: list[int] = field(default_factory=lambda: [200])

    def __post_init__(self) -> None:
        hold(are_widths(self.hidden), "every width in model.hidden >= 1", self.hidden)


@dataclass
class CnnConf(ModelConf):
    """The FedAvg paper's CNN: two 5x5 convolutions with max pooling, one hidden layer."""

    # channels of the two convolutions
    channels: list[int] = field(default_factory=lambda: [32, 64])
    # width of the hidden layer
    hidden: int = 512

    def __post_init__(self) -> None:
        two = are_widths(self.channels) and len(self.channels) == 2
        hold(two, "model.channels is two numbers >= 1", self.channels)
        hold(self.hidden >= 1, "model.hidden >= 1", self.hidden)


@dataclass
class ResNetConf(ModelConf):
    """A small residual network with group normalisation."""

    # channels of the stages; each stage after the first halves the image
    channels: list[int] = field(default_factory=lambda: [16, 32, 64])
    # residual blocks a stage
    num_blocks: int = 1
    # groups of the normalisation; must divide every entry of channels
    num_groups: int = 8

    def __post_init__(self) -> None:
        hold(self.num_blocks >= 1, "model.num_blocks >= 1", self.num_blocks)
        hold(self.num_groups >= 1, "model.num_groups >= 1", self.num_groups)
        is_list = bool(self.channels) and are_widths(self.channels)
        divides = is_list and all(c % self.num_groups == 0 for c in self.channels)
        hold(divides, f"model.num_groups={self.num_groups} divides every entry of model.channels", self.channels)


@dataclass
class AlgorithmConf:
    """An algorithm: a class of pure functions (`federated/algorithm/base.py`) and its hyper-parameters."""

    # the class, as package.module.name
    _target_: str = MISSING
    # name in results
    name: str = MISSING


@dataclass
class FedProxConf(AlgorithmConf):
    """FedAvg with a proximal term."""

    # weight of the proximal term; 0 is FedAvg
    mu: float = 0.1

    def __post_init__(self) -> None:
        hold(0 <= self.mu < math.inf, "algorithm.mu >= 0 and finite", self.mu)


@dataclass
class ScaffoldConf(AlgorithmConf):
    """FedAvg with control variates."""

    # server step size (the paper's eta_g)
    eta: float = 1.0

    def __post_init__(self) -> None:
        hold(0 < self.eta < math.inf, "algorithm.eta > 0 and finite", self.eta)


@dataclass
class DittoConf(AlgorithmConf):
    """A model of each client's own, near the global one."""

    # pull of a client's own model to the global one (the paper's lambda); 0: local training
    lam: float = 1.0

    def __post_init__(self) -> None:
        hold(0 <= self.lam < math.inf, "algorithm.lam >= 0 and finite", self.lam)


@dataclass
class FedSAMConf(AlgorithmConf):
    """FedAvg with sharpness-aware local steps."""

    # how far up a step looks, in the direction of the gradient; 0 is FedAvg
    rho: float = 0.1

    def __post_init__(self) -> None:
        hold(0 <= self.rho < math.inf, "algorithm.rho >= 0 and finite", self.rho)


@dataclass
class MoonConf(AlgorithmConf):
    """FedAvg with a contrastive loss between a client's, the server's and the client's last model."""

    # weight of the contrastive loss; 0 is FedAvg
    mu: float = 5.0
    # temperature
    tau: float = 0.5
    # the module whose inputs are contrasted; null: the last linear layer
    module: str | None = None

    def __post_init__(self) -> None:
        hold(0 <= self.mu < math.inf, "algorithm.mu >= 0 and finite", self.mu)
        hold(0 < self.tau < math.inf, "algorithm.tau > 0 and finite", self.tau)


@dataclass
class FlgoConf(AlgorithmConf):
    """An algorithm of FLGo's, which FLGo runs (`federated/flgo_runner.py`)."""

    # its module, as flgo.algorithm.moon or one of your own in FLGo's style
    module: str = MISSING
    # its hyper-parameters in FLGo's order (FLGo's algo_para); empty: its defaults
    para: list[float] = field(default_factory=list)
    # further options of FLGo by FLGo's names: +algorithm.option.availability=YMF-0.2
    option: dict[str, Any] = field(default_factory=dict)


@dataclass
class Conf(OptionConf):
    """The whole config of one job."""

    # what is learned from which data, split over which clients (group task)
    task: Any = MISSING
    # what is trained (group model)
    model: Any = MISSING
    # how it is trained (group algorithm)
    algorithm: Any = MISSING
    # what composes with every algorithm, by names of your own: attacks, defences, compression, selection of clients,
    # each {_target_: …} with its numbers (federated/parts/base.py)
    parts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        hold_whole_numbers(self)
        own = vars(self.algorithm) if is_dataclass(self.algorithm) else self.algorithm
        own = own if isinstance(own, dict) else {}  # `compose.to_conf` says what it must be
        numbers = {key: getattr(self, key) for key in ("lr", "weight_decay", "clip_grad")}
        numbers |= {f"algorithm.{key}": value for key, value in own.items()}
        for name, part in self.parts.items():
            numbers |= {f"parts.{name}.{key}": value for key, value in part.items()} if isinstance(part, dict) else {}
        hold_representable(numbers, self.dtype)


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


SCHEMAS: dict[str, type] = {
    "config": Conf,
    "task": TaskConf,
    "source/plain": SourceConf,
    "source/cifar100": Cifar100Conf,
    "source/flgo": FlgoSourceConf,
    "source/synthetic": SyntheticConf,
    "partition/plain": PartitionConf,
    "partition/dirichlet": DirichletConf,
    "partition/shards": ShardsConf,
    "partition/classes": ClassesConf,
    "partition/quantity": QuantityConf,
    "model/plain": ModelConf,
    "model/mlp": MlpConf,
    "model/cnn": CnnConf,
    "model/resnet": ResNetConf,
    "algorithm/plain": AlgorithmConf,
    "algorithm/fedprox": FedProxConf,
    "algorithm/scaffold": ScaffoldConf,
    "algorithm/ditto": DittoConf,
    "algorithm/fedsam": FedSAMConf,
    "algorithm/moon": MoonConf,
    "algorithm/flgo": FlgoConf,
    "sweeper": SweeperConf,
    "launcher": LauncherConf,
}
"""Every schema by the name under which a YAML of `conf/` puts it first: `- /schema/task@_here_`."""
