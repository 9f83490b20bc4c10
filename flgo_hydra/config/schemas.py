"""Every schema by name."""

from flgo_hydra.config.algorithm import ALGORITHMS
from flgo_hydra.config.conf import Conf
from flgo_hydra.config.global_methods import GLOBAL
from flgo_hydra.config.launcher import LauncherConf
from flgo_hydra.config.model import CnnConf, MlpConf, ModelConf, ResNetConf
from flgo_hydra.config.part_methods import PARTS_OF_MODEL
from flgo_hydra.config.personal_methods import PERSONAL
from flgo_hydra.config.sweeper import SweeperConf
from flgo_hydra.config.task import (
    Cifar100Conf,
    ClassesConf,
    DirichletConf,
    FlgoSourceConf,
    PartitionConf,
    QuantityConf,
    ShardsConf,
    SourceConf,
    SyntheticConf,
    TaskConf,
)

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
    **{f"algorithm/{name}": schema for name, schema in {**ALGORITHMS, **GLOBAL, **PARTS_OF_MODEL, **PERSONAL}.items()},
    "sweeper": SweeperConf,
    "launcher": LauncherConf,
}
"""Every schema by the name under which a YAML of `conf/` puts it first: `- /schema/task@_here_`."""
