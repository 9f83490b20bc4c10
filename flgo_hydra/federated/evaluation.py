"""The server's model on held-out samples."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from flgo_hydra.federated.data.on_device import Data, HeldOut
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.training import ServerState

CHUNK = {"cpu": 128, "cuda": 8192, "mps": 2048}
"""Samples evaluated at once: what fits the CPU's cache; on a GPU, what fills it."""
Metrics = dict[str, float]
"""valid_loss, test_loss, and their accuracies for classification"""


def metrics_of(model: nn.Module, data: Data) -> Metrics:
    """The model's losses and accuracies on the validation and test samples."""
    # One tensor, so that the device is waited for once.
    return _named(torch.cat([evaluate(model, data, data.valid), evaluate(model, data, data.test)]).tolist(), data)


def evaluate_many(model: nn.Module, data: Data, servers: Sequence[ServerState]) -> list[Metrics]:
    """The same of several servers' models at once, where one after another would be bound by launches.

    Args:
        model: gives the architecture.
    """
    was_training = model.training
    model.eval()
    stacked = {
        name: torch.stack([{**server.params, **server.buffers}[name] for server in servers])
        for name in {**servers[0].params, **servers[0].buffers}
    }
    chunk = max(1, CHUNK[data.test.x.device.type] // len(servers))

    def one(tensors: dict[str, Tensor], x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        return _sums(functional_call(model, tensors, (x,)), data, HeldOut(x, y, weights))

    with torch.no_grad():
        both = []
        for samples in (data.valid, data.test):
            total = samples.weights.new_zeros(len(servers), 2)
            for part in _parts(samples, chunk):
                total += torch.vmap(one, in_dims=(0, None, None, None))(stacked, part.x, part.y, part.weights)
            both.append(total)
    model.train(was_training)
    return [_named(values, data) for values in torch.cat(both, dim=1).tolist()]


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, samples: HeldOut) -> Tensor:
    """Weighted mean loss and accuracy, as a tensor of shape (2,) on the device (accuracy is nan for regression).

    The mean is summed in float64 (float32 on mps). The caller reads it: reading is what waits for a GPU.
    """
    was_training = model.training
    model.eval()
    total = samples.weights.new_zeros(2)
    # The first samples are a copy. A model that changes its inputs in place, which are the data, gets only copies.
    is_copied = True
    for part in _parts(samples, CHUNK[samples.x.device.type]):
        x = part.x.clone() if is_copied else part.x
        version = x._version
        outputs = model(x)
        is_changed = x._version != version
        if is_changed and not is_copied:
            raise Refused(
                "The model changes its inputs in place while it is evaluated, but not in every batch, so that the "
                "samples themselves have been changed: write `x = x * 2` in place of `x.mul_(2)`."
            )
        is_copied = is_changed
        total += _sums(outputs, data, part)
    model.train(was_training)
    return total


def _parts(samples: HeldOut, size: int) -> list[HeldOut]:
    tensors = (samples.x, samples.y, samples.weights)
    return [HeldOut(*(tensor[begin : begin + size] for tensor in tensors)) for begin in range(0, len(samples.x), size)]


def _sums(outputs: Tensor, data: Data, samples: HeldOut) -> Tensor:
    loss = (data.criterion(outputs, samples.y).to(samples.weights.dtype) * samples.weights).sum()
    if not data.is_classification:
        return torch.stack([loss, torch.full_like(loss, torch.nan)])
    is_right = outputs.argmax(dim=-1) == samples.y
    return torch.stack([loss, (samples.weights * is_right).sum()])


def _named(values: Sequence[float], data: Data) -> Metrics:
    valid_loss, valid_accuracy, test_loss, test_accuracy = values
    if not data.is_classification:
        return {"valid_loss": valid_loss, "test_loss": test_loss}
    return {
        "valid_loss": valid_loss,
        "valid_accuracy": valid_accuracy,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
    }
