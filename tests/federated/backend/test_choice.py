"""Which backend runs, what it says of itself, and that a choice is kept."""

import os
import random
import time

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.config.option import AUTO, PLAIN, EngineConf
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedprox import FedProx
from flgo_hydra.federated.algorithm.scaffold import Scaffold
from flgo_hydra.federated.backend import extent
from flgo_hydra.federated.backend.choice import build_backend
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend, count_lanes
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.data.on_device import Data, HeldOut, to_data
from flgo_hydra.federated.model import cnn, mlp
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

INF = float("inf")


def cohort_of(data):
    return sample_cohort(np.diff(data.offsets), 1.0, "full", "other", "samples", np.random.default_rng(0))


def rounds(backend, model, data, algorithm=None, num_rounds=2, **hyper):
    algorithm = algorithm or FedAvg()
    server = server_state(model, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), len(data.offsets) - 1)
    for r in range(1, num_rounds + 1):
        server = backend.train(server, clients, cohort_of(data), {"lr": 0.1, **hyper}, r)
    return {**server.params, **server.buffers}


def both(build, data, algorithm=None, batch_size=4, lanes=4, engine=AUTO, **hyper):
    """The model after two rounds in the plain loop and side by side, and what the second says of itself."""
    ends = []
    for kind, more in ((LoopBackend, {"engine": PLAIN}), (VmapBackend, {"lanes": lanes, "engine": engine})):
        model = build()
        step = LocalStep(algorithm or FedAvg(), build_optimizer("sgd", momentum=0.5))
        backend = kind(model, data, step, LocalWork(batch_size, 2, None, seed=3), **more)
        ends.append(rounds(backend, model, data, algorithm, **hyper))
    return *ends, backend.note


def seeded(build):
    def model():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build().double()

    return model


def assert_same(a, b, atol=1e-12):
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=0, atol=atol)


def test_batch_norm_side_by_side_where_batches_are_of_one_size(make_ragged_task):
    data = to_data(make_ragged_task((8, 8, 8)), torch.device("cpu"), torch.float64)
    build = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)))
    plain, ours, note = both(build, data, lanes=3)
    assert note["backend"] == "vmap" and note["compiled_batch_sizes"] == [4]
    assert_same(plain, ours)
    assert ours["1.num_batches_tracked"].item() == 8


NORMS = {
    "as it is": lambda: nn.BatchNorm1d(4),
    "own momentum": lambda: nn.BatchNorm1d(4, momentum=0.3, eps=0.1),
    "not affine": lambda: nn.BatchNorm1d(4, affine=False),
    "no running statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "over places too": lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.BatchNorm1d(2), nn.Flatten()),
    "images": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.BatchNorm2d(1), nn.Flatten()),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("engine", [AUTO, PLAIN])
def test_batch_norm_of_ragged_batches_side_by_side(make_ragged_task, norm, engine):
    """Batches of 4, 3 and 2 samples, filled up to 4, and clients who are done before others."""
    data = to_data(make_ragged_task((7, 6, 12)), torch.device("cpu"), torch.float64)
    build = seeded(lambda: nn.Sequential(nn.Linear(5, 4), NORMS[norm](), nn.ReLU(), nn.Linear(4, 3)))
    plain, ours, note = both(build, data, lanes=3, engine=engine)
    assert note["backend"] == "vmap" and note["compiled_with_masks"] is engine.compiles
    assert_same(plain, ours)
    if norm == "own momentum":
        assert ours["1.num_batches_tracked"].dtype == torch.int64 and (ours["1.running_var"] != 1).all()


def test_batch_norm_of_pairs_and_different_numbers_of_steps(make_ragged_task, monkeypatch):
    """Nothing that is tried beforehand may have a single sample; and in the dual form."""
    monkeypatch.setattr(extent, "_DUAL_PAYS", 1e9)
    data = to_data(make_ragged_task((8, 4, 6)), torch.device("cpu"), torch.float64)
    build = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)))
    plain, ours, note = both(build, data, batch_size=2, lanes=3)
    assert note["backend"] == "vmap" and note["compiled_with_masks"] and note["dual_layers"] == ["0.weight"]
    assert_same(plain, ours)


def test_batch_norm_of_a_single_sample_is_refused_as_torch_refuses_it(make_ragged_task):
    data = to_data(make_ragged_task((7, 5, 12)), torch.device("cpu"), torch.float64)  # 5 = 4 + 1
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))()
    step = LocalStep(FedAvg(), build_optimizer("sgd"))
    backend = VmapBackend(model, data, step, LocalWork(4, 2, None, seed=3), lanes=3)
    with pytest.raises(ValueError, match="more than 1 value per channel.* set another `batch_size`"):
        rounds(backend, model, data)
    assert "more than 1 value per channel" in backend.note["why_not_vmap"]


def test_what_mixes_ragged_batches_trains_in_the_loop(make_ragged_task):
    class Centering(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    data = to_data(make_ragged_task((7, 6, 12)), torch.device("cpu"), torch.float64)
    build = seeded(lambda: nn.Sequential(nn.Linear(5, 4), Centering(), nn.ReLU(), nn.Linear(4, 3)))
    plain, ours, note = both(build, data)
    assert note["backend"] == "loop" and "`0.weight` differs by" in note["why_not_vmap"]
    assert_same(plain, ours)


def test_dropout_trains_in_the_loop(ragged):
    build = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    plain, ours, note = both(build, ragged)
    assert note["backend"] == "loop" and "random" in note["why_not_vmap"]
    assert_same(plain, ours)


def test_convolutions_and_group_norm_side_by_side(make_ragged_task):
    data = to_data(make_ragged_task(), torch.device("cpu"), torch.float64)
    build = seeded(
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 5)),
            nn.Conv1d(1, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Flatten(),
            nn.Linear(8, 3),
        )
    )
    plain, ours, note = both(build, data)
    assert note["backend"] == "vmap" and note["compiled_with_masks"]
    assert_same(plain, ours)


def test_frozen_and_unused_parameters_and_regression(by_hand):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen, self.line, self.idle = nn.Linear(1, 2), nn.Linear(2, 1), nn.Linear(2, 2)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.line(torch.tanh(self.frozen(x)))

    plain, ours, note = both(seeded(Model), by_hand, lanes=2)
    assert note["backend"] == "vmap"
    assert_same(plain, ours)


def test_float32_stays_float32_with_clients_of_different_numbers_of_steps(make_ragged_task, make_mlp):
    data = to_data(make_ragged_task(), torch.device("cpu"), torch.float32)
    plain, ours, note = both(lambda: make_mlp().float(), data, Scaffold(), eta=0.8)
    assert note["backend"] == "vmap"
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    assert_same(plain, ours, atol=1e-6)


def test_a_model_that_decides_by_numbers_is_not_compiled(ragged):
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(5, 3)

        def forward(self, x):
            return self.line(x) if x.mean() > 0 else -self.line(x)

    build = seeded(Deciding)
    ends = []
    for engine in (PLAIN, AUTO):
        model = build()
        step = LocalStep(FedAvg(), build_optimizer("sgd"))
        backend = LoopBackend(model, ragged, step, LocalWork(4, 2, None, seed=3), engine)
        ends.append(rounds(backend, model, ragged))
    assert "reads numbers" in backend.note["why_not_compiled"]
    assert_same(*ends, atol=0)


def test_a_model_that_counts_its_calls_is_not_compiled(ragged):
    """Nothing on the tape says so, and a program would count no calls."""

    class Warming(nn.Module):
        def __init__(self):
            super().__init__()
            self.line, self.calls = nn.Linear(5, 3), 0

        def forward(self, x):
            self.calls += 1
            return self.line(x) * (1 - 0.5**self.calls)

    model = seeded(Warming)()
    step = LocalStep(FedAvg(), build_optimizer("sgd"))
    backend = LoopBackend(model, ragged, step, LocalWork(4, 2, None, seed=3))
    rounds(backend, model, ragged, num_rounds=1)
    assert backend.note["why_not_compiled"] == "`model.calls` changes while it computes"
    assert model.calls == 2 * (2 + 1 + 3 + 1)  # steps, and none of a trial


def chosen(data, model, engine=None, visits=INF, cohort_size=4, work=None, algorithm=None, **optimizer):
    step = LocalStep(algorithm or FedAvg(), build_optimizer(**{"name": "sgd", **optimizer}))
    return build_backend(
        engine or EngineConf(), model, data, step, work or LocalWork(4, 2, None, 3), cohort_size, visits
    )


def test_the_choice_is_there_before_the_first_round_and_trains_as_the_loop_does(ragged, make_mlp):
    ends = []
    for engine in (EngineConf("loop", "off"), EngineConf("auto")):
        model = make_mlp()
        backend = chosen(ragged, model, engine)
        name = backend.choice
        ends.append(rounds(backend, model, ragged))
        assert backend.choice == backend.note["backend"] == name
    assert backend.note["chosen_by"] == "cost model"
    assert backend.note["loop_round_s"] > 0 and backend.note["vmap_round_s"] > 0
    assert_same(*ends)


def images(sizes, seed=0, shape=(1, 8, 8)):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.random((sum(sizes), *shape), np.float32))
    y = torch.from_numpy(rng.integers(0, 10, len(x)))
    held = HeldOut(x[:4], y[:4], torch.full((4,), 0.25, dtype=torch.float64))
    return Data(x, y, np.cumsum([0, *sizes]).tolist(), held, held, is_classification=True)


def test_each_backend_is_chosen_where_it_should_be():
    """Small dense steps side by side; large convolutions, and clients that have little in common, one by one."""
    even, work = images([40] * 20), LocalWork(10, 5, None, 0)
    assert chosen(even, mlp((1, 8, 8), 10, [32]), cohort_size=10, work=work).choice == "vmap"
    large = images([20] * 4, shape=(1, 28, 28))
    assert chosen(large, cnn((1, 28, 28), 10, [32, 64], 512), cohort_size=4, work=work).choice == "loop"
    wild = images([1500, 200, *[10] * 18])
    assert chosen(wild, mlp((1, 8, 8), 10, [512, 512]), cohort_size=10, work=work).choice == "loop"
    assert chosen(even, mlp((1, 8, 8), 10, [32]), cohort_size=1, work=work).choice == "loop"
    short = LocalWork(10, 1, 2, 0)  # two steps of ten clients: nothing pays that has to be recorded first
    assert chosen(even, mlp((1, 8, 8), 10, [32]), cohort_size=10, work=short, visits=0.5).choice == "loop"


def test_nothing_that_differs_between_seeds_or_machines_changes_the_choice(monkeypatch):
    """Values, seeds, threads, clocks, and the sizes that another split of the same kind has drawn."""
    found = []
    for seed in range(4):
        monkeypatch.setattr(time, "perf_counter", lambda s=seed: 1e3 * s)
        monkeypatch.setattr(torch, "get_num_threads", lambda s=seed: 1 + s)
        monkeypatch.setattr(os, "cpu_count", lambda s=seed: 1 + s)
        sizes = np.random.default_rng(seed).dirichlet(np.full(20, 5.0)) * 800
        data = images(np.maximum(1, sizes).astype(int).tolist(), seed)
        work = LocalWork(10, 3, None, seed)
        for momentum in (0.0, 0.5):
            backend = chosen(data, mlp((1, 8, 8), 10, [32]), cohort_size=5, work=work, momentum=momentum)
            found.append((backend.choice, backend.form.get("clients_at_once")))
    assert len(set(found)) == 1


def test_algorithms_and_optimizers_of_one_sweep_have_one_choice():
    data = images([40] * 20)
    found = {
        chosen(data, mlp((1, 8, 8), 10, [32]), cohort_size=10, algorithm=algorithm, name=name).choice
        for algorithm in (FedAvg(), FedProx(), Scaffold())
        for name in ("sgd", "momentum", "adam")
    }
    assert len(found) == 1


def test_to_be_looked_at_leaves_no_trace(ragged):
    class Tracing(nn.Module):
        def __init__(self):
            super().__init__()
            self.line, self.norm, self.calls = nn.Linear(5, 4), nn.BatchNorm1d(4), 0
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.seen += 1
            noise = torch.rand(()) + random.random() + np.random.random()
            return self.norm(self.line(x)) + noise

    model = seeded(Tracing)().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    backend = chosen(ragged, model)
    assert (backend.choice, model.calls, model.training) == ("loop", 0, False)
    assert "random numbers" in backend.note["chosen_by"]
    assert_same(before, model.state_dict(), atol=0)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize("why", ["deepcopy", "small batch", "dropout"])
def test_a_model_that_cannot_be_looked_at_trains_in_the_loop(ragged, why):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.line, self.drop = nn.Linear(5, 3), nn.Dropout(0.5)

        def __deepcopy__(self, memo):
            if why == "deepcopy":
                raise TypeError("there is only one of me")
            copy = Odd().double()
            copy.load_state_dict(self.state_dict())
            return copy

        def forward(self, x):
            if why == "small batch":
                assert len(x) > 8
            return self.drop(self.line(x)) if why == "dropout" else self.line(x)

    backend = chosen(ragged, Odd())
    assert backend.choice == "loop"
    said = {"deepcopy": "only one of me", "small batch": "AssertionError", "dropout": "random numbers"}[why]
    assert said in backend.note["chosen_by"]


def test_the_form_says_what_decides_rounding(ragged, make_mlp):
    torch.set_num_threads(1)
    auto = chosen(ragged, make_mlp(), EngineConf("vmap", dual="off"))
    assert auto.form == {
        **{"device": "cpu", "num_threads": 1, "compile": "auto", "dual": "off", "graph": "off"},
        **{"backend": "vmap", "clients_at_once": 4},
    }
    assert auto.note["num_threads"] == 1 and auto.note["chosen_by"] == "engine.backend"
    assert chosen(ragged, make_mlp(), EngineConf("loop")).form["backend"] == "loop"


@pytest.mark.parametrize(
    "cohort, per_lane, budget, lanes", [(10, 1, 100, 10), (10, 20, 100, 5), (1000, 1, 300, 250), (3, 500, 100, 1)]
)
def test_a_cohort_goes_in_chunks_that_fit(cohort, per_lane, budget, lanes):
    assert count_lanes(cohort, per_lane, budget) == lanes
