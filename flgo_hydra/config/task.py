"""What is learned from which data, split over which clients."""

import math
from dataclasses import dataclass
from typing import Any

from flgo_hydra.config.laws import MISSING, hold


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
