"""Batch normalisation of filled-up batches, beside torch's own of the samples that count."""

import pytest
import torch
from torch.nn import functional

from flgo_hydra.federated.backend.masked_norm import MaskedBatchNorm


def numbers(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 5), (6, 3, 2, 4)])
@pytest.mark.parametrize("is_affine", [True, False])
def test_values_gradients_and_running_statistics(shape, is_affine):
    num = 4
    x = numbers(*shape)
    weights = torch.tensor([1 / num] * num + [0.0] * (6 - num), dtype=torch.float64)
    ends = []
    for part, count in ((x[:num], num), (x, 6)):
        part = part.clone().requires_grad_()
        factor, shift = (numbers(3, seed=i).requires_grad_() for i in (1, 2))
        mean, variance = numbers(3, seed=3), numbers(3, seed=4).abs()
        affine = (factor, shift) if is_affine else (None, None)
        if count == num:
            y = functional.batch_norm(part, mean, variance, *affine, True, 0.3, 1e-3)
        else:
            with MaskedBatchNorm(weights, least=num):
                y = functional.batch_norm(part, mean, variance, *affine, True, 0.3, 1e-3)
        loss = (y[:num] * numbers(*shape, seed=5)[:num]).sum()
        grads = torch.autograd.grad(loss, [part, factor, shift][: 3 if is_affine else 1])
        ends.append([y[:num], grads[0][:num], *grads[1:], mean, variance])
    for theirs, ours in zip(*ends, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_where_nothing_counts_it_stays_finite():
    """A client who is done: what it computes is thrown away, but may not be infinite times 0."""
    x = numbers(6, 3).float()
    with MaskedBatchNorm(torch.zeros(6), least=2):
        y = functional.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(y, functional.batch_norm(x, None, None, training=True))


def test_evaluation_takes_the_running_statistics():
    x, mean, variance = numbers(6, 3), numbers(3), numbers(3).abs()
    with MaskedBatchNorm(torch.zeros(6), least=2):
        y = functional.batch_norm(x, mean, variance, training=False)
    assert torch.equal(y, functional.batch_norm(x, mean, variance, training=False))


def test_one_value_per_channel_is_refused():
    with MaskedBatchNorm(torch.ones(1), least=1):
        functional.batch_norm(numbers(6, 3, 2), None, None, training=True)  # two places
        with pytest.raises(ValueError, match="more than one value"):
            functional.batch_norm(numbers(6, 3), None, None, training=True)
