"""A sampler of the user's own: the module's example in real sweeps, and what is said of one that cannot be made."""

import json
import textwrap
from pathlib import Path

import pytest

from flgo_hydra.study import samplers

SMALL = ("-m", "num_rounds=1", "model=logistic", "task.num_clients=2", "num_steps=1", "hydra/launcher=basic")
NEAR = "hydra.sweeper.sampler={_target_: my_samplers.Near, factor: 0.5}"


@pytest.fixture
def my_samplers(empty_folder):
    text = samplers.__doc__.split("`my_samplers.py`:\n")[1].split("\nrun by")[0]
    (empty_folder / "my_samplers.py").write_text(textwrap.dedent(text) + "\n\ndef nothing():\n    return 3\n")


def _tried(folder):
    """Learning rate and value of each job, in order."""
    results = [json.loads((path / "result.json").read_text()) for path in sorted(Path(folder).glob("[0-9]"))]
    return [(result["option"]["lr"], result["best_valid_loss"]) for result in results]


def test_a_sampler_of_ones_own_chooses_and_goes_on_as_if_never_interrupted(my_samplers, command):
    def search(folder, num):
        asked = (f"hydra.sweeper.n_trials={num}", f"hydra.sweep.dir={folder}", "lr=interval(0.001,0.8)")
        done = command(*SMALL, NEAR, *asked)
        assert done.status == 0, done.err

    search("whole", 4)
    tried = _tried("whole")
    for i in range(1, len(tried)):
        best, _ = min(tried[:i], key=lambda one: one[1])
        assert tried[i][0] == pytest.approx(best / 2, rel=1e-5)
    search("parts", 2)
    search("parts", 4)
    assert _tried("parts") == tried and len(tried) > 1


@pytest.mark.parametrize(
    "setting, words",
    [
        ("{_target_: my_samplers.Mine}", ["`hydra.sweeper.sampler._target_=my_samplers.Mine`", "has no 'Mine'"]),
        ("{_target_: my_sampler.Near}", ["there is no module 'my_sampler'"]),
        ("{_target_: my_samplers.Near, factr: 2}", ["`hydra.sweeper.sampler`: Near(", "factr"]),
        ("{_target_: my_samplers.Near, factor: 2, seed: no}", ["cannot be made", "Near(factor=2, seed='no')"]),
        ("{_target_: my_samplers.nothing}", ["must be a subclass of optuna.samplers.BaseSampler"]),
        ("{name: tpe}", ["must be one of grid, tpe", "{_target_: …}"]),
        ("{_target_: my_samplers.Near}, hydra.sweeper.n_trials", ["`hydra.sweeper.n_trials` must be given"]),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(my_samplers, command, setting, words):
    asked = [f"hydra.sweeper.sampler={setting.partition(', hydra')[0]}", "lr=interval(0.001,0.8)"]
    more = [] if "n_trials" in setting else ["hydra.sweeper.n_trials=3"]
    done = command(*SMALL, *asked, *more, "hydra.sweep.dir=refused")
    assert done.status != 0
    for word in words:
        assert word in done.out + done.err
    assert not Path("refused").exists()
