"""Methods that are about classes ask for a task that has some."""

import pytest

from flgo_hydra.config.option import AUTO, PLAIN
from flgo_hydra.federated.algorithm.fedlc import FedLC
from flgo_hydra.federated.algorithm.fedntd import FedNTD
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state


@pytest.mark.parametrize("algorithm", [FedLC(), FedNTD()])
@pytest.mark.parametrize("engine", [AUTO, PLAIN])
def test_a_regression_is_refused_before_anything_trains(by_hand, make_line, algorithm, engine):
    model = make_line()
    step = LocalStep(algorithm, build_optimizer("sgd"))
    backend = LoopBackend(model, by_hand, step, LocalWork(-1, 1, 1, 0), engine=engine)
    hyper = {"lr": 0.1, "tau": 1.0, "beta": 1.0}
    with pytest.raises(Refused, match=f"{type(algorithm).__name__} is about the classes of the samples"):
        backend.prepare(server_state(model, algorithm), hyper)
