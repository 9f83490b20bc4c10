"""Every algorithm against numbers computed by hand: two clients, three samples, y = w x from w = 0, lr 0.1.

With full batches client 0's gradient at w is 5 w - 7 and client 1's is 2 w - 4.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.federated.algorithm.ditto import Ditto
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedprox import FedProx
from flgo_hydra.federated.algorithm.fedsam import FedSAM
from flgo_hydra.federated.algorithm.moon import Moon
from flgo_hydra.federated.algorithm.scaffold import Scaffold
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state


def run(
    by_hand,
    model,
    algorithm,
    hyper,
    num_rounds,
    num_steps,
    aggregate="other",
    optimizer="sgd",
    clip_grad=0.0,
    watched="weight",
):
    """Returns a parameter after each round, and the server's and clients' states."""
    step = LocalStep(algorithm, build_optimizer(optimizer), clip_grad)
    backend = LoopBackend(model, by_hand, step, LocalWork(-1, 1, num_steps, seed=0))
    server = server_state(model, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), 2)
    sizes = np.diff(by_hand.offsets)
    weights = []
    for r in range(1, num_rounds + 1):
        cohort = sample_cohort(sizes, 1.0, "full", aggregate, algorithm.weighting, np.random.default_rng(0))
        server = backend.train(server, clients, cohort, {"lr": 0.1, **hyper}, r)
        weights.append(server.params[watched].item())
    return weights, server, clients


@pytest.mark.parametrize(
    "algorithm, hyper, num_steps, aggregate, expected",
    [
        # one step: w_0 = 0.7, w_1 = 0.4
        (FedAvg(), {}, 1, "other", (2 * 0.7 + 0.4) / 3),
        (FedAvg(), {}, 1, "uniform", 0.55),
        (FedAvg(), {}, 1, "weighted_com", 0.6),
        (FedAvg(), {}, 1, "weighted_scale", 0.6),  # N / K = 1 with everyone in
        # two steps: 0.7 + 0.35 and 0.4 + 0.32
        (FedAvg(), {}, 2, "other", (2 * 1.05 + 0.72) / 3),
        (FedProx(), {"mu": 0.0}, 2, "other", (2 * 1.05 + 0.72) / 3),
        # the second gradients, -3.5 and -3.2, become -2.8 and -2.8
        (FedProx(), {"mu": 1.0}, 2, "other", (2 * 0.98 + 0.68) / 3),
        # its own weights are even
        (Scaffold(), {"eta": 1.0}, 1, "other", 0.55),
        (Scaffold(), {"eta": 0.5}, 1, "other", 0.275),
        (Scaffold(), {"eta": 1.0}, 1, "uniform", 0.55),
    ],
)
def test_first_round(by_hand, make_line, algorithm, hyper, num_steps, aggregate, expected):
    weights, _, _ = run(by_hand, make_line(), algorithm, hyper, 1, num_steps, aggregate)
    assert weights == pytest.approx([expected], abs=1e-12)


def test_scaffold_second_round_uses_the_control_variates(by_hand, make_line):
    weights, server, clients = run(by_hand, make_line(), Scaffold(), {"eta": 1.0}, 2, 1)
    # c_0 = -7, c_1 = -4, c = -5.5; directions -4.25 + 7 - 5.5 and -2.9 + 4 - 5.5
    assert weights == pytest.approx([0.55, 0.55 + (0.275 + 0.44) / 2], abs=1e-12)
    assert clients.get(0)["control"]["weight"].item() == pytest.approx(-4.25, abs=1e-12)
    assert clients.get(1)["control"]["weight"].item() == pytest.approx(-2.9, abs=1e-12)
    assert server.state["control"]["weight"].item() == pytest.approx((-4.25 - 2.9) / 2, abs=1e-12)


def test_weighted_scale_shrinks_the_model_that_the_absent_leave_out(by_hand, make_line):
    """One client of two: w = N / K p_k w_k, from w = 1, so that the server's own model shows."""
    model = make_line()
    torch.nn.init.ones_(model.weight)
    backend = LoopBackend(model, by_hand, LocalStep(FedAvg(), build_optimizer("sgd")), LocalWork(-1, 1, 1, seed=0))
    server = server_state(model, FedAvg())
    sizes = np.diff(by_hand.offsets)
    cohort = next(
        c
        for c in (
            sample_cohort(sizes, 0.5, "uniform", "weighted_scale", "samples", np.random.default_rng(s))
            for s in range(9)
        )
        if c.clients.tolist() == [1]
    )
    server = backend.train(server, ClientStates({}, 2), cohort, {"lr": 0.1}, 1)
    w_1 = 1 - 0.1 * (2 - 4)
    assert server.params["weight"].item() == pytest.approx(2 / 1 * (1 / 3) * w_1, abs=1e-12)


def test_clipping_bounds_the_corrected_gradient(by_hand, make_line):
    weights, _, _ = run(by_hand, make_line(), FedAvg(), {}, 1, 1, clip_grad=1.0)
    assert weights == pytest.approx([0.1], rel=1e-6)  # both gradients have norm 1


def test_momentum_starts_anew_in_each_round(by_hand, make_line):
    weights, _, _ = run(by_hand, make_line(), FedAvg(), {}, 2, 1, optimizer="momentum")
    plain, _, _ = run(by_hand, make_line(), FedAvg(), {}, 2, 1)
    assert weights == pytest.approx(plain, abs=1e-12)


@pytest.mark.parametrize(
    "lam, num_steps, expected_own",
    [
        # local training: one step from 0 as FedAvg's, two as its two
        (0.0, 1, [0.7, 0.4]),
        (0.0, 2, [1.05, 0.72]),
        # the second gradients, -3.5 and -3.2, with 2 (0.7 - 0) and 2 (0.4 - 0)
        (2.0, 2, [0.7 + 0.35 - 0.14, 0.4 + 0.32 - 0.08]),
    ],
)
def test_ditto(by_hand, make_line, lam, num_steps, expected_own):
    weights, _, clients = run(by_hand, make_line(), Ditto(), {"lam": lam}, 1, num_steps)
    assert weights == run(by_hand, make_line(), FedAvg(), {}, 1, num_steps)[0]
    own = [clients.get(k)["own"]["weight"].item() for k in (0, 1)]
    assert own == pytest.approx(expected_own, abs=1e-12)


def test_ditto_goes_on_from_its_own_models_and_to_the_new_global_one(by_hand, make_line):
    weights, _, clients = run(by_hand, make_line(), Ditto(), {"lam": 2.0}, 2, 1)
    w = (2 * 0.7 + 0.4) / 3
    assert weights[0] == pytest.approx(w, abs=1e-12)
    # from 0.7 and 0.4, gradients 5 * 0.7 - 7 and 2 * 0.4 - 4, and twice the way from w
    expected = [0.7 - 0.1 * (-3.5 + 2 * (0.7 - w)), 0.4 - 0.1 * (-3.2 + 2 * (0.4 - w))]
    assert [clients.get(k)["own"]["weight"].item() for k in (0, 1)] == pytest.approx(expected, abs=1e-12)


def test_fedsam(by_hand, make_line):
    # from 0 the gradients -7 and -4 lead up to -0.2, where they are -8 and -4.4
    weights, _, _ = run(by_hand, make_line(), FedSAM(), {"rho": 0.2}, 1, 1)
    assert weights == pytest.approx([(2 * 0.8 + 0.44) / 3], abs=1e-12)
    weights, _, _ = run(by_hand, make_line(), FedSAM(), {"rho": 0.0}, 3, 2)
    assert weights == run(by_hand, make_line(), FedAvg(), {}, 3, 2)[0]


class TwoLines(nn.Module):
    """y = v (x, x)·(a, 1): features z = (a x, x), whose direction depends on a alone."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.last = nn.Linear(2, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(self.last.weight, 0.5)

    def forward(self, x):
        return self.last(torch.cat([self.a * x, x], dim=1))


def test_moon(by_hand):
    """Two rounds of one full step: in the first all three representations are one; then they are compared by hand."""
    mu, tau, lr = 3.0, 0.5, 0.1
    hyper = {"mu": mu, "tau": tau}
    plain, _, _ = run_two_lines(by_hand, FedAvg(), {}, 1)
    first, clients, _ = run_two_lines(by_hand, Moon(), hyper, 1)
    # d/da of softplus((cos(z, z_prev) - cos(z, z_glob)) / tau) is 0 where both are z itself
    assert first == pytest.approx(plain, abs=1e-12)
    after, _, weights = run_two_lines(by_hand, Moon(), hyper, 2)

    def cosine(a, b):
        return (a * b + 1) / math.sqrt((a * a + 1) * (b * b + 1))

    def slope(a, b):
        """Of cosine in a, at a."""
        return b / math.sqrt((a * a + 1) * (b * b + 1)) - a * cosine(a, b) / (a * a + 1)

    (a, v0, v1), ends = first, []
    for k in (0, 1):
        x, y = (t.squeeze(1).tolist() for t in by_hand.client(k))
        previous = clients.get(k)["previous"]["a"].item()
        inside = (cosine(a, previous) - cosine(a, a)) / tau
        pull = mu / (1 + math.exp(-inside)) * (slope(a, previous) - slope(a, a)) / tau
        rest = [2 * ((v0 * a + v1) * x_i - y_i) for x_i, y_i in zip(x, y, strict=True)]
        mean = [
            sum(g * f for g, f in zip(rest, fs, strict=True)) / len(x)
            for fs in ([v0 * i for i in x], [a * i for i in x], x)
        ]
        ends.append([a - lr * (mean[0] + pull), v0 - lr * mean[1], v1 - lr * mean[2]])
    expected = [sum(w * end[i] for w, end in zip(weights, ends, strict=True)) for i in range(3)]
    assert after == pytest.approx(expected, abs=1e-12)
    assert run_two_lines(by_hand, Moon(), {"mu": 0.0, "tau": 1.0}, 3)[0] == pytest.approx(
        run_two_lines(by_hand, FedAvg(), {}, 3)[0], abs=1e-14
    )


def run_two_lines(by_hand, algorithm, hyper, num_rounds):
    """Returns a and both v after the last round, what clients keep, and the clients' weights."""
    _, server, clients = run(by_hand, TwoLines(), algorithm, hyper, num_rounds, 1, watched="a")
    sizes = np.diff(by_hand.offsets)
    return [server.params["a"].item(), *server.params["last.weight"].flatten().tolist()], clients, sizes / sizes.sum()
