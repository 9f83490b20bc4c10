"""What the server receives, for every way to draw a cohort and to weigh it, in every backend."""

from functools import partial

import numpy as np
import pytest
import torch

from flgo_hydra.config.option import PLAIN
from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.algorithm.scaffold import Scaffold
from flgo_hydra.federated.backend.fused import CannotFuse, FusedBackend, Member
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.refused import Refused
from flgo_hydra.federated.rounds import RoundWork
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

FORMS = {
    "plain": partial(LoopBackend, engine=PLAIN),
    "recorded": LoopBackend,
    "vmap": partial(VmapBackend, lanes=3),
    "fused": None,
}
SAMPLES = ["uniform", "md", "full"]
AGGREGATES = ["other", "uniform", "weighted_com", "weighted_scale"]
each_way = pytest.mark.parametrize("sample, aggregate", [(s, a) for s in SAMPLES for a in AGGREGATES])


class Telling(Algorithm):
    """Sends two messages beside the update, each its number of steps, and tells the server what came."""

    even = ("evenly",)

    def init_server(self, params):
        return {"came": {"plain": torch.zeros(()).double(), "evenly": torch.zeros(()).double()}}

    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        told = {entry: {"steps": num_steps} for entry in ("plain", "evenly")}
        return {**sent, **told}, kept

    def update_server(self, params, server, message, participation, hyper):
        came = {entry: message[entry]["steps"] + 0 * next(iter(params.values())).sum() for entry in ("plain", "evenly")}
        return super().update_server(params, server, message, participation, hyper)[0], {"came": came}


class Run:
    def __init__(self, form, data, model, algorithm, hyper):
        step, self.work = LocalStep(algorithm, build_optimizer("sgd")), LocalWork(3, 1, None, seed=2)
        self.data, self.algorithm, self.hyper, self.form = data, algorithm, hyper, form
        self.server = server_state(model, algorithm)
        num_clients = len(data.offsets) - 1
        self.clients = ClientStates(algorithm.init_client(self.server.params), num_clients)
        self.other = ClientStates(algorithm.init_client(self.server.params), num_clients)
        if form == "fused":
            loop = LoopBackend(model, data, step, self.work, engine=PLAIN)
            member = Member(algorithm, "sgd", 0.0, 0.0, 0.0, self.work, loop)
            self.backend = FusedBackend(model, data, {0: member, 1: member}, 8)
        else:
            self.backend = FORMS[form](model, data, step, self.work)

    def train(self, cohort, r):
        if self.form == "fused":
            works = {
                i: RoundWork(self.server, c, cohort, self.hyper, r) for i, c in enumerate([self.clients, self.other])
            }
            self.server = self.backend.train(works)[0]
        else:
            self.server = self.backend.train(self.server, self.clients, cohort, self.hyper, r)


def cohorts(data, sample, aggregate, weighting, num_rounds):
    sizes = np.diff(data.offsets)
    return [
        sample_cohort(sizes, 0.75, sample, aggregate, weighting, np.random.default_rng(r)) for r in range(num_rounds)
    ]


@each_way
@pytest.mark.parametrize("form", FORMS)
def test_scaffolds_control_is_the_mean_of_all_clients_controls(ragged, make_mlp, form, sample, aggregate):
    """Which Algorithm 1 keeps to exactly, whatever the models weigh."""
    run = Run(form, ragged, make_mlp(), Scaffold(), {"lr": 0.05, "eta": 1.0})
    for r, cohort in enumerate(cohorts(ragged, sample, aggregate, "uniform", 3), start=1):
        run.train(cohort, r)
        states = [run.clients.get(k)["control"] for k in range(len(ragged.offsets) - 1)]
        for name, c in run.server.state["control"].items():
            torch.testing.assert_close(c, torch.stack([s[name] for s in states]).mean(0), rtol=0, atol=1e-13)
            assert c.abs().max() > 1e-3


@each_way
@pytest.mark.parametrize("form", FORMS)
def test_entries_beside_the_update_are_means(ragged, make_mlp, form, sample, aggregate):
    run = Run(form, ragged, make_mlp(), Telling(), {"lr": 0.05})
    for r, cohort in enumerate(cohorts(ragged, sample, aggregate, "samples", 2), start=1):
        run.train(cohort, r)
        steps = np.array([-(-n // 3) for n in np.diff(ragged.offsets)])[cohort.clients]
        came = run.server.state["came"]
        assert float(came["plain"]) == pytest.approx(cohort.weights @ steps / cohort.weights.sum(), rel=1e-12)
        assert float(came["evenly"]) == pytest.approx(steps.mean(), rel=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_an_aggregate_needs_an_update_to_weigh(ragged, make_mlp, form, aggregate):
    class Gradients(Algorithm):
        """Sends what it calls otherwise."""

        def finish(self, params, client, num_steps, hyper):
            sent, kept = super().finish(params, client, num_steps, hyper)
            return {"direction": sent["update"]}, kept

        def update_server(self, params, server, message, participation, hyper):
            return {name: p + message["direction"][name] for name, p in params.items()}, server

    run = Run(form, ragged, make_mlp(), Gradients(), {"lr": 0.05})
    (cohort,) = cohorts(ragged, "uniform", aggregate, "samples", 1)
    if aggregate in ("other", "uniform"):
        run.train(cohort, 1)
        return
    with pytest.raises((Refused, CannotFuse), match=r"`update`.*sends 'direction'"):
        run.train(cohort, 1)
