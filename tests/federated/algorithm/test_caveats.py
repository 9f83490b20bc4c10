"""What a reader is told of options that break a method's law, and of numbers that make it another method."""

import pytest

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.algorithm.fedavgm import FedAvgM
from flgo_hydra.federated.algorithm.fedcm import FedCM
from flgo_hydra.federated.algorithm.feddyn import FedDyn
from flgo_hydra.federated.algorithm.fedexp import FedExP
from flgo_hydra.federated.algorithm.fednova import FedNova
from flgo_hydra.federated.algorithm.fedspeed import FedSpeed
from flgo_hydra.federated.algorithm.mimelite import MimeLite
from flgo_hydra.federated.algorithm.mofedsam import MoFedSAM
from flgo_hydra.federated.algorithm.scaffold import Scaffold

MOMENTUM = {"momentum": 0.9}


@pytest.mark.parametrize(
    "algorithm, numbers, option, said",
    [
        (FedAvgM(), {"beta": 0.9, "eta": 1.0}, MOMENTUM, []),
        (FedAvgM(), {"beta": 0.0, "eta": 1.0}, {}, ["beta=0 is FedAvg."]),
        (FedAvgM(), {"beta": 0.0, "eta": 0.5}, {}, ["beta=0 is FedAvg with a server step of 0.5."]),
        (Scaffold(), {"eta": 1.0}, MOMENTUM, ["optimizer=sgd momentum=0.9"]),
        (FedNova(), {"mu": 0.1}, MOMENTUM, []),
        (FedNova(), {"mu": 0.0}, {"optimizer": "adam", "clip_grad": 1.0}, ["optimizer=adam"]),
        (FedNova(), {"mu": 0.1}, {"clip_grad": 1.0}, ["mu and clip_grad"]),
        (FedNova(), {"mu": 0.0}, {"aggregate": "weighted_scale"}, ["aggregate=weighted_scale"]),
        (FedDyn(), {"alpha": 0.1}, {"momentum": 0.9, "aggregate": "uniform"}, []),
        (FedDyn(), {"alpha": 0.1}, {"aggregate": "weighted_com"}, ["aggregate=weighted_com"]),
        (FedDyn(), {"alpha": 0.1}, {"sample": "md"}, ["sample=md"]),
        (FedExP(), {"eps": 0.1}, {"aggregate": "weighted_com"}, ["aggregate=weighted_com"]),
        (FedCM(), {"alpha": 0.1, "eta": 1.0}, {"optimizer": "adam"}, ["optimizer=adam"]),
        (FedCM(), {"alpha": 1.0, "eta": 2.0}, {}, ["alpha=1 is FedAvg of even weights with a server step of 2."]),
        (MimeLite(), {"beta": 0.0}, MOMENTUM, ["beta=0 is FedAvg of even weights.", "optimizer=sgd momentum=0.9"]),
        (MoFedSAM(), {"rho": 0.1, "beta": 1.0}, {}, ["beta=1 is FedSAM"]),
        (MoFedSAM(), {"rho": 0.0, "beta": 0.1}, {"optimizer": "nesterov"}, ["rho=0 is FedCM", "optimizer=nesterov"]),
        (FedSpeed(), {"alpha": 0.0, "rho": 0.1, "lam": 1.0}, {}, ["FedSpeed with alpha=0"]),
    ],
)
def test_what_is_said(algorithm: Algorithm, numbers: dict[str, float], option: dict, said: list[str]) -> None:
    found = algorithm.caveats(OptionConf(**option), numbers)
    assert len(found) == len(said)
    assert all(part in text for part, text in zip(said, found, strict=True)), found
