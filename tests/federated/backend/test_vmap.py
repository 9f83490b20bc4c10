"""What clients kept goes on as it is, into a message or into what is kept next, in the loop and side by side."""

import numpy as np
import pytest
import torch

from flgo_hydra.federated.algorithm.base import Algorithm, zeros_like
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.clients import client_state
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.data.on_device import to_data
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.randomness import Purpose, numpy_generator
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state


class Sends(Algorithm):
    """The update of the time before is sent along, and the server adds a half of it."""

    def init_client(self, params):
        return {"last": zeros_like(params)}

    def finish(self, params, client, num_steps, hyper):
        sent, _ = super().finish(params, client, num_steps, hyper)
        return {**sent, "old": client.state["last"]}, {"last": sent["update"]}

    def combine(self, messages, weights, hyper):
        old = messages["old"]
        return super().combine({"update": {n: t + old[n] / 2 for n, t in messages["update"].items()}}, weights, hyper)


class Shifts(Algorithm):
    """The update of two times before pulls the client on."""

    def init_client(self, params):
        return {"last": zeros_like(params), "before": zeros_like(params)}

    def correct(self, grads, params, client, hyper):
        return {name: g - client.state["before"][name] for name, g in grads.items()}

    def finish(self, params, client, num_steps, hyper):
        sent, _ = super().finish(params, client, num_steps, hyper)
        return sent, {"last": sent["update"], "before": client.state["last"]}


@pytest.mark.parametrize("algorithm", [Sends(), Shifts()], ids=["sends", "shifts"])
@pytest.mark.parametrize("lies_in_a_file", [False, True])
def test_what_was_kept_may_be_sent_and_kept(
    make_ragged_task, make_mlp, tmp_path, monkeypatch, algorithm, lies_in_a_file
):
    if lies_in_a_file:
        monkeypatch.setattr(client_state, "IN_MEMORY", 0)
    data = to_data(make_ragged_task((5, 3, 5, 4)), torch.device("cpu"), torch.float64)
    step, work = LocalStep(algorithm, build_optimizer("sgd")), LocalWork(2, 1, None, 0)
    sizes, ends = np.diff(data.offsets), []
    for kind, more in ((LoopBackend, ()), (VmapBackend, (2,))):
        model = make_mlp()
        backend, server = kind(model, data, step, work, *more), server_state(model, algorithm)
        clients = ClientStates(algorithm.init_client(server.params), 4, tmp_path)
        for r in range(1, 5):
            rng = numpy_generator(0, Purpose.COHORT, r)
            cohort = sample_cohort(sizes, 0.75, "uniform", "other", algorithm.weighting, rng)
            server = backend.train(server, clients, cohort, {"lr": 0.1}, r)
        assert "why_not_vmap" not in backend.note
        ends.append((server.params, clients.get_many(range(4))))
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-12)
