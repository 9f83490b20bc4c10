"""Two clients, three samples, y = w x from w = 0, lr 0.1.

With full batches client 0's gradient at w is 5 w - 7 and client 1's is 2 w - 4. Client 0 holds two of the samples.
"""

from collections.abc import Callable

import numpy as np
import torch

from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.data.on_device import to_data
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.training import LocalStep, LocalWork, ServerState, server_state

from ...conftest import by_hand_task, line


def by_hand(
    made: Callable[[], Algorithm],
    num_rounds: int,
    num_steps: int | None,
    aggregate: str = "other",
    batch_size: float = -1,
    **hyper: float,
) -> tuple[list[float], ServerState, ClientStates]:
    """Returns w after each round, the server's end, and what the clients keep; both take part in each round."""
    algorithm, model = made(), line()
    data = to_data(by_hand_task(), torch.device("cpu"), torch.float64)
    backend = LoopBackend(
        model, data, LocalStep(algorithm, build_optimizer("sgd")), LocalWork(batch_size, 1, num_steps, 0)
    )
    server = server_state(model, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), 2)
    weights = []
    for r in range(1, num_rounds + 1):
        rng = np.random.default_rng(0)
        cohort = sample_cohort(np.array([2, 1]), 1.0, "full", aggregate, algorithm.weighting, rng)
        server = backend.train(server, clients, cohort, {"lr": 0.1, **hyper}, r)
        weights.append(server.params["weight"].item())
    return weights, server, clients
