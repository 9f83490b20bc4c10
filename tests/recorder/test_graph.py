"""On a GPU: steps captured as CUDA graphs give the rounds of plain steps. Skipped without one."""

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.config.option import PLAIN, EngineConf
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.scaffold import Scaffold
from flgo_hydra.federated.backend import extent
from flgo_hydra.federated.backend.fused import FusedBackend, Member
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.data.on_device import to_data
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.rounds import Evaluation, RoundWork
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state
from flgo_hydra.recorder.graph import Graph

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
CUDA = torch.device("cuda")
WORK = LocalWork(4, 2, None, seed=3)


def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double().to(CUDA)


def train(backend, model, data, algorithm, hyper, num_rounds=3):
    server = server_state(model, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), len(data.offsets) - 1)
    sizes = np.diff(data.offsets)
    for r in range(1, num_rounds + 1):
        cohort = sample_cohort(sizes, 1.0, "full", "other", algorithm.weighting, np.random.default_rng(r))
        server = backend.train(server, clients, cohort, {**hyper, "lr": 0.1 / r}, r)
    return server.params


def test_a_graph_replays_with_what_its_tensors_hold_then():
    x, total = torch.ones(3, device=CUDA), torch.zeros(3, device=CUDA)

    def add():
        total.add_(x)

    graph = Graph(add, lambda: total.zero_(), CUDA)
    total.zero_()
    for value in (1.0, 2.0):
        x.fill_(value)
        graph.replay()
    assert total.tolist() == [3.0] * 3


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("algorithm, hyper", [(FedAvg(), {}), (Scaffold(), {"eta": 0.7})])
@pytest.mark.parametrize("dual_pays", [0.0, 1e9])
def test_rounds_are_the_same(make_ragged_task, monkeypatch, algorithm, hyper, optimizer, dual_pays):
    monkeypatch.setattr(extent, "_DUAL_PAYS", dual_pays)
    data = to_data(make_ragged_task(), CUDA, torch.float64)
    step = LocalStep(algorithm, build_optimizer(optimizer))
    model = build()
    expected = train(LoopBackend(model, data, step, WORK, engine=PLAIN), model, data, algorithm, hyper)
    for make in (
        lambda model: LoopBackend(model, data, step, WORK, engine=EngineConf(graph="on")),
        lambda model: VmapBackend(model, data, step, WORK, lanes=4, engine=EngineConf(graph="on")),
        lambda model: VmapBackend(model, data, step, WORK, lanes=2),
    ):
        model = build()
        backend = make(model)
        params = train(backend, model, data, algorithm, hyper)
        for name, tensor in expected.items():
            torch.testing.assert_close(params[name], tensor, rtol=0, atol=1e-12)
        has_graphs = backend.note.get("why_no_cuda_graph") != "engine.graph=off"
        assert backend.note["cuda_graph"] == has_graphs, backend.note


def test_fused_runs_are_what_they_are_alone(make_ragged_task):
    data = to_data(make_ragged_task(), CUDA, torch.float64)
    algorithm, rates = FedAvg(), [0.1, 0.03, 0.3]
    step = LocalStep(algorithm, build_optimizer("sgd"))
    cohort = sample_cohort(np.diff(data.offsets), 1.0, "full", "other", "samples", np.random.default_rng(0))
    models = [build() for _ in rates]
    loops = [LoopBackend(model, data, step, WORK, engine=PLAIN) for model in models]
    members = {i: Member(algorithm, "sgd", 0.0, 0.0, 0.0, WORK, loop) for i, loop in enumerate(loops)}
    fused = FusedBackend(models[0], data, members, 4, engine=EngineConf(graph="on"))
    works = {
        i: RoundWork(server_state(model, algorithm), ClientStates({}, 4), cohort, {"lr": rates[i]}, 1)
        for i, model in enumerate(models)
    }
    servers = fused.train(works)
    metrics = fused.evaluate({i: Evaluation(server, 0) for i, server in servers.items()})
    assert fused.note["cuda_graph"], fused.note
    for i, loop in enumerate(loops):
        alone = loop.train(works[i].server, works[i].clients, cohort, {"lr": rates[i]}, 1)
        for name, tensor in alone.params.items():
            torch.testing.assert_close(servers[i].params[name], tensor, rtol=0, atol=1e-12)
        assert np.isfinite(metrics[i]["valid_loss"])
