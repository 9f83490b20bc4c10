"""Several runs as one program: each gives the numbers that it gives alone."""

import math

import pytest
import torch
from torch import nn

from flgo_hydra.config.option import PLAIN, OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.algorithm.ditto import Ditto
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedprox import FedProx
from flgo_hydra.federated.algorithm.fedsam import FedSAM
from flgo_hydra.federated.algorithm.moon import Moon
from flgo_hydra.federated.algorithm.scaffold import Scaffold
from flgo_hydra.federated.backend import extent
from flgo_hydra.federated.backend.fused import CannotFuse, FusedBackend, Member
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.data.on_device import to_data
from flgo_hydra.federated.fused_rounds import run_together
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.rounds import Evaluation, RunState, Status, drive, rounds
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

DEFAULTS = {"num_rounds": 3, "proportion": 0.6, "batch_size": 4, "num_epochs": 2, "lr": 0.1, "dtype": "float64"}


class Median(FedAvg):
    """A server's rule that asks for all messages."""

    def combine(self, messages, weights, hyper):
        return {key: {name: t.quantile(0.5, dim=0) for name, t in ts.items()} for key, ts in messages.items()}


NUMBERS = {
    FedProx: {"mu": 0.3},
    Scaffold: {"eta": 0.9},
    Ditto: {"lam": 0.5},
    FedSAM: {"rho": 0.1},
    Moon: {"mu": 2.0, "tau": 0.5},
}


class Watcher:
    def __init__(self):
        self.lines = []

    def evaluated(self, state, is_best):
        self.lines.append({"round": state.round_num, **state.last})

    def finished_round(self, state):
        return None


def option(**values):
    names = OptionConf.__dataclass_fields__
    return OptionConf(**{k: v for k, v in {**DEFAULTS, **values}.items() if k in names})


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


class Runs:
    """Runs of the same structure, to be run alone or together."""

    def __init__(self, data, algorithm, build=mlp, **shared):
        self.data, self.algorithm, self.build, self.shared = data, algorithm, build, shared
        self.numbers = NUMBERS.get(algorithm, {})

    def make(self, values):
        conf = option(**{**self.shared, **values})
        with torch.random.fork_rng():
            torch.manual_seed(conf.seed)
            model = self.build().to(self.data.x_train.dtype)
        algorithm = self.algorithm()
        step = LocalStep(algorithm, build_optimizer(conf.optimizer, conf.momentum, conf.weight_decay), conf.clip_grad)
        work = LocalWork(conf.batch_size, conf.num_epochs, conf.num_steps, conf.seed)
        loop = LoopBackend(model, self.data, step, work, engine=PLAIN)
        server = server_state(model, algorithm)
        state = RunState(server, ClientStates(algorithm.init_client(server.params), len(self.data.offsets) - 1))
        watcher = Watcher()
        numbers = values.get("own") or {name: values.get(name, value) for name, value in self.numbers.items()}
        run = rounds(loop, self.data, algorithm, numbers, conf, state, watcher)
        member = Member(algorithm, conf.optimizer, conf.momentum, conf.weight_decay, conf.clip_grad, work, loop)
        return run, member, state, watcher, model

    def alone(self, values):
        run, member, state, watcher, _ = self.make(values)
        return drive(run, member.loop, self.data), state, watcher.lines

    def together(self, points, most=8, prepare=lambda backend: None):
        made = [self.make(values) for values in points]
        backend = FusedBackend(made[0][4], self.data, {i: one[1] for i, one in enumerate(made)}, most)
        prepare(backend)
        ends = {}
        run_together({i: one[0] for i, one in enumerate(made)}, backend.train, backend.evaluate, ends.__setitem__)
        return [(ends[i], one[2], one[3].lines) for i, one in enumerate(made)], backend


def assert_same(one, other, atol=1e-12):
    (status, state, lines), (other_status, other_state, other_lines) = one, other
    assert status == other_status
    assert [line["round"] for line in lines] == [line["round"] for line in other_lines]
    for a, b in zip(lines, other_lines, strict=True):
        assert a == pytest.approx(b, rel=0, abs=atol, nan_ok=True)
    for tensors, others in (
        (state.server.params, other_state.server.params),
        (state.server.buffers, other_state.server.buffers),
    ):
        for name, tensor in tensors.items():
            torch.testing.assert_close(others[name], tensor, rtol=0, atol=atol, equal_nan=True)
    used = sorted(state.clients.used)
    assert used == sorted(other_state.clients.used)
    theirs = other_state.clients.get_many(used)
    for kind, tensors in state.clients.get_many(used).items():
        for name, rows in tensors.items():
            torch.testing.assert_close(theirs[kind][name], rows, rtol=0, atol=atol)


def has_dual_form(algorithm, shared):
    """Plain SGD, which knows the gradient as a product only."""
    return shared.get("optimizer", "sgd") in ("sgd", "momentum") and "clip_grad" not in shared


@pytest.fixture(params=[True, False], ids=["dual", "plain"])
def dual(request, monkeypatch):
    """The first layer in its dual form, whether that is less work or not; or never."""
    monkeypatch.setattr(extent, "_DUAL_PAYS", 1e9 if request.param else 0.0)
    return request.param


POINTS = [{"lr": 0.1}, {"lr": 0.02, "seed": 1}, {"lr": 0.3, "seed": 2, "num_rounds": 2}]


@pytest.mark.parametrize(
    "shared, points",
    [
        ({}, [{}, {}, {}]),
        ({"optimizer": "momentum"}, [{"momentum": 0.9}, {"momentum": 0.5}, {"momentum": 0.1}]),
        ({"optimizer": "adam"}, [{"weight_decay": 0.1}, {"weight_decay": 0.01}, {"weight_decay": 0.3}]),
        ({}, [{"weight_decay": 0.1}, {"weight_decay": 0.01}, {"weight_decay": 0.3}]),
        (
            {"batch_size": 0.5, "num_epochs": 3, "clip_grad": 1.0},
            [{"clip_grad": 0.1}, {"clip_grad": 1.0}, {"clip_grad": 9.0}],
        ),
        ({"optimizer": "rmsprop", "batch_size": -1}, [{"momentum": 0.9}, {"momentum": 0.5}, {"momentum": 0.3}]),
        ({"num_steps": 3, "aggregate": "weighted_scale"}, [{"mu": 0.1}, {"mu": 1.0}, {"eta": 0.5}]),
        ({"lr_schedule": "cosine"}, [{}, {"lr_schedule": "constant"}, {"eval_interval": 2}]),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("algorithm", [FedAvg, FedProx, Scaffold])
def test_runs_give_the_numbers_that_they_give_alone(ragged, dual, algorithm, shared, points):
    runs = Runs(ragged, algorithm, **shared)
    points = [{**a, **b} for a, b in zip(POINTS, points, strict=True)]
    together, backend = runs.together(points)
    for values, one in zip(points, together, strict=True):
        assert_same(runs.alone(values), one)
    assert backend.note.items() >= {"backend": "fused", "runs": 3, "runs_at_once": 3}.items()
    assert backend.note["dual_layers"] == (["0.weight"] if dual and has_dual_form(algorithm, shared) else [])


@pytest.mark.parametrize(
    "shared, points",
    [
        ({}, [{}, {}, {}]),
        ({"optimizer": "momentum"}, [{"momentum": 0.9}, {"momentum": 0.5}, {"momentum": 0.1}]),
        ({"optimizer": "adam", "clip_grad": 1.0}, [{"clip_grad": 0.1}, {"mu": 1.0}, {"lam": 3.0}]),
    ],
    ids=["sgd", "momentum", "adam"],
)
@pytest.mark.parametrize("algorithm", [Ditto, FedSAM, Moon, Median])
@pytest.mark.few(3)
def test_programs_and_rules_over_all_messages_do_so_too(ragged, algorithm, shared, points):
    runs = Runs(ragged, algorithm, **shared)
    points = [{**a, **b} for a, b in zip(POINTS, points, strict=True)]
    together, backend = runs.together(points)
    for values, one in zip(points, together, strict=True):
        assert_same(runs.alone(values), one)
    assert backend.note["runs_at_once"] == 3


class Namesakes(Algorithm):
    """Has numbers of its own that are named as the optimizer's are, and uses all that it is given, everywhere."""

    def correct(self, grads, params, client, hyper):
        assert set(hyper) == {"lr", "momentum", "weight_decay", "clip_grad"}
        pull = 0.1 * hyper["momentum"] + sum(hyper.values()) / 100
        return {name: g + pull * (params[name] - client.anchor[name]) for name, g in grads.items()}

    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        return {"update": {name: hyper["weight_decay"] * u for name, u in sent["update"].items()}}, kept

    def update_server(self, params, server, message, participation, hyper):
        factor = hyper["clip_grad"] + 0 * sum(hyper.values())
        return {name: p + factor * message["update"][name] for name, p in params.items()}, server


@pytest.mark.parametrize(
    "shared", [{}, {"optimizer": "momentum", "momentum": 0.5, "weight_decay": 0.01, "clip_grad": 0.7}]
)
def test_an_algorithms_own_momentum_is_not_the_optimizers(ragged, shared):
    runs = Runs(ragged, Namesakes, **shared)
    runs.own = [{"momentum": 3.0, "weight_decay": 0.5, "clip_grad": 1.5}, {"momentum": 1.0}, {"clip_grad": 0.5}]
    points = [{**values, "own": {**runs.own[0], **own}} for values, own in zip(POINTS, runs.own, strict=True)]
    together, backend = runs.together(points)
    for values, one in zip(points, together, strict=True):
        assert_same(runs.alone(values), one)
    assert backend.note["runs_at_once"] == 3


def test_frozen_parameters_are_each_runs_own(ragged):
    def frozen():
        model = mlp()
        model[0].requires_grad_(False)
        return model

    runs = Runs(ragged, FedAvg, frozen)
    together, _ = runs.together(POINTS)
    for values, one in zip(POINTS, together, strict=True):
        assert_same(runs.alone(values), one)


def test_a_run_does_not_depend_on_the_others(ragged):
    runs = Runs(ragged, Scaffold)
    (first, *_), _ = runs.together(POINTS)
    (pair, _), _ = runs.together([POINTS[0], {"lr": 0.7, "seed": 9}])
    assert_same(first, pair)


@pytest.mark.parametrize("sizes", [(8, 8, 8), (7, 3, 12)])
def test_running_statistics(make_ragged_task, sizes):
    data = to_data(make_ragged_task(sizes), torch.device("cpu"), torch.float64)
    runs = Runs(data, FedAvg, lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)), num_rounds=2)
    together, _ = runs.together(POINTS)
    for values, one in zip(POINTS, together, strict=True):
        assert_same(runs.alone(values), one)


def test_what_mixes_the_samples_of_a_batch_runs_apart(ragged):
    """Partial batches must not be filled up then."""

    class Centering(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    with pytest.raises(CannotFuse, match="`1.weight` differs by"):
        Runs(ragged, FedAvg, lambda: nn.Sequential(Centering(), nn.Linear(5, 3))).together(POINTS)


def test_a_run_that_diverges_leaves_the_others(ragged):
    runs = Runs(ragged, FedAvg, num_rounds=4)
    points = [{"lr": 0.1}, {"lr": 1e200, "seed": 1}, {"lr": 0.05, "early_stop": 1, "seed": 5}]
    together, _ = runs.together(points)
    assert together[1][0] == Status.DIVERGED
    assert not math.isfinite(together[1][2][-1]["valid_loss"])
    for values, one in zip(points, together, strict=True):
        assert_same(runs.alone(values), one)


def test_a_run_that_fails_leaves_the_others(ragged):
    runs = Runs(ragged, FedAvg)
    made = [runs.make(values) for values in POINTS]
    made[1][3].evaluated = lambda state, is_best: 1 / (1 - state.round_num)
    backend = FusedBackend(made[0][4], ragged, {i: one[1] for i, one in enumerate(made)}, 8)
    ends = {}
    run_together({i: one[0] for i, one in enumerate(made)}, backend.train, backend.evaluate, ends.__setitem__)
    assert isinstance(ends[1], ZeroDivisionError)
    assert_same(runs.alone(POINTS[0]), (ends[0], made[0][2], made[0][3].lines))


def test_memory_runs_out_and_the_width_is_halved(ragged):
    """Nothing was lost: the round is trained again with half as many at once."""
    points = [{"seed": seed} for seed in range(4)]
    widths = []

    def prepare(backend):
        train = backend._train_chunk

        def limited(keys, works):
            widths.append(len(keys))
            servers = train(keys, works) if len(keys) < 4 else None
            if servers is None:
                train(keys, works)  # as far as it can get before memory runs out: nothing is kept of it
                raise torch.OutOfMemoryError("CUDA out of memory")
            return servers

        backend._train_chunk = limited

    runs = Runs(ragged, FedAvg, num_rounds=1)
    together, backend = runs.together(points, prepare=prepare)
    assert widths == [4, 2, 2]
    assert backend.note["runs_at_once"] == 2
    for values, one in zip(points, together, strict=True):
        assert_same(runs.alone(values), one)


def test_evaluation_as_one_program_where_that_works_and_else_one_by_one(ragged, caplog):
    class Deciding(nn.Linear):
        def forward(self, x):
            if not self.training and self.weight.sum() > 1e9:
                return 0 * super().forward(x)
            return super().forward(x)

    for build, works in ((mlp, True), (lambda: Deciding(5, 3), False)):
        runs = Runs(ragged, FedAvg, build)
        made = [runs.make(values) for values in POINTS]
        backend = FusedBackend(made[0][4], ragged, {i: one[1] for i, one in enumerate(made)}, 8)
        servers = {i: Evaluation(one[2].server, 0) for i, one in enumerate(made)}
        one_by_one = backend.evaluate(servers)
        backend._device = torch.device("cuda")  # where it pays
        for _ in range(2):
            together = backend.evaluate(servers)
            for i, metrics in one_by_one.items():
                assert together[i] == pytest.approx(metrics, rel=1e-12)
        assert ("one by one" in caplog.text) is not works
        assert caplog.text.count("evaluated one by one") == (not works)


def test_what_vmap_cannot_do_is_refused_before_anything_is_kept(ragged):
    class Dropout(nn.Sequential):
        pass

    runs = Runs(ragged, FedAvg, lambda: nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)))
    with pytest.raises(CannotFuse, match="random"):
        runs.together(POINTS)


def test_what_vmap_computes_otherwise_is_noticed(ragged):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, x):
            return self.linear(x) * (2.0 if torch._C._functorch.is_batchedtensor(x) else 1.0)

    with pytest.raises(CannotFuse, match="something else"):
        Runs(ragged, FedAvg, Odd).together(POINTS)


@pytest.mark.parametrize("algorithm", [FedAvg, Scaffold])
@pytest.mark.parametrize("sizes", [(8, 8, 8), (7, 3, 12, 1), (8, 8, 8, 12)])
def test_a_runs_digits_do_not_depend_on_whom_it_runs_with(make_ragged_task, algorithm, sizes):
    """In float32, to the last bit: two of the others' clients may be alike where the run's own are not."""
    data = to_data(make_ragged_task(sizes), torch.device("cpu"), torch.float32)

    def build():
        return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))

    runs = Runs(data, algorithm, build, num_rounds=4, proportion=0.7, batch_size=4)
    points = [{"lr": 0.05 * (1 + seed), "seed": seed} for seed in range(7)]
    expected, _ = runs.together(points, most=7)
    for most, chosen in [(1, [2]), (8, [2]), (2, [5, 2]), (8, [2, 3, 4]), (8, [6, 0, 1, 2])]:
        ends, backend = runs.together([points[i] for i in chosen], most=most)
        assert backend.form == {"backend": "fused", "fuse": most}
        for i, one in zip(chosen, ends, strict=True):
            assert one[2] == expected[i][2]
            for name, tensor in expected[i][1].server.params.items():
                assert torch.equal(tensor, one[1].server.params[name])


class Masked(nn.Module):
    """Keeps a random mask as a plain attribute, which is each run's own."""

    def __init__(self):
        super().__init__()
        self.line, self.mask = nn.Linear(5, 3), (torch.rand(5) > 0.5).double()

    def forward(self, x):
        return self.line(x * self.mask)


def test_what_python_keeps_of_each_run_is_not_another_runs(ragged):
    """The first and the last run are of one seed; the one between is not."""
    with pytest.raises(CannotFuse, match="`model.mask` differs from run to run"):
        Runs(ragged, FedAvg, Masked).together([{"seed": 0}, {"seed": 1}, {"seed": 0}])


class NoisyServer(FedAvg):
    def update_server(self, params, server, message, participation, hyper):
        params, server = super().update_server(params, server, message, participation, hyper)
        return {name: w + 0.01 * torch.randn_like(w) for name, w in params.items()}, server


class DecidingServer(FedAvg):
    def update_server(self, params, server, message, participation, hyper):
        params, server = super().update_server(params, server, message, participation, hyper)
        norm = sum(w.square().sum() for w in params.values())
        return ({name: w / norm for name, w in params.items()} if norm > 1 else params), server


class TriesToDecide(FedAvg):
    def correct(self, grads, params, client, hyper):
        try:
            is_large = float(hyper["mu"]) > 0.5
        except Exception:  # of runs side by side
            is_large = False
        return {name: 0.5 * g if is_large else g for name, g in grads.items()}


class TriesToRead(FedAvg):
    def update_server(self, params, server, message, participation, hyper):
        params, server = super().update_server(params, server, message, participation, hyper)
        try:
            scale = 0.5 if sum(w.abs().sum() for w in params.values()).item() > 1e3 else 1.0
        except Exception:
            scale = 1.0
        return {name: scale * w for name, w in params.items()}, server


@pytest.mark.parametrize(
    "algorithm, why", [(TriesToDecide, r"decides by `hyper\['mu'\]`"), (TriesToRead, "reads a number")]
)
def test_an_error_that_the_users_code_keeps_to_itself_is_found(ragged, algorithm, why):
    runs = Runs(ragged, algorithm)
    runs.numbers = {"mu": 0.1}
    with pytest.raises(CannotFuse, match=why):
        runs.together([{}, {"mu": 0.9}, {}], prepare=lambda fused: fused.prepare({"lr": 0.1, "mu": 0.1}))


class CountingServer(FedAvg):
    rounds = 0

    def update_server(self, params, server, message, participation, hyper):
        self.rounds += 1
        return super().update_server(params, server, message, participation, hyper)


@pytest.mark.parametrize(
    "algorithm, why", [(NoisyServer, "random"), (DecidingServer, "reads a number"), (CountingServer, "rounds` changes")]
)
def test_servers_that_cannot_take_a_step_at_once_run_apart(ragged, algorithm, why):
    with pytest.raises(CannotFuse, match=why):
        Runs(ragged, algorithm).together([{}, {"lr": 0.2}])


def test_a_group_is_tried_before_anything_is_evaluated(ragged):
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * (1 - 0.5**self.calls)

    models = []

    def prepare(backend):
        models.extend(member.loop.model for member in backend._members.values())
        backend.prepare({"lr": 0.1})

    with pytest.raises(CannotFuse, match="`model.calls` changes"):
        Runs(ragged, FedAvg, lambda: Counting(5, 3)).together([{}, {"lr": 0.2}], prepare=prepare)
    assert [model.calls for model in models] == [0, 0]


class InPlaceServer(FedAvg):
    def update_server(self, params, server, message, participation, hyper):
        for name, w in params.items():
            w += 0.9 * message["update"][name]
        return params, server


def test_servers_changed_in_place_are_tried_on_copies(ragged):
    runs = Runs(ragged, InPlaceServer)
    points = [{}, {"lr": 0.02, "seed": 1}]
    together, _ = runs.together(points)
    for values, one in zip(points, together, strict=True):
        assert_same(runs.alone(values), one)
