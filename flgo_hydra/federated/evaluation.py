"""The server's model on held-out samples."""

import torch
from torch import Tensor, nn

from flgo_hydra.federated.data import Data, Samples

CHUNK = {"cpu": 128, "cuda": 8192, "mps": 2048}
"""Samples evaluated at once: what fits the CPU's cache; on a GPU, what fills it."""


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, samples: Samples) -> Tensor:
    """Weighted mean loss and accuracy, as a tensor of shape (2,) on the device (accuracy is nan for regression).

    The mean is summed in float64 (float32 on mps). The caller reads it: reading is what waits for a GPU.
    """
    was_training = model.training
    model.eval()
    total = samples.weights.new_zeros(2)
    if not data.is_classification:
        total[1] = torch.nan
    chunk = CHUNK[samples.x.device.type]
    for begin in range(0, len(samples.x), chunk):
        x, y, weights = (part[begin : begin + chunk] for part in (samples.x, samples.y, samples.weights))
        outputs = model(x)
        total[0] += (data.criterion(outputs, y).to(weights.dtype) * weights).sum()
        if data.is_classification:
            total[1] += weights[outputs.argmax(dim=1) == y].sum()
    model.train(was_training)
    return total
