"""A command that is given again with another value of a key adds it to those that the key had."""

import pytest
from omegaconf import OmegaConf

from flgo_hydra.study.kept_grid import grow

CONFIG = OmegaConf.create(
    {
        "seed": 0,
        "num_steps": None,
        "model": {"hidden": [200, 100], "name": "mlp"},
        "device": "cpu",
        "hydra": {"runtime": {"choices": {"algorithm": "fedavg", "experiment": None}}},
    }
)


@pytest.mark.parametrize(
    "recorded, given, grown",
    [
        (["lr=0.1,0.01"], "lr=0.05", "lr=0.1,0.01,0.05"),
        (["lr=0.1,0.01"], "lr=0.01,0.05", "lr=0.1,0.01,0.05"),
        (["lr=0.1,0.01"], "lr=0.1", "lr=0.1,0.01"),
        (["lr=0.1"], "lr=0.05", "lr=0.1,0.05"),
        ([], "seed=2", "seed=0,2"),
        ([], "seed=0", "seed=0"),
        ([], "seed=range(2,4)", "seed=0,2,3"),
        (["seed=range(3)"], "seed=7", "seed=0,1,2,7"),
        (["seed=choice(0,1)"], "seed=2", "seed=0,1,2"),
        ([], "algorithm=scaffold", "algorithm=fedavg,scaffold"),
        (["algorithm=fedavg,fedprox"], "algorithm=scaffold", "algorithm=fedavg,fedprox,scaffold"),
        (["+model.width=1,2"], "model.width=3", "+model.width=1,2,3"),
        (["model.name=mlp,'a b'"], "model.name=x", "model.name=mlp,'a b',x"),
    ],
)
def test_a_value_is_added(recorded, given, grown):
    texts, told = grow(CONFIG, recorded, [given])
    assert texts == [grown]
    assert bool(told) is (grown != given) and all("--only" in line for line in told)


@pytest.mark.parametrize(
    "recorded, given, is_told",
    [
        (["lr=interval(0.1,1)"], "lr=0.5", True),
        (["algorithm=glob(fed*)"], "algorithm=scaffold", True),
        ([], "experiment=tune", False),
        ([], "model.hidden=[100]", False),
        (["device=cpu"], "device=cuda", False),
        (["engine.backend=vmap"], "engine.backend=loop", False),
        ([], "task.data_dir=elsewhere", False),
        ([], "hydra.launcher.slots=4", False),
        ([], "hydra/launcher=basic", False),
        ([], "~model.hidden", False),
    ],
)
def test_what_cannot_be_joined_or_decides_no_numbers_takes_its_place(recorded, given, is_told):
    texts, told = grow(CONFIG, recorded, [given])
    assert texts == [given] and bool(told) is is_told
