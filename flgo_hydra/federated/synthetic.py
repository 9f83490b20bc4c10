"""Synthetic(alpha, beta), the generated task of the FedProx paper.

Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020. https://arxiv.org/abs/1812.06127
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_PURPOSE = 104  # address of these generators; those of the split are in task.py


def synthetic(
    seed: int, num_clients: int | None, alpha: float, beta: float, num_features: int, num_classes: int
) -> dict[str, NDArray[Any]]:
    """Synthetic(alpha, beta): every client k has its own linear model and its own inputs.

    u_k ~ N(0, alpha), W_k and b_k ~ N(u_k, 1); B_k ~ N(0, beta), v_k ~ N(B_k, 1), x ~ N(v_k, diag(j^-1.2));
    y = argmax softmax(W_k x + b_k). Sizes are 50 + log-normal(4, 2), in whole samples. alpha and beta are variances,
    as the paper writes them (its published code takes them for standard deviations).
    """
    if num_clients is None:
        raise ValueError("task=synthetic makes data for `task.num_clients` clients, but got null. Set it.")
    scale = np.arange(1, num_features + 1) ** -0.6  # standard deviations
    x, y = [], []
    for k in range(num_clients):
        rng = np.random.default_rng([seed, _PURPOSE, k])  # more clients leave the first ones as they were
        num_samples = 50 + int(rng.lognormal(4, 2))
        u, B = rng.normal(0, np.sqrt(alpha)), rng.normal(0, np.sqrt(beta))
        W, b = rng.normal(u, 1, (num_features, num_classes)), rng.normal(u, 1, num_classes)
        v = rng.normal(B, 1, num_features)
        inputs = v + scale * rng.standard_normal((num_samples, num_features))
        x.append(inputs.astype(np.float32))
        y.append((inputs @ W + b).argmax(axis=1))
    client = np.repeat(np.arange(num_clients), [len(labels) for labels in y])
    return {"x_train": np.concatenate(x), "y_train": np.concatenate(y), "client": client}
