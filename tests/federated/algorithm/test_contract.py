"""What every algorithm keeps to. A new one adds a row to ALGORITHMS."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap

from flgo_hydra.config.option import PLAIN
from flgo_hydra.federated.algorithm.adaptive import FedYogi
from flgo_hydra.federated.algorithm.apfl import APFL
from flgo_hydra.federated.algorithm.base import Algorithm, Client, runs_program
from flgo_hydra.federated.algorithm.ditto import Ditto
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedbabu import FedBABU
from flgo_hydra.federated.algorithm.feddyn import FedDyn
from flgo_hydra.federated.algorithm.fedexp import FedExP
from flgo_hydra.federated.algorithm.fedlc import FedLC
from flgo_hydra.federated.algorithm.fednova import FedNova
from flgo_hydra.federated.algorithm.fedntd import FedNTD
from flgo_hydra.federated.algorithm.fedprox import FedProx
from flgo_hydra.federated.algorithm.fedrep import FedRep
from flgo_hydra.federated.algorithm.fedrod import FedRoD
from flgo_hydra.federated.algorithm.fedsam import FedSAM
from flgo_hydra.federated.algorithm.finetune import Finetune
from flgo_hydra.federated.algorithm.mimelite import MimeLite
from flgo_hydra.federated.algorithm.mofedsam import MoFedSAM
from flgo_hydra.federated.algorithm.moon import Moon
from flgo_hydra.federated.algorithm.perfedavg import PerFedAvg
from flgo_hydra.federated.algorithm.pfedme import PFedMe
from flgo_hydra.federated.algorithm.qfedavg import QFedAvg
from flgo_hydra.federated.algorithm.scaffold import Scaffold
from flgo_hydra.federated.backend import extent
from flgo_hydra.federated.backend.loop import LoopBackend
from flgo_hydra.federated.backend.vmap import VmapBackend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.randomness import Purpose, numpy_generator
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state
from flgo_hydra.record.checkpoint import load_checkpoint, reading_rows, save_checkpoint


class Decaying(Algorithm):
    """Stands for a user's own: another loss, another message, a state of its own."""

    def init_client(self, params):
        return {"visits": {name: torch.zeros(()).to(p.dtype) for name, p in params.items()}}

    def loss(self, outputs, targets, criterion):
        return criterion(outputs, targets) + 0.01 * outputs.square().sum(dim=-1)

    def finish(self, params, client, num_steps, hyper):
        sent, _ = super().finish(params, client, num_steps, hyper)
        visits = {name: v + 1 for name, v in client.state["visits"].items()}
        return {"update": {n: u / visits[n] for n, u in sent["update"].items()}}, {"visits": visits}


class Median(FedAvg):
    """Stands for a server's rule that asks for all messages."""

    def combine(self, messages, weights, hyper):
        return {key: {name: t.quantile(0.5, dim=0) for name, t in ts.items()} for key, ts in messages.items()}


class Inner(FedAvg):
    """Several descents a step, along another model's path; phases, facts and numbers that clients share."""

    def init_client(self, params):
        return {"theta": params, "rounds": {"n": torch.zeros(())}}

    def begin(self, client, hyper):
        return {"model": client.anchor, "theta": client.state["theta"]}

    def step(self, carry, at, client, hyper):
        w, theta = carry["model"], carry["theta"]
        for _ in range(2):
            pull = {n: g + hyper["lam"] * (theta[n] - w[n]) for n, g in at.gradient(theta).items()}
            theta = at.descend("theta", theta, pull)
        scale = 0.1 + client.facts["label_counts"][0] / client.facts["num_samples"]
        is_first = at.is_among_first(0.5)
        moved = {n: p - scale * (p - theta[n]) for n, p in w.items()}
        return {"model": {n: torch.where(is_first, moved[n], p) for n, p in w.items()}, "theta": theta}

    def end(self, carry, client, num_steps, hyper):
        sent, _ = self.finish(carry["model"], client, num_steps, hyper)
        return sent, {"theta": carry["theta"], "rounds": {"n": client.state["rounds"]["n"] + 1}}


ALGORITHMS = {
    "fedavg": (FedAvg(), {}),
    "fedprox": (FedProx(), {"mu": 0.3}),
    "scaffold": (Scaffold(), {"eta": 0.7}),
    "own": (Decaying(), {}),
    "median": (Median(), {}),
    "inner": (Inner(), {"lam": 0.7}),
    "ditto": (Ditto(), {"lam": 0.6}),
    "fedsam": (FedSAM(), {"rho": 0.2}),
    "moon": (Moon(), {"mu": 2.0, "tau": 0.5}),
    "fedrep": (FedRep(), {"head_share": 0.5}),
    "fedyogi": (FedYogi(), {"eta": 0.05, "beta1": 0.5, "beta2": 0.9, "tau": 0.01}),
    "fednova": (FedNova(), {"mu": 0.3}),
    "feddyn": (FedDyn(), {"alpha": 0.3}),
    "fedexp": (FedExP(), {"eps": 0.01}),
    "mimelite": (MimeLite(), {"beta": 0.5}),
    "mofedsam": (MoFedSAM(), {"rho": 0.2, "beta": 0.5, "eta": 1.0}),
    "pfedme": (PFedMe("2"), {"lam": 3.0, "inner_lr": 0.1, "beta": 1.5}),
    "perfedavg": (PerFedAvg(), {"alpha": 0.2, "delta": 0.001}),
    "fedrod": (FedRoD(), {}),
    "apfl": (APFL(adaptive=True), {"alpha": 0.5}),
    "fedbabu": (FedBABU(), {}),
    "finetune": (Finetune(), {}),
    "fedlc": (FedLC(), {"tau": 1.0}),
    "fedntd": (FedNTD(), {"beta": 1.0, "tau": 1.0}),
    "qfedavg": (QFedAvg(), {"q": 1.0}),
}
OPTIMIZERS = ["sgd", "momentum", "adam"]
BACKENDS = {
    "plain": partial(LoopBackend, engine=PLAIN),
    "compiled": LoopBackend,
    "vmap": partial(VmapBackend, lanes=2),  # three clients: two, and one beside an empty lane
    "vmap, all at once": partial(VmapBackend, lanes=3),
    "vmap, plain": partial(VmapBackend, lanes=3, engine=PLAIN),
    "vmap, steps lie ready": partial(VmapBackend, lanes=2, plans=True),  # as on a GPU
    "vmap, plain, steps lie ready": partial(VmapBackend, lanes=3, engine=PLAIN, plans=True),
}
each_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


class Federation:
    """A few rounds of one algorithm over clients of different sizes."""

    def __init__(
        self, data, model, name, optimizer="sgd", clip_grad=0.0, batch_size=3, weight_decay=0.0, backend="compiled"
    ):
        self.algorithm, numbers = ALGORITHMS[name]
        self.hyper = {"lr": 0.1, **numbers}
        self.step = LocalStep(self.algorithm, build_optimizer(optimizer, 0.0, weight_decay), clip_grad)
        self.work = LocalWork(batch_size, 2, None, seed=5)
        self.backend = BACKENDS[backend](model, data, self.step, self.work)
        self.data = data
        self.server = server_state(model, self.algorithm)
        self.clients = ClientStates(self.algorithm.init_client(self.server.params), len(data.offsets) - 1)

    def cohort(self, r, proportion=0.5):
        rng = numpy_generator(5, Purpose.COHORT, r)
        sizes = np.diff(self.data.offsets)
        return sample_cohort(sizes, proportion, "uniform", "other", self.algorithm.weighting, rng)

    def run(self, rounds, proportion=0.5):
        for r in rounds:
            self.server = self.backend.train(self.server, self.clients, self.cohort(r, proportion), self.hyper, r)
        return self.server.params


def difference(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


@each_algorithm
@pytest.mark.few(8)
def test_the_same_seed_gives_the_same_numbers(ragged, make_mlp, name):
    first = Federation(ragged, make_mlp(), name).run(range(1, 5))
    again = Federation(ragged, make_mlp(), name).run(range(1, 5))
    assert difference(first, again) == 0.0


PROGRAMS = [name for name, (algorithm, _) in ALGORITHMS.items() if runs_program(algorithm)]
WHOLLY = ["fedavg", "fedprox", "scaffold", "own", "median", "inner", "ditto", "fedsam", "moon", "fedrep"]
"""Each stands for a way to use the contract; of the others their proofs say what backends do under plain SGD."""
CASES = [
    (name, optimizer, *regular, dual_pays)
    for name in WHOLLY
    if name not in PROGRAMS
    for optimizer in OPTIMIZERS
    for regular in ((0.0, 0.0), (0.5, 0.01))
    for dual_pays in (0.0, 1e9)
] + [
    # which have no dual form
    (name, *case, 0.0)
    for name in WHOLLY
    if name in PROGRAMS
    for case in (("sgd", 0.0, 0.0), ("momentum", 0.5, 0.01), ("adam", 0.0, 0.01))
]
CASES += [(name, "momentum", 0.5, 0.01, 0.0) for name in ALGORITHMS if name not in WHOLLY]


@pytest.mark.parametrize("name, optimizer, clip_grad, weight_decay, dual_pays", CASES)
@pytest.mark.few(12)
def test_backends_give_the_same_rounds(
    ragged, make_mlp, monkeypatch, name, optimizer, clip_grad, weight_decay, dual_pays
):
    """Clients of 7, 3, 12 and 1 samples, whose last batches are partial; lr changes from round to round."""
    monkeypatch.setattr(extent, "_DUAL_PAYS", dual_pays)
    ends = {}
    for backend in BACKENDS:
        federation = Federation(ragged, make_mlp(), name, optimizer, clip_grad, 5, weight_decay, backend)
        for r in (1, 2, 3):
            federation.hyper["lr"] = 0.1 / r
            federation.run([r], proportion=0.75)
        ends[backend] = federation
    assert ends["compiled"].backend.note == {"backend": "loop", "compiled_batch_sizes": [1, 2, 3, 5]}
    is_dual = dual_pays > 0 and optimizer != "adam" and clip_grad == 0
    for backend in ("vmap", "vmap, all at once", "vmap, steps lie ready"):
        note = ends[backend].backend.note
        assert note["backend"] == "vmap" and note["compiled_with_masks"] and "why_not_compiled" not in note
        assert note["dual_layers"] == (["0.weight"] if is_dual else [])
    plain = ends.pop("plain")
    for end in ends.values():
        assert difference(plain.server.params, end.server.params) < 1e-12
        rows = [one.clients.get_many(sorted(one.clients.used)) for one in (plain, end)]
        assert all(difference(rows[0][state], rows[1][state]) < 1e-11 for state in rows[0])


@each_algorithm
@pytest.mark.few(8)
def test_training_moves_the_model(ragged, make_mlp, name):
    federation = Federation(ragged, make_mlp(), name)
    before = {key: p.clone() for key, p in federation.server.params.items()}
    assert difference(before, federation.run([1])) > 1e-3


@each_algorithm
@pytest.mark.few(8)
def test_state_survives_saving(ragged, make_mlp, name, tmp_path):
    """Two rounds, through a file, and two more are four rounds."""
    whole = Federation(ragged, make_mlp(), name).run(range(1, 5))
    first = Federation(ragged, make_mlp(), name)
    first.run(range(1, 3))
    content = {"server": vars(first.server), "clients": first.clients.export()}
    save_checkpoint(tmp_path / "state.pt", "", content, first.clients.rows())
    saved = load_checkpoint(tmp_path / "state.pt", "")
    second = Federation(ragged, make_mlp(seed=9), name)  # another model: everything must come from the file
    second.server = type(second.server)(**saved["server"])
    with reading_rows(tmp_path / "state.pt") as rows:
        second.clients.restore(saved["clients"], rows)
    assert difference(whole, second.run(range(3, 5))) == 0.0


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "scaffold"])
def test_one_client_in_the_first_round_is_local_training(make_ragged_task, make_mlp, name):
    """With one client there is nothing to correct: mu pulls to where it started, control variates are zero."""
    from flgo_hydra.federated.data.on_device import to_data

    data = to_data(make_ragged_task((7,)), torch.device("cpu"), torch.float64)
    federation = Federation(data, make_mlp(), name)
    federation.hyper.update({"mu": 0.0, "eta": 1.0})
    params = federation.run([1], proportion=1.0)
    model = make_mlp()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data.client(0)
    for rows in federation.work.orders(np.array([0, 7]), np.array([0]), 1)[0].batches():
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        sgd.step()
    assert difference(params, {key: p.detach() for key, p in model.named_parameters()}) < 1e-12


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "scaffold", "own"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip_grad, weight_decay", [(0.0, 0.0), (0.5, 0.01)])
def test_the_client_step_runs_under_vmap(ragged, make_mlp, name, optimizer, clip_grad, weight_decay):
    """Two rounds of two clients as lanes of one batch, hyper-parameters as tensors, equal the loop in float64."""
    federation = Federation(ragged, make_mlp(), name, optimizer, clip_grad, -1, weight_decay)
    lanes = Federation(ragged, make_mlp(), name, optimizer, clip_grad, -1, weight_decay)
    model = make_mlp()
    num_steps = 2  # full batches, two epochs

    def client_round(server_params, server, kept, x, y, present, hyper):
        """One lane: `present` marks the client's own samples among the padding."""
        client = Client(server_params, server, kept)

        def objective(params):
            outputs = functional_call(model, params, (x,))
            losses = lanes.algorithm.loss(outputs, y, ragged.criterion)
            return (losses * present).sum() / present.sum()

        params, slots = server_params, lanes.step.start(server_params)
        for count in range(1, num_steps + 1):
            params, slots = lanes.step(params, grad(objective)(params), slots, count, client, hyper)
        return lanes.algorithm.finish(params, client, num_steps, hyper)

    for r in (1, 2):
        expected = federation.run([r])
        cohort = lanes.cohort(r)
        parts = [ragged.client(k) for k in cohort.clients.tolist()]
        longest = max(len(x) for x, _ in parts)

        def pad(tensor, longest=longest):
            return torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])])

        x = torch.stack([pad(part[0]) for part in parts])
        y = torch.stack([pad(part[1]) for part in parts])
        present = torch.stack([pad(torch.ones(len(part[0]), dtype=torch.float64)) for part in parts])
        states = [lanes.clients.get(k) for k in cohort.clients.tolist()]
        kept = {s: {n: torch.stack([state[s][n] for state in states]) for n in states[0][s]} for s in states[0]}
        hyper = {key: torch.full((len(parts),), value, dtype=torch.float64) for key, value in lanes.hyper.items()}
        sent, kept = vmap(client_round, in_dims=(None, None, 0, 0, 0, 0, 0))(
            lanes.server.params, lanes.server.state, kept, x, y, present, hyper
        )
        weights = torch.from_numpy(cohort.weights)
        message = {s: {n: torch.einsum("k,k...->...", weights, t) for n, t in ts.items()} for s, ts in sent.items()}
        params, state = lanes.algorithm.update_server(
            lanes.server.params, lanes.server.state, message, cohort.participation, lanes.hyper
        )
        lanes.server = type(lanes.server)(params, {}, state)
        for lane, k in enumerate(cohort.clients.tolist()):
            lanes.clients.put(k, {s: {n: t[lane] for n, t in ts.items()} for s, ts in kept.items()})
        assert difference(expected, params) < 1e-12
