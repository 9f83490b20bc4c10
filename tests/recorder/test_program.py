"""A recorded function runs again in place, with the numbers of the function."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.recorder.arena import Arena
from flgo_hydra.recorder.program import compile_program
from flgo_hydra.recorder.tape import CannotRecord, record

CPU = torch.device("cpu")


def program_of(function, states, scalars=()):
    """Compiles a function that returns the next values of `states`."""
    ops, values = record(function)
    return compile_program(ops, list(zip(states, values, strict=True)), dict(scalars), Arena(CPU))


def numbers(*shape):
    return torch.from_numpy(np.random.default_rng(len(shape)).normal(size=shape))


def test_a_gradient_step_adds_the_products_into_the_weights():
    w, v, x, lr = numbers(3, 4), numbers(4, 2), numbers(5, 3), torch.tensor(0.5, dtype=torch.float64)

    def step():
        leaves = [w.clone().requires_grad_(), v.clone().requires_grad_()]
        return [w, v], torch.autograd.grad((torch.tanh(x @ leaves[0]) @ leaves[1]).square().sum(), leaves)

    def recorded():
        w.requires_grad_(), v.requires_grad_()
        gradients = torch.autograd.grad((torch.tanh(x @ w) @ v).square().sum(), [w, v])
        with torch.no_grad():
            return [p - lr * g for p, g in zip((w, v), gradients, strict=True)]

    program = program_of(recorded, [w, v], {"lr": lr})
    (old, gradients) = step()
    expected = [p.detach() - 0.25 * g for p, g in zip(old, gradients, strict=True)]
    with torch.no_grad():
        program.run(0.25)
    for p, q in zip((w, v), expected, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=0, atol=1e-14)
    assert program.source.count("alpha=-1.0 * lr") == 2 and "copy" not in program.source


def test_terms_that_a_sum_names_twice_are_added_twice():
    w, a, b, lr = numbers(3, 4), numbers(3, 4), numbers(3, 4), torch.tensor(0.5, dtype=torch.float64)
    program = program_of(lambda: [w - lr * ((a + 2 * w) - b + a)], [w], {"lr": lr})
    expected = w - 0.1 * (2 * a + 2 * w - b)
    program.run(0.1)
    torch.testing.assert_close(w, expected, rtol=0, atol=1e-14)


def test_a_weight_that_a_gradient_multiplies_with_is_read_before_it_changes():
    """In A B the gradient of A is a product with B: added at the end, B would be another."""
    a, b, x, lr = numbers(3, 2), numbers(2, 4), numbers(5, 3), torch.tensor(0.1, dtype=torch.float64)

    def recorded():
        delta = x.t() @ torch.ones(5, 4, dtype=torch.float64)
        return [a - lr * (delta @ b.t()), b - lr * (a.t() @ delta)]

    program = program_of(recorded, [a, b], {"lr": lr})
    expected = recorded()
    program.run(0.1)
    torch.testing.assert_close(a, expected[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(b, expected[1], rtol=0, atol=1e-14)


def test_slots_move_with_the_parameters():
    p, m, lr = numbers(4), numbers(1, 4)[0], torch.tensor(0.1, dtype=torch.float64)

    def recorded():
        v = 0.9 * m + p.sin()
        return [p - lr * v, v]

    program = program_of(recorded, [p, m], {"lr": lr})
    for _ in range(3):
        expected = recorded()
        program.run(0.1)
        torch.testing.assert_close(p, expected[0], rtol=0, atol=1e-14)
        torch.testing.assert_close(m, expected[1], rtol=0, atol=1e-14)


def test_batch_norm_keeps_its_running_statistics():
    layer, x = nn.BatchNorm1d(3).double(), numbers(6, 3)
    other = nn.BatchNorm1d(3).double()
    program = program_of(lambda: [layer(x).sum() * 1.0], [torch.zeros((), dtype=torch.float64)])
    layer.load_state_dict(other.state_dict())
    with torch.no_grad():
        for _ in range(2):
            program.run()
            other(x)
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], tensor, rtol=0, atol=0)


def test_dropout_draws_anew_with_the_generators_numbers():
    x, out = torch.ones(50, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    program = program_of(lambda: [nn.functional.dropout(x, 0.5)], [out])
    for seed in (1, 2):
        torch.manual_seed(seed)
        program.run()
        torch.manual_seed(seed)
        assert torch.equal(out, nn.functional.dropout(x, 0.5))


@pytest.mark.parametrize(
    "function, why",
    [
        (lambda x: [x * 2 if x.sum() > 0 else x], "reads numbers"),
        (lambda x: [x * random.random()], "random"),
        (lambda x: [x * float(np.random.rand())], "random"),
        (lambda x: [x[x > 0].sum() + x], "shapes"),
    ],
)
def test_what_another_call_would_do_otherwise_is_refused(function, why):
    x = numbers(4)
    with pytest.raises(CannotRecord, match=why):
        program_of(lambda: function(x), [x])


def test_intermediates_share_memory():
    x, out = torch.ones(1000), torch.zeros(1000)

    def chain():
        y = x
        for _ in range(10):
            y = torch.sin(y).reshape(10, 100).t().contiguous().reshape(-1).cos()
        return [y]

    ops, values = record(chain)
    arena = Arena(CPU)
    program = compile_program(ops, [(out, values[0])], {}, arena)
    program.run()
    assert torch.equal(out, chain()[0])
    assert arena.num_bytes <= 2 * 4096


def test_what_was_recorded_is_gone_with_the_last_look_at_it():
    """A step of many clients takes much memory once; nothing may wait for a garbage collection."""
    import gc
    import weakref

    w, x = numbers(3, 4), numbers(5, 3)
    gc.collect()
    gc.disable()
    try:
        ops, values = record(lambda: [w - 0.1 * (x.t() @ torch.tanh(x @ w))])
        program = compile_program(ops, [(w, values[0])], {}, Arena(CPU))
        recorded = [weakref.ref(t) for op in ops for t in op.outputs]
        del ops, values
        assert len(recorded) >= 4 and all(one() is None for one in recorded)
    finally:
        gc.enable()
    program.run()


def test_recording_imports_no_compiler():
    """torch's compiler and tracer take a second to import, which a short run has not got."""
    import subprocess
    import sys

    code = (
        "import sys, torch\nfrom flgo_hydra.recorder.tape import record\n"
        "x = torch.ones(2, requires_grad=True)\n"
        "record(lambda: torch.autograd.grad((x * x).sum(), x))\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
