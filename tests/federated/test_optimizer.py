"""The pure optimizers equal torch.optim, step by step, in float64."""

import pytest
import torch

from flgo_hydra.federated.optimizer import build_optimizer, clip

TORCH = {
    "sgd": torch.optim.SGD,
    "momentum": torch.optim.SGD,
    "nesterov": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
}


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "name, momentum, torch_settings",
    [
        ("sgd", 0.0, {}),
        ("sgd", 0.5, {"momentum": 0.5}),
        ("momentum", 0.0, {"momentum": 0.9}),
        ("momentum", 0.7, {"momentum": 0.7}),
        ("nesterov", 0.0, {"momentum": 0.9, "nesterov": True}),
        ("adam", 0.0, {}),
        ("adamw", 0.0, {}),
        ("rmsprop", 0.0, {}),
        ("rmsprop", 0.6, {"momentum": 0.6}),
        ("adagrad", 0.0, {}),
        ("adadelta", 0.0, {}),
    ],
)
def test_equals_torch_optim(name, momentum, torch_settings, weight_decay):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    theirs = torch.nn.Parameter(start.clone())
    their_optimizer = TORCH[name]([theirs], lr=0.05, weight_decay=weight_decay, **torch_settings)
    ours, optimizer = start.clone(), build_optimizer(name, momentum, weight_decay)
    slots = tuple(torch.zeros_like(ours) for _ in range(optimizer.num_slots))
    for count in range(1, 6):
        gradient = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        theirs.grad = gradient.clone()
        their_optimizer.step()
        ours, slots = optimizer.step(ours, gradient, slots, 0.05, count)
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_norm, factor", [(10.0, 1.0), (2.5, 0.5)])
def test_clip_scales_the_common_norm(max_norm, factor):
    grads = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}  # norm 5
    clipped = clip(grads, max_norm)
    torch.testing.assert_close(clipped["a"], torch.tensor([3.0 * factor, 0.0]))
    torch.testing.assert_close(clipped["b"], torch.tensor([[4.0 * factor]]))
