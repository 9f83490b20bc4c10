"""What a user's code draws follows the seed, whichever of the process's generators it draws from."""

import random

import numpy as np
import pytest
import torch

from flgo_hydra import app
from flgo_hydra.record.paths import RunPaths
from flgo_hydra.record.result import read_result, read_rounds

CODE = """
import random
import numpy as np
import torch
from torch import nn
from flgo_hydra.federated.algorithm.base import Algorithm

DRAWS = {
    "torch": lambda: float(torch.rand(())), "numpy": lambda: float(np.random.rand()), "python": lambda: random.random()
}

def draws(which):
    return sum(draw() for name, draw in DRAWS.items() if which in (name, "all"))

class Start(nn.Linear):
    def __init__(self, input_shape, num_outputs, which="all"):
        super().__init__(input_shape[0] * input_shape[1] * input_shape[2], num_outputs)
        with torch.no_grad():
            self.weight.fill_(0.01 * draws(which))
    def forward(self, x):
        return super().forward(x.flatten(1))

class Noise(Start):
    def forward(self, x):
        return super().forward(x) * (1 + 0.1 * draws("all")) if self.training else super().forward(x)

class NoisyEvaluation(Start):
    def forward(self, x):
        return super().forward(x) if self.training else super().forward(x) * (1 + 0.1 * draws("all"))

class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(10))

class Finishes(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        message, state = super().finish(params, client, num_steps, hyper)
        scale = 1 + 0.1 * draws("all")
        return {"update": {name: scale * t for name, t in message["update"].items()}}, state

class Serves(Algorithm):
    def init_server(self, params):
        return {"noise": {name: 1e-3 * torch.randn_like(p) for name, p in params.items()}}
    def update_server(self, params, server, message, participation, hyper):
        params, _ = super().update_server(params, server, message, participation, hyper)
        return {n: p + server["noise"][n] + 1e-3 * draws("all") for n, p in params.items()}, server

class Measures:
    def __init__(self):
        self.offset = draws("all")
    def __call__(self):
        return {"own": self.offset + draws("all")}
"""
SMALL = ("num_rounds=4", "model=logistic", "num_steps=2", "task.num_clients=5", "proportion=0.6", "dtype=float64")
MODEL, ALGORITHM = "model=custom model._target_=drawing.", "algorithm=custom algorithm._target_=drawing."
CASES = {
    "initial weights: torch": f"{MODEL}Start +model.which=torch",
    "initial weights: numpy": f"{MODEL}Start +model.which=numpy",
    "initial weights: random": f"{MODEL}Start +model.which=python",
    "lazy weights": f"{MODEL}Lazy",
    "local training": f"{MODEL}Noise",
    "evaluation": f"{MODEL}NoisyEvaluation",
    "finish": f"{ALGORITHM}Finishes",
    "server": f"{ALGORITHM}Serves",
    "own metrics": "metrics=drawing.Measures",
}


@pytest.fixture
def run(make_conf, tmp_path):
    """Runs a case in a folder, and returns what it recorded. The generators were used for something else before."""
    (tmp_path / "drawing.py").write_text(CODE)

    def run(name, case, *overrides):
        draws = len(name)
        torch.manual_seed(draws)
        np.random.seed(draws)
        random.seed(draws)
        app.run(make_conf(*SMALL, *CASES[case].split(), *overrides), tmp_path / name)
        return recorded(tmp_path / name)

    return run


def recorded(folder):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_rounds(RunPaths(folder))]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.few(3)
def test_a_seed_decides_what_is_drawn_everywhere(run, case):
    first = run("a", case)
    assert run("another", case) == first
    other = run("seed", case, "seed=1")
    assert all(one != two for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("case", ["local training", "evaluation", "server", "lazy weights"])
@pytest.mark.few(2)
def test_backends_draw_alike(run, case, tmp_path):
    first = run("loop", case, "engine.backend=loop", "num_rounds=30")
    for line, other in zip(first, run("vmap", case, "engine.backend=vmap", "num_rounds=30"), strict=True):
        assert line == pytest.approx(other, rel=1e-10)
    assert read_result(RunPaths(tmp_path / "vmap")).engine["backend"] in ("loop", "vmap")


@pytest.mark.parametrize("case", ["local training", "evaluation", "finish", "server", "own metrics"])
def test_a_run_that_goes_on_draws_what_it_would_have_drawn(run, case, tmp_path, monkeypatch):
    from flgo_hydra.job.watcher import Watcher

    whole = run("whole", case)
    before = Watcher.finished_round

    def killed(self, state):
        before(self, state)
        if state.round_num == 2:
            self.save(state)
            raise KeyboardInterrupt

    monkeypatch.setattr(Watcher, "finished_round", killed)
    with pytest.raises(KeyboardInterrupt):
        run("part", case)
    monkeypatch.setattr(Watcher, "finished_round", before)
    assert len(recorded(tmp_path / "part")) == 3
    assert run("part", case) == whole


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_ids_above_float32s_reach_an_embedding_as_they_are(make_conf, tmp_path, backend):
    """Two ids that float32 rounds to one: only a model that sees them exactly tells their labels apart."""
    (tmp_path / "words.py").write_text(
        "import numpy as np\nfrom torch import nn\n"
        "def ids():\n"
        "    x = 2**24 + np.random.default_rng(0).integers(0, 2, (200, 3))\n"
        "    x[:, 1:] = 2**24\n"
        "    return {'x_train': x, 'y_train': x[:, 0] - 2**24}\n"
        "class Words(nn.Module):\n"
        "    def __init__(self, num_outputs):\n"
        "        super().__init__()\n"
        "        self.embed, self.out = nn.Embedding(2, 3), nn.Linear(9, num_outputs)\n"
        "    def forward(self, x):\n"
        "        return self.out(self.embed(x % 2).flatten(1))\n"
    )
    options = ("task=custom", "task.source._target_=words.ids", "model=custom", "model._target_=words.Words")
    conf = make_conf(*options, "task.num_clients=4", "num_rounds=30", "proportion=1.0", f"engine.backend={backend}")
    result = app.run(conf, tmp_path / "run")
    assert result.best["test_accuracy"] == 1.0
    assert result.engine["backend"] == backend and result.engine["compiled_batch_sizes"]


def test_what_a_model_returns_is_checked_before_the_first_evaluation(make_conf, tmp_path):
    (tmp_path / "wrong.py").write_text(
        "from torch import nn\n"
        "class Pair(nn.Sequential):\n"
        "    def __init__(self, num_outputs):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, num_outputs))\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x)\n"
        "        return y, y\n"
    )
    with pytest.raises(ValueError, match="The model must return .* a tuple of 2"):
        app.run(make_conf("model=custom", "model._target_=wrong.Pair"), tmp_path / "run")
    assert recorded(tmp_path / "run") == []
