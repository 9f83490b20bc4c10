"""What clients measure on all of their samples: by hand, whoever trains, and what is refused."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from flgo_hydra.config.option import PLAIN
from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend.fused import FusedBackend, Member
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.evaluation import CHUNK
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.rounds import RoundWork
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state


class Fair(FedAvg):
    """q-FedAvg (Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020, Algorithm 2)."""

    even = ("slope", "step")

    def measure_before(self, at, client, hyper):
        return {"loss": at.mean(at.losses(client.anchor))}

    def finish(self, params, client, num_steps, hyper):
        moved = {name: (w - params[name]) / hyper["lr"] for name, w in client.anchor.items()}
        loss, q = client.facts["loss"], hyper["q"]
        square = sum(m.square().sum() for m in moved.values())
        slope = {name: loss**q * m for name, m in moved.items()}
        return {"slope": slope, "step": {"h": q * loss ** (q - 1) * square + loss**q / hyper["lr"]}}, client.state

    def update_server(self, params, server, message, participation, hyper):
        return {n: w - message["slope"][n] / message["step"]["h"] for n, w in params.items()}, server


class Centred(FedAvg):
    """Steps along the full gradient at the server's model, as Mime does; classes' mean outputs as FedProto's."""

    def measure_before(self, at, client, hyper):
        return at.gradient(client.anchor)

    def correct(self, grads, params, client, hyper):
        return {name: 0.5 * g + 0.5 * client.facts[name] for name, g in grads.items()}

    def measure_after(self, carry, at, client, hyper):
        features, outputs = at.features(carry["model"])
        classes = nn.functional.one_hot(at.y, outputs.shape[1]).to(features)
        return {"prototypes": torch.stack([at.mean(features * own.unsqueeze(-1)) for own in classes.unbind(1)])}

    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        return {**sent, "prototypes": {"sums": client.facts["prototypes"] * client.facts["num_samples"]}}, kept

    def init_server(self, params):
        return {"prototypes": {"sums": torch.zeros(3, 4, dtype=torch.float64)}}

    def update_server(self, params, server, message, participation, hyper):
        params, _ = super().update_server(params, server, message, participation, hyper)
        return params, {"prototypes": message["prototypes"]}


class Carrying(Centred):
    """The same as a program of its clients."""

    def step(self, carry, at, client, hyper):
        model = carry["model"]
        return {"model": at.descend("model", model, self.correct(at.gradient(model), model, client, hyper))}

    def end(self, carry, client, num_steps, hyper):
        return self.finish(carry["model"], client, num_steps, hyper)


BACKENDS = {
    "plain": partial(LoopBackend, engine=PLAIN),
    "recorded": LoopBackend,
    "side by side": partial(VmapBackend, lanes=2),
    "side by side, plain": partial(VmapBackend, lanes=3, engine=PLAIN),
}


def train(data, model, algorithm, build, num_rounds=3, batch_size=5, num_steps=None, **numbers):
    step = LocalStep(algorithm, build_optimizer("sgd"))
    backend = build(model, data, step, LocalWork(batch_size, 2, num_steps, seed=5))
    server = server_state(model, algorithm)
    sizes = np.diff(data.offsets)
    clients = ClientStates(algorithm.init_client(server.params), len(sizes))
    for r in range(1, num_rounds + 1):
        cohort = sample_cohort(sizes, 0.75, "uniform", "other", algorithm.weighting, np.random.default_rng(r))
        server = backend.train(server, clients, cohort, {"lr": 0.1, **numbers}, r)
    return server, backend


def test_q_fedavg_by_hand(by_hand, make_line):
    """Losses at w = 0 are 5 and 4, a step goes to 0.7 and 0.4: slopes 7 and 4, and with q = 1
    h is 49 + 50 and 16 + 40: w = (5 * 7 + 4 * 4) / (99 + 56)."""
    step = LocalStep(Fair(), build_optimizer("sgd"))
    model = make_line()
    backend = LoopBackend(model, by_hand, step, LocalWork(-1, 1, 1, seed=0))
    server = server_state(model, Fair())
    cohort = sample_cohort(np.diff(by_hand.offsets), 1.0, "full", "other", "samples", np.random.default_rng(0))
    server = backend.train(server, ClientStates({}, 2), cohort, {"lr": 0.1, "q": 1.0}, 1)
    assert server.params["weight"].item() == pytest.approx(51 / 155, rel=1e-14)


@pytest.mark.parametrize("algorithm, numbers", [(Fair, {"q": 2.0}), (Centred, {}), (Carrying, {})])
def test_whoever_trains(ragged, make_mlp, algorithm, numbers):
    ends = {name: train(ragged, make_mlp(), algorithm(), build, **numbers) for name, build in BACKENDS.items()}
    plain, _ = ends["plain"]
    for name, (server, backend) in ends.items():
        assert backend.note["backend"] == ("vmap" if name.startswith("side") else "loop")
        for tensors, others in ((plain.params, server.params), *((t, server.state[s]) for s, t in plain.state.items())):
            for key, t in tensors.items():
                torch.testing.assert_close(others[key], t, rtol=0, atol=1e-12)


def test_what_is_measured_afterwards_is_of_the_trained_model(ragged, make_mlp):
    """Everyone takes no step to speak of: sums of the last layer's inputs by class are those of the first model."""
    model = make_mlp()
    algorithm = Centred()
    step = LocalStep(algorithm, build_optimizer("sgd"))
    backend = LoopBackend(model, ragged, step, LocalWork(5, 1, None, seed=5))
    server = server_state(model, algorithm)
    sizes = np.diff(ragged.offsets)
    cohort = sample_cohort(sizes, 1.0, "full", "uniform", "samples", np.random.default_rng(0))
    found = backend.train(server, ClientStates({}, len(sizes)), cohort, {"lr": 1e-300}, 1).state["prototypes"]["sums"]
    with torch.no_grad():
        features = make_mlp()[:2](ragged.x_train)
    for c in range(3):
        total = features[ragged.y_train == c].sum(0) / len(sizes)
        torch.testing.assert_close(found[c], total, rtol=0, atol=1e-13)


@pytest.mark.parametrize("algorithm, numbers", [(Fair, {"q": 2.0}), (Carrying, {})])
def test_several_runs_at_once(ragged, make_mlp, algorithm, numbers, monkeypatch):
    """Each run's clients measure with its own server's model; what they keep is read once a round."""
    sizes = np.diff(ragged.offsets)
    read, get_many = [], ClientStates.get_many
    monkeypatch.setattr(ClientStates, "get_many", lambda *args: read.append(args[1]) or get_many(*args))

    def rounds_of(r, servers, clients):
        return {
            i: RoundWork(
                server,
                clients[i],
                sample_cohort(sizes, (0.5, 0.75)[i], "uniform", "other", "samples", np.random.default_rng(10 * r + i)),
                {"lr": 0.1 * (i + 1), **numbers},
                r,
            )
            for i, server in servers.items()
        }

    def member(seed):
        made = algorithm()
        step, work = LocalStep(made, build_optimizer("sgd")), LocalWork(4, 2, None, seed=seed)
        return Member(made, "sgd", 0.0, 0.0, 0.0, work, LoopBackend(make_mlp(seed), ragged, step, work, engine=PLAIN))

    members = {i: member(i) for i in (0, 1)}
    fused = FusedBackend(make_mlp(), ragged, members, 2)
    alone = {i: member(i) for i in (0, 1)}
    start = {i: server_state(alone[i].loop.model, alone[i].algorithm) for i in (0, 1)}
    ours, theirs = dict(start), dict(start)
    kept = [{i: ClientStates({}, len(sizes)) for i in (0, 1)} for _ in range(2)]
    for r in (1, 2, 3):
        ours = fused.train(rounds_of(r, ours, kept[0]))
        for i, work in rounds_of(r, theirs, kept[1]).items():
            theirs[i] = alone[i].loop.train(work.server, work.clients, work.cohort, work.hyper, r)
    for i in (0, 1):
        for name, p in theirs[i].params.items():
            torch.testing.assert_close(ours[i].params[name], p, rtol=0, atol=1e-12)
    assert len(read) == 3 * 2


def test_a_client_of_many_samples_is_measured_in_parts(make_ragged_task, make_mlp):
    from flgo_hydra.federated.data.on_device import to_data

    n = 2 * CHUNK["cpu"] + 3
    data = to_data(make_ragged_task((n, 2)), torch.device("cpu"), torch.float64)
    model, seen = make_mlp(), []

    class Once(FedAvg):
        def measure_before(self, at, client, hyper):
            seen.append(len(at.x))
            assert not at._model.training
            return {"loss": at.mean(at.losses(client.anchor)), **at.gradient(client.anchor)}

        def finish(self, params, client, num_steps, hyper):
            sent, kept = super().finish(params, client, num_steps, hyper)
            return {**sent, "facts": {"loss": client.facts["loss"], "slope": client.facts["0.weight"]}}, kept

        def update_server(self, params, server, message, participation, hyper):
            self.told = message["facts"]
            return super().update_server(params, server, message, participation, hyper)

    algorithm = Once()
    backend = LoopBackend(model, data, LocalStep(algorithm, build_optimizer("sgd")), LocalWork(-1, 1, 1, 0), PLAIN)
    cohort = sample_cohort(np.array([n]), 1.0, "full", "other", "samples", np.random.default_rng(0))
    backend.train(server_state(model, algorithm), ClientStates({}, 2), cohort, {"lr": 0.1}, 1)
    assert seen[-3:] == [CHUNK["cpu"], CHUNK["cpu"], 3]
    fresh = make_mlp()
    loss = data.mean_criterion(fresh(data.client(0)[0]), data.client(0)[1])
    loss.backward()
    torch.testing.assert_close(algorithm.told["loss"], loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(algorithm.told["slope"], fresh[0].weight.grad, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(
    "returned, message",
    [
        (lambda at: {}, "returns {}"),
        (lambda at: at.mean(at.y.double()), "returns tensor"),
        (lambda at: {"loss": 0.5}, "`loss` is 0.5"),
        (lambda at: {"count": at.y.sum()}, "`count` is tensor"),
        (lambda at: {"num_samples": at.mean(at.y.double())}, "`num_samples` is among the client's `facts` already"),
    ],
)
def test_what_is_no_mean_is_refused(ragged, make_mlp, returned, message):
    class Wrong(Algorithm):
        def measure_before(self, at, client, hyper):
            return returned(at)

    with pytest.raises(Refused, match=f"`measure_before` of Wrong must return means.*{message}"):
        train(ragged, make_mlp(), Wrong(), LoopBackend, 1)
