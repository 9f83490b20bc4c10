"""The zoo in float32, with other optimizers, on clients of one size, and for thousands of steps."""

from dataclasses import replace

import pytest

from . import runs
from .algorithms import ALGORITHMS
from .checks import FASTER, TOLERANCE, each, hold
from .models import MODELS
from .test_models import KNOWN

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
]

ORDINARY = [name for name, model in MODELS.items() if model.forms]
"""what test_models.py knows not to hold"""
CHAOTIC = {
    "HalfInside": "bfloat16 rounds to 4e-3",
    "Autocast": "bfloat16 rounds to 4e-3",
    "FakeQuantized": "a step of the grid, where float32 rounds otherwise",
    "OwnFunction": "the sign of what float32 rounds to either side of 0",
    "SignSteps": "the sign of what float32 rounds to either side of 0",
}

EXACT_MODELS = [n for n, m in MODELS.items() if m.expect == "exact" and n not in CHAOTIC]
EXACT_ALGORITHMS = [n for n, e in ALGORITHMS.items() if e.expect == "exact" and n not in CHAOTIC]


@each(EXACT_MODELS, FASTER, KNOWN)
def test_models_in_float32(name, form, tmp_path, monkeypatch):
    model = MODELS[name]
    hold(model.case, form, tmp_path, monkeypatch, "float32", "exact", form in model.forms)


@each(EXACT_ALGORITHMS, FASTER)
def test_algorithms_in_float32(name, form, tmp_path, monkeypatch):
    hold(ALGORITHMS[name].case, form, tmp_path, monkeypatch, "float32")


@pytest.mark.parametrize("form", ["auto", "recorded", "vmap", "fused"])
@pytest.mark.parametrize("name", ORDINARY)
def test_clients_of_one_size(name, form, tmp_path, monkeypatch):
    """No batch is partial, and nothing is masked."""
    hold(replace(MODELS[name].case, sizes="even"), form, tmp_path, monkeypatch)


@pytest.mark.parametrize("form", ["plain", "recorded", "vmap", "fused"])
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.01},
        {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "clip_grad": 0.5},
        {"optimizer": "rmsprop", "lr": 0.01, "momentum": 0.5},
        {"optimizer": "adagrad", "weight_decay": 0.01},
        {"optimizer": "adadelta", "lr": 1.0},
        {"optimizer": "nesterov", "weight_decay": 0.01},
        {"optimizer": "momentum", "clip_grad": 0.3},
    ],
    ids=lambda options: options["optimizer"],
)
@pytest.mark.parametrize("name", ["logistic", "TwoLayers", "SometimesUsed", "UnusedHead", "FrozenBias"])
def test_optimizers_are_torchs(name, options, form, tmp_path, monkeypatch):
    model = MODELS[name]
    case = replace(model.case, name=f"{name} {options['optimizer']}", options=options)
    hold(case, form, tmp_path, monkeypatch, comes_on=form in model.forms)


@pytest.mark.parametrize("name", [*ORDINARY[:4], "BufferAssigned", "Embeds", "CountsInList", "RareBranch"])
def test_thousands_of_steps(name, tmp_path, monkeypatch):
    """3,000 and more, by default settings of the engine, whatever they choose.

    Not batch norm: on pairs of samples it is chaotic, 1e-14 after 10 rounds is 1e-6 after 120, in whichever form.
    """
    case, num_rounds = MODELS[name].case, 250
    ours = runs.alone(case, tmp_path, monkeypatch, num_rounds=num_rounds)
    plain = runs.plain(case, num_rounds=num_rounds)
    assert max(runs.differences(plain, ours.end).values()) < 100 * TOLERANCE["float64"], ours.end.note


def test_the_plain_loop_is_the_same_with_one_model_and_with_copies():
    """Where a model keeps nothing in Python, it does not matter."""
    for name in ("TwoLayers", "batch_norm", "BufferAssigned", "dropout", "TiedBuffers"):
        case = MODELS[name].case
        one = runs.plain(replace(case, is_one_model=True, name=f"{name} as one"))
        assert max(runs.differences(runs.plain(case), one).values()) == 0.0
