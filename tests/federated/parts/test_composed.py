"""Algorithms with parts: what laws say, whoever trains, and what is refused."""

from functools import partial

import numpy as np
import pytest
import torch

from flgo_hydra.config.option import PLAIN
from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.algorithm.ditto import Ditto
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedper import FedPer
from flgo_hydra.federated.algorithm.scaffold import Scaffold
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.parts.base import ServerRule, Transport
from flgo_hydra.federated.parts.build import build_parts
from flgo_hydra.federated.parts.composed import composed, hostile_clients
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state
from flgo_hydra.record.checkpoint import load_checkpoint, reading_rows, save_checkpoint

HERE = "flgo_hydra.federated.parts"
TOP = {"_target_": f"{HERE}.top_k.TopK", "share": 0.3}
FLIP = {"_target_": f"{HERE}.sign_flip.SignFlip", "share": 0.5, "scale": 2.0}
MEDIAN = {"_target_": f"{HERE}.median.Median"}
BACKENDS = {
    "plain": partial(LoopBackend, engine=PLAIN),
    "recorded": LoopBackend,
    "side by side": partial(VmapBackend, lanes=2),
    "side by side, plain": partial(VmapBackend, lanes=3, engine=PLAIN),
}


def train(data, model, algorithm, config, build=LoopBackend, num_rounds=3, proportion=0.75, seed=0, **numbers):
    parts, of_parts = build_parts(config)
    algorithm = composed(algorithm, parts, of_parts, seed)
    backend = build(model, data, LocalStep(algorithm, build_optimizer("sgd")), LocalWork(5, 2, None, seed=5))
    server = server_state(model, algorithm)
    sizes = np.diff(data.offsets)
    clients = ClientStates(algorithm.init_client(server.params), len(sizes))
    for r in range(1, num_rounds + 1):
        cohort = sample_cohort(sizes, proportion, "uniform", "other", algorithm.weighting, np.random.default_rng(r))
        server = backend.train(server, clients, cohort, {"lr": 0.1, **numbers, **of_parts}, r)
    return server, clients, backend


CASES = [
    (FedAvg, {}, {"top": TOP, "flip": FLIP}),
    (FedAvg, {}, {"flip": FLIP, "median": MEDIAN}),
    (Scaffold, {"eta": 0.9}, {"top": TOP, "flip": FLIP, "median": MEDIAN}),
    (Ditto, {"lam": 0.5}, {"a": TOP, "flip": FLIP, "b": TOP}),
    (FedPer, {}, {"top": TOP, "median": MEDIAN}),
]


@pytest.mark.parametrize("algorithm, numbers, config", CASES)
def test_whoever_trains(ragged, make_mlp, algorithm, numbers, config):
    ends = {name: train(ragged, make_mlp(), algorithm(), config, build, **numbers) for name, build in BACKENDS.items()}
    plain, kept, _ = ends["plain"]
    for name, (server, clients, backend) in ends.items():
        assert backend.note["backend"] == ("vmap" if name.startswith("side") else "loop"), backend.note
        assert ("why_not_compiled" in backend.note) == ("plain" in name)
        for key, p in plain.params.items():
            torch.testing.assert_close(server.params[key], p, rtol=0, atol=1e-12)
        theirs = clients.get_many(range(4))
        for state, tensors in kept.get_many(range(4)).items():
            for key, rows in tensors.items():
                torch.testing.assert_close(theirs[state][key], rows, rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm, numbers", [(FedAvg, {}), (Scaffold, {"eta": 0.9}), (Ditto, {"lam": 0.5})])
@pytest.mark.parametrize(
    "config", [{"top": {**TOP, "share": 1.0}}, {"flip": {**FLIP, "share": 0.0}}, {"flip": {**FLIP, "scale": -1.0}}]
)
def test_parts_that_do_nothing_change_nothing(ragged, make_mlp, algorithm, numbers, config):
    plain, _, _ = train(ragged, make_mlp(), algorithm(), {}, **numbers)
    server, _, _ = train(ragged, make_mlp(), algorithm(), config, **numbers)
    for key, p in plain.params.items():
        torch.testing.assert_close(server.params[key], p, rtol=0, atol=1e-15)


def test_all_hostile_walk_the_other_way(ragged, make_mlp):
    """From the same model, for one round."""
    plain, _, _ = train(ragged, make_mlp(), FedAvg(), {}, num_rounds=1)
    flipped, _, _ = train(ragged, make_mlp(), FedAvg(), {"f": {**FLIP, "share": 1.0, "scale": 3.0}}, num_rounds=1)
    for key, start in ((name, p.detach()) for name, p in make_mlp().named_parameters()):
        torch.testing.assert_close(flipped.params[key] - start, -3 * (plain.params[key] - start), rtol=0, atol=1e-14)


def test_what_is_not_sent_is_remembered_beside_what_the_algorithm_keeps(ragged, make_mlp):
    server, clients, _ = train(ragged, make_mlp(), Ditto(), {"top": TOP}, num_rounds=1, proportion=1.0, lam=0.5)
    whole, _, _ = train(ragged, make_mlp(), Ditto(), {}, num_rounds=1, proportion=1.0, lam=0.5)
    states = [clients.get(k) for k in range(4)]
    weights = np.diff(ragged.offsets) / ragged.offsets[-1]
    for key, p in whole.params.items():
        left = sum(w * state["parts.top"][key] for w, state in zip(weights, states, strict=True))
        torch.testing.assert_close(server.params[key] + left, p, rtol=0, atol=1e-14)
    assert all(set(state) == {*Ditto().init_client(server.params), "parts.top"} for state in states)


def test_fedavg_with_parts_is_as_fast_as_fedavg(ragged, make_mlp, monkeypatch):
    """Its steps are FedAvg's: a dual form, where that pays."""
    from flgo_hydra.federated.backend import extent

    monkeypatch.setattr(extent, "_DUAL_PAYS", 1e9)
    _, _, backend = train(ragged, make_mlp(), FedAvg(), {"top": TOP, "m": MEDIAN}, BACKENDS["side by side"])
    assert backend.note["dual_layers"] == ["0.weight"] and backend.note["compiled_with_masks"]


def test_what_is_remembered_survives_a_checkpoint(ragged, make_mlp, tmp_path):
    """Two rounds, through a file, and two more are four rounds."""
    config = {"top": TOP, "flip": FLIP}
    whole, _, _ = train(ragged, make_mlp(), Scaffold(), config, num_rounds=4, eta=0.9)
    server, clients, _ = train(ragged, make_mlp(), Scaffold(), config, num_rounds=2, eta=0.9)
    content = {"server": vars(server), "clients": clients.export()}
    save_checkpoint(tmp_path / "state.pt", "", content, clients.rows())
    saved = load_checkpoint(tmp_path / "state.pt", "")
    parts, numbers = build_parts(config)
    algorithm = composed(Scaffold(), parts, numbers, 0)
    backend = LoopBackend(make_mlp(9), ragged, LocalStep(algorithm, build_optimizer("sgd")), LocalWork(5, 2, None, 5))
    server = type(server)(**saved["server"])
    clients = ClientStates(algorithm.init_client(server.params), 4)
    with reading_rows(tmp_path / "state.pt") as rows:
        clients.restore(saved["clients"], rows)
    for r in (3, 4):
        sizes = np.diff(ragged.offsets)
        cohort = sample_cohort(sizes, 0.75, "uniform", "other", algorithm.weighting, np.random.default_rng(r))
        server = backend.train(server, clients, cohort, {"lr": 0.1, "eta": 0.9, **numbers}, r)
    assert all(torch.equal(server.params[name], p) for name, p in whole.params.items())


def test_who_is_hostile_is_the_seeds_and_the_parts_own():
    parts, numbers = build_parts({"a": {**FLIP, "share": 0.29}, "b": {**FLIP, "share": 0.1}})
    shares = {name: numbers[f"parts.{name}.share"] for name in "ab"}
    who = hostile_clients(parts, shares, 100, 3)
    assert [len(who[name]) for name in "ab"] == [29, 10] and len(set(who["a"])) == 29
    again, other = hostile_clients(parts, shares, 100, 3), hostile_clients(parts, shares, 100, 4)
    assert all((who[name] == again[name]).all() for name in "ab") and list(who["a"]) != list(other["a"])
    assert list(who["a"][:10]) != list(who["b"])


class Crooked(Transport):
    def send(self, update, kept, client, hyper):
        return {name: t[:1] for name, t in update.items()}, kept


class Summing(ServerRule):
    def combine(self, messages, weights, hyper):
        return messages


class Silent(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        return {"weights": params}, client.state

    def update_server(self, params, server, message, participation, hyper):
        return message["weights"], server


class OwnRule(FedAvg):
    def combine(self, messages, weights, hyper):
        return {entry: {name: t[0] for name, t in ts.items()} for entry, ts in messages.items()}


@pytest.mark.parametrize(
    "algorithm, config, message",
    [
        (FedAvg(), {"x": {"_target_": f"{__name__}.Crooked"}}, "`send` of `parts.x` must keep names and shapes"),
        (FedAvg(), {"x": {"_target_": f"{__name__}.Summing"}}, "`combine` of `parts.x` must return '0.weight'"),
        (Silent(), {"top": TOP}, "`parts.top` works on the entry `update` of messages, which have none"),
        (OwnRule(), {"m": MEDIAN}, "`parts.m` is a rule over all messages, but OwnRule has one of its own"),
    ],
)
def test_what_does_not_go_together(ragged, make_mlp, algorithm, config, message):
    with pytest.raises(Refused, match=message):
        train(ragged, make_mlp(), algorithm, config)
