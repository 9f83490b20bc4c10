"""How a run ends: by its own rules, or by an error. Nothing that a user's code raises passes for an end."""

from functools import partial

import pytest
import torch
from torch import nn

from flgo_hydra.config.option import PLAIN, OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend.fused import FusedBackend, Member
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.fused_rounds import run_together
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.rounds import RunState, Status, drive, rounds
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state
from flgo_hydra.federated.users_code import no_silent_end

ENDS = [StopIteration("no more"), StopAsyncIteration(), GeneratorExit(), SystemExit(0), SystemExit()]


class Watcher:
    def evaluated(self, state, is_best):
        pass

    def finished_round(self, state):
        return None


class Raising(nn.Module):
    """Raises in training, or in evaluation, once `raises` is set."""

    def __init__(self, when):
        super().__init__()
        self.linear, self.when, self.raises = nn.Linear(5, 3), when, None

    def forward(self, x):
        if self.raises is not None and self.training == (self.when == "training"):
            raise self.raises
        return self.linear(x)


class RaisingServer(Algorithm):
    raises = None

    def update_server(self, params, server, message, participation, hyper):
        if self.raises is not None:
            raise self.raises
        return super().update_server(params, server, message, participation, hyper)


def make(data, model, algorithm, make_backend=LoopBackend, own_metrics=None):
    option = OptionConf(num_rounds=3, proportion=1.0, batch_size=4, lr=0.1)
    step, work = LocalStep(algorithm, build_optimizer("sgd")), LocalWork(4, 1, None, 0)
    backend = make_backend(model.double(), data, step, work)
    server = server_state(model, algorithm)
    state = RunState(server, ClientStates({}, len(data.offsets) - 1))
    run = rounds(backend, data, algorithm, {}, option, state, Watcher(), own_metrics)
    return run, backend, state, Member(algorithm, "sgd", 0.0, 0.0, 0.0, work, backend)


@pytest.mark.parametrize("raised", ENDS, ids=repr)
@pytest.mark.parametrize(
    "where, make_backend",
    [("training", partial(LoopBackend, engine=PLAIN))]  # recorded steps do not call the model's Python
    + [(w, b) for w in ("evaluation", "metrics", "server") for b in (LoopBackend, partial(VmapBackend, lanes=2))],
)
def test_what_looks_like_an_end_is_an_error(ragged, where, make_backend, raised):
    model, algorithm = Raising(where), RaisingServer()

    def own_metrics(model, state):
        if state.round_num == 2:
            if where == "metrics":
                raise raised
            model.raises = raised if where in ("training", "evaluation") else None
            algorithm.raises = raised if where == "server" else None
        return {}

    run, backend, state, _ = make(ragged, model, algorithm, make_backend, own_metrics)
    with pytest.raises(RuntimeError, match=type(raised).__name__) as failed:
        drive(run, backend, ragged)
    assert failed.value.__cause__ is not None
    assert state.round_num in (2, 3)


def test_a_run_comes_to_its_end(ragged):
    run, backend, state, _ = make(ragged, Raising("training"), FedAvg())
    assert drive(run, backend, ragged) is Status.COMPLETED and state.round_num == 3


@pytest.mark.parametrize("raised", ENDS, ids=repr)
def test_one_of_several_runs_fails_by_itself(ragged, raised):
    """In its own metrics, which are each run's own; the others go on."""

    def own_metrics(model, state):
        if state.round_num == 1:
            raise raised
        return {}

    torch.manual_seed(0)
    made = [make(ragged, nn.Linear(5, 3), FedAvg(), own_metrics=own) for own in (None, own_metrics, None)]
    backend = FusedBackend(made[0][1].model, ragged, {i: one[3] for i, one in enumerate(made)}, 8)
    ends = {}
    run_together({i: one[0] for i, one in enumerate(made)}, backend.train, backend.evaluate, ends.__setitem__)
    assert ends[0] is ends[2] is Status.COMPLETED
    assert isinstance(ends[1], RuntimeError) and type(raised).__name__ in str(ends[1])


@pytest.mark.parametrize("raised", ENDS, ids=repr)
@pytest.mark.parametrize("where", ["train", "evaluate"])
def test_several_runs_do_not_end_where_their_program_fails(ragged, where, raised):
    run, _, _, _ = make(ragged, nn.Linear(5, 3), FedAvg())

    def fail(asked):
        raise raised

    def evaluate(asked):
        return {key: {"valid_loss": 1.0, "test_loss": 1.0} for key in asked}

    ends = {}
    with pytest.raises(RuntimeError, match=type(raised).__name__):
        run_together({0: run}, fail, fail if where == "evaluate" else evaluate, ends.__setitem__)
    assert ends == {}


def test_a_signals_own_end_passes():
    class Terminated(SystemExit):
        pass

    with pytest.raises(Terminated), no_silent_end():
        raise Terminated(143)
    with pytest.raises(KeyboardInterrupt), no_silent_end():
        raise KeyboardInterrupt
