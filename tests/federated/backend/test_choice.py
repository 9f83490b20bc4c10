"""Which backend runs, what it says of itself, and that a choice is kept."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.config import EngineConf
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.scaffold import Scaffold
from flgo_hydra.federated.backend import choice, lanes, loop
from flgo_hydra.federated.backend.batched import VmapBackend, count_lanes
from flgo_hydra.federated.backend.choice import build_backend
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.data import to_data
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


def both(build, data, algorithm=None, batch_size=4, lanes=4, compiles=True, **hyper):
    """The model after two rounds in the plain loop and side by side, and what the second says of itself."""
    ends = []
    for kind, more in ((LoopBackend, {"compiles": False}), (VmapBackend, {"lanes": lanes, "compiles": compiles})):
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
@pytest.mark.parametrize("compiles", [True, False])
def test_batch_norm_of_ragged_batches_side_by_side(make_ragged_task, norm, compiles):
    """Batches of 4, 3 and 2 samples, filled up to 4, and clients who are done before others."""
    data = to_data(make_ragged_task((7, 6, 12)), torch.device("cpu"), torch.float64)
    build = seeded(lambda: nn.Sequential(nn.Linear(5, 4), NORMS[norm](), nn.ReLU(), nn.Linear(4, 3)))
    plain, ours, note = both(build, data, lanes=3, compiles=compiles)
    assert note["backend"] == "vmap" and note["compiled_with_masks"] is compiles
    assert_same(plain, ours)
    if norm == "own momentum":
        assert ours["1.num_batches_tracked"].dtype == torch.int64 and (ours["1.running_var"] != 1).all()


def test_batch_norm_of_pairs_and_different_numbers_of_steps(make_ragged_task, monkeypatch):
    """Nothing that is tried beforehand may have a single sample; and in the dual form."""
    monkeypatch.setattr(lanes, "_DUAL_PAYS", 1e9)
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
    for compiles in (False, True):
        model = build()
        step = LocalStep(FedAvg(), build_optimizer("sgd"))
        backend = LoopBackend(model, ragged, step, LocalWork(4, 2, None, seed=3), compiles)
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


def test_a_recorded_step_that_is_clearly_slower_is_given_up(ragged, make_mlp, monkeypatch):
    seconds = itertools.cycle([1.6, 1.0])
    monkeypatch.setattr(loop, "seconds_of", lambda *_: next(seconds))
    monkeypatch.setattr(loop, "_SLOWER", 1.5)
    model = make_mlp()
    backend = LoopBackend(model, ragged, LocalStep(FedAvg(), build_optimizer("sgd")), LocalWork(4, 2, None, seed=3))
    rounds(backend, model, ragged)
    assert backend.note["why_not_compiled"] == "a recorded step takes 1.60 times as long as a plain one"
    assert backend.note["compiled_batch_sizes"] == [] and backend.is_recorded is False


def chosen(data, model, engine, visits=INF, cohort_size=4):
    step = LocalStep(FedAvg(), build_optimizer("sgd"))
    return build_backend(engine, model, data, step, LocalWork(4, 2, None, seed=3), cohort_size, visits)


@pytest.mark.parametrize("loop_s, vmap_s, name", [(1.0, 0.5, "vmap"), (1.0, 0.95, "loop"), (0.5, 1.0, "loop")])
def test_auto_takes_what_it_measured_as_clearly_faster(ragged, make_mlp, monkeypatch, loop_s, vmap_s, name):
    monkeypatch.setattr(choice, "_measured", {})
    monkeypatch.setattr(LoopBackend, "estimate", lambda *_: loop_s)
    monkeypatch.setattr(VmapBackend, "estimate", lambda *_: vmap_s)
    model = make_mlp()
    backend = chosen(ragged, model, EngineConf())
    assert backend.choice is None
    rounds(backend, model, ragged)
    assert backend.choice == name and backend.note["backend"] == name
    assert backend.note["chosen_by"] == "measurement" and backend.note["loop_round_s"] == loop_s


def test_auto_measures_for_real_and_trains_as_the_loop_does(ragged, make_mlp, monkeypatch):
    monkeypatch.setattr(choice, "_measured", {})
    ends = []
    for engine in (EngineConf("loop", "off"), EngineConf("auto")):
        model = make_mlp()
        backend = chosen(ragged, model, engine)
        ends.append(rounds(backend, model, ragged))
    assert backend.note["loop_round_s"] > 0 and backend.note["vmap_round_s"] > 0
    assert_same(*ends)


def test_what_needs_no_measurement_and_what_a_checkpoint_keeps(ragged, make_mlp):
    assert chosen(ragged, make_mlp(), EngineConf(), visits=10).note["chosen_by"] == "too short to measure"
    asked = chosen(ragged, make_mlp(), EngineConf("vmap"))
    asked.go_on({"backend": "loop", "is_recorded": True})
    assert asked.choice == "vmap"
    resumed = chosen(ragged, make_mlp(), EngineConf())
    resumed.go_on({"backend": "vmap", "is_recorded": None})
    assert resumed.choice == "vmap" and resumed.note["chosen_by"] == "checkpoint"
    early = chosen(ragged, make_mlp(), EngineConf())
    early.go_on({"backend": None, "is_recorded": None})  # a checkpoint before the first round's end
    assert early.choice is None


@pytest.mark.parametrize("is_recorded, sizes", [(True, [3, 4]), (False, [])])
def test_a_run_that_goes_on_does_not_ask_again_whether_recorded_steps_pay(
    ragged, make_mlp, monkeypatch, is_recorded, sizes
):
    seconds = itertools.cycle([0.1, 1.0] if not is_recorded else [1.6, 1.0])  # now it would decide otherwise
    monkeypatch.setattr(loop, "seconds_of", lambda *_: next(seconds))
    monkeypatch.setattr(loop, "_SLOWER", 1.5)
    model = make_mlp()
    backend = chosen(ragged, model, EngineConf("loop"))
    assert backend.findings == {"backend": "loop", "is_recorded": None}
    backend.go_on({"backend": "loop", "is_recorded": is_recorded})
    rounds(backend, model, ragged)
    assert set(sizes) <= set(backend.note["compiled_batch_sizes"])
    assert bool(backend.note["compiled_batch_sizes"]) == is_recorded
    assert backend.findings == {"backend": "loop", "is_recorded": is_recorded}


@pytest.mark.parametrize(
    "cohort, per_lane, budget, lanes", [(10, 1, 100, 10), (10, 20, 100, 5), (1000, 1, 300, 250), (3, 500, 100, 1)]
)
def test_a_cohort_goes_in_chunks_that_fit(cohort, per_lane, budget, lanes):
    assert count_lanes(cohort, per_lane, budget) == lanes
