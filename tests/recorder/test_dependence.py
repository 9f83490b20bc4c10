"""Which numbers follow from which, whatever the numbers are."""

import pytest
import torch
from torch.nn import functional

from flgo_hydra.recorder.dependence import follows

SIZE = 3
"""of a batch of 5; the other two samples fill it up"""


def fill(x):
    mask = torch.zeros(x.shape, dtype=torch.bool)
    mask[SIZE:] = True
    return x, mask


def in_place(x):
    y = torch.zeros(5)
    y[1:2] = x[4:].sum()
    return y


def rows_in_place(x):
    y = x.clone()
    y[:, 0].mul_(2)
    y.add_(1)
    return y


def picks(x):
    return x.sum(1)[torch.argsort(x[:, 0])]


def gate(x):
    return torch.where(x.square().mean().detach() < -1e9, -x, x)


def gate_of_counts(x):
    return torch.where((x > 1e6).sum() > 3, 2 * x, x).sum(1)


def clipped(x):
    norm = x.norm()
    return x * (1e9 / norm).clamp(max=1.0)


@pytest.mark.parametrize(
    "function",
    [
        *(in_place, picks, gate, gate_of_counts, clipped),
        lambda x: x - x.mean(0),
        lambda x: x / x.abs().amax(0),
        lambda x: x.sort(0).values,
        lambda x: x * x.median(),
        lambda x: functional.batch_norm(x, None, None, training=True),
        lambda x: (x @ x.T).softmax(1),
        lambda x: x.sum(),
        lambda x: x.cumsum(0).flip(0),
        lambda x: torch.fft.fft(x, dim=0).real,
        lambda x: x.roll(1, 0),
    ],
)
def test_what_mixes_is_found(function):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    found, _ = follows(lambda: function(x), [fill(x)], [])
    assert found is not None and bool(found[:SIZE].any() if found.dim() else found)


@pytest.mark.parametrize(
    "function",
    [
        rows_in_place,
        lambda x: x.softmax(1),
        lambda x: functional.layer_norm(x, (4,)),
        lambda x: functional.cross_entropy(x, torch.tensor([0, 1, 2, 3, 0]), reduction="none"),
        lambda x: functional.conv1d(x.unsqueeze(1), torch.ones(2, 1, 3)),
        lambda x: torch.where(x > 0, x, -x).sum(1),
        lambda x: x.sort(1).values,
        lambda x: x.view(torch.complex64).abs() if x.is_contiguous() else x,
        lambda x: torch.cat([x[:SIZE], torch.zeros(2, 4)]),
        lambda x: (x * torch.tensor([1.0, 1, 1, 0, 0]).view(5, 1)).sum(0) + x,
    ],
)
def test_what_does_not_mix_is_not(function):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    found, _ = follows(lambda: function(x), [fill(x)], [])
    assert found is None or not bool(found[:SIZE].any())


def test_what_is_changed_on_the_way_is_marked():
    x, seen, count = torch.randn(5, 4), torch.zeros(4), torch.zeros(())

    def function():
        seen.mul_(0.9).add_(x.mean(0))
        count.add_(1)
        return x.sum(1)

    _, (of_seen, of_count) = follows(function, [fill(x)], [seen, count])
    assert bool(of_seen.all()) and of_count is None


def test_numbers_are_what_they_would_be():
    x = torch.randn(5, 4)
    before = x.clone()
    returned = []
    follows(lambda: returned.append(x.softmax(1).cumsum(0)) or x, [fill(x)], [])
    assert torch.equal(returned[0], x.softmax(1).cumsum(0)) and torch.equal(x, before)
