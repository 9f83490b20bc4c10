"""Against `torch.func.grad`: alone, under vmap, one inside of another; and what it says more."""

import subprocess
import sys

import pytest
import torch
from torch.func import grad, vmap

from flgo_hydra.federated.algorithm.gradients import gradient_of

W = {
    "a": torch.tensor([[0.3, -1.2], [2.0, 0.7]], dtype=torch.float64),
    "b": torch.tensor([0.5, 0.1], dtype=torch.float64),
}
X = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.2]], dtype=torch.float64)


def loss(params, x):
    return (torch.tanh(x @ params["a"]) + params["b"]).square().sum()


def ours(params, x):
    return gradient_of(lambda p: (loss(p, x), {}), params)[0]


def inner_step(gradient, params, x):
    """A loss after a step: its gradient is a gradient of a gradient."""
    g = gradient(params, x)
    return loss({name: p - 0.1 * g[name] for name, p in params.items()}, x)


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("is_batched", [False, True])
@pytest.mark.parametrize("has_grad", [False, True])
def test_as_torch_func(is_nested, is_batched, has_grad):
    theirs = grad(lambda p, x: inner_step(grad(loss), p, x)) if is_nested else grad(loss)
    mine = (lambda p, x: gradient_of(lambda q: (inner_step(ours, q, x), {}), p)[0]) if is_nested else ours
    if is_batched:
        theirs, mine = vmap(theirs, in_dims=(None, 0)), vmap(mine, in_dims=(None, 0))
    x = X.unsqueeze(1) if is_batched else X
    with torch.set_grad_enabled(has_grad):
        found = mine(W, x)
    for name, g in theirs(W, x).items():
        assert torch.equal(found[name], g) or torch.allclose(found[name], g, rtol=0, atol=1e-13)
        assert not found[name].requires_grad


@pytest.mark.parametrize("is_batched", [False, True])
def test_none_is_no_zero_and_the_rest_comes_back(is_batched):
    def f(params, x):
        def value(p):
            return (x * p["a"][0]).sum() + 0 * p["b"].sum(), {"twice": 2 * p["a"]}

        return gradient_of(value, {**params, "unused": torch.ones(2, dtype=torch.float64)})

    grads, more = vmap(f, in_dims=(None, 0))(W, X) if is_batched else f(W, X)
    assert grads.keys() == {"a", "b"} and not grads["b"].any()
    assert torch.equal(more["twice"], (2 * W["a"]).expand_as(more["twice"])) and not more["twice"].requires_grad


def test_what_depends_on_nothing_has_no_gradient():
    assert gradient_of(lambda p: (torch.ones(()), {}), W) == ({}, {})


def test_it_does_not_import_torchs_compiler():
    program = (
        "import sys, torch; from flgo_hydra.federated.algorithm.gradients import gradient_of;"
        "f = lambda p: gradient_of(lambda q: (q['w'].square().sum(), {}), p)[0];"
        "f({'w': torch.ones(2)}); before = 'torch._dynamo' in sys.modules;"
        "torch.vmap(f)({'w': torch.ones(2, 2)}); print(before, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
