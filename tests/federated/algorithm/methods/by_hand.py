"""Two clients, three samples, y = w x from w = 0, lr 0.1.

With full batches client 0's gradient at w is 5 w - 7 and client 1's is 2 w - 4. Client 0 holds two of the samples.
For methods that tell head from body there is y = v a x, for those that are about classes logits that are parameters.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.data.on_device import to_data
from flgo_hydra.federated.data.task import Task
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.training import LocalStep, LocalWork, ServerState, server_state

from ...conftest import by_hand_task, line


def by_hand(
    made: Callable[[], Algorithm],
    num_rounds: int,
    num_steps: int | None,
    aggregate: str = "other",
    model_of: Callable[[], nn.Module] = line,
    task: Task | None = None,
    batch_size: float = -1,
    **hyper: float,
) -> tuple[list[float], ServerState, ClientStates]:
    """Returns w (of y = w x) after each round, the server's end, and what the clients keep; both take part in each."""
    algorithm, model = made(), model_of()
    data = to_data(task or by_hand_task(), torch.device("cpu"), torch.float64)
    backend = LoopBackend(
        model, data, LocalStep(algorithm, build_optimizer("sgd")), LocalWork(batch_size, 1, num_steps, 0)
    )
    server = server_state(model, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), 2)
    weights = []
    for r in range(1, num_rounds + 1):
        rng = np.random.default_rng(0)
        cohort = sample_cohort(np.diff(data.offsets), 1.0, "full", aggregate, algorithm.weighting, rng)
        server = backend.train(server, clients, cohort, {"lr": 0.1, **hyper}, r)
        if server.params.keys() == {"weight"} and server.params["weight"].numel() == 1:
            weights.append(server.params["weight"].item())
    return weights, server, clients


def two_lines(a: float = 1.0, v: float = 0.0) -> nn.Module:
    """y = v a x: a body and a head. The gradient of v a is that of w."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    for layer, value in zip(model, (a, v), strict=True):
        nn.init.constant_(layer.weight, value)
    return model


def logits() -> nn.Module:
    """Three logits, whatever the sample; 0 at first. The gradient of a batch's is softmax - shares of the labels."""
    model = nn.Linear(1, 3, bias=False)
    nn.init.zeros_(model.weight)
    return model.double()


def classes(*labels_of: list[int]) -> Task:
    """Clients with samples of these classes, all x = 1."""
    y = np.concatenate([np.array(labels) for labels in labels_of])
    x = np.ones((len(y), 1), np.float32)
    offsets = np.cumsum([0, *map(len, labels_of)])
    held_out = {"x_valid": x[: len(labels_of)], "y_valid": y[: len(labels_of)], "x_test": x, "y_test": y}
    return Task("by_hand", x, y, offsets, valid_offsets=np.arange(len(labels_of) + 1), num_classes=3, **held_out)
