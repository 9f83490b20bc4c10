"""A command that is given again with another value of a key adds it to those that the key had."""

import pytest
from omegaconf import OmegaConf

from flgo_hydra.study.space.kept_grid import grow

CONFIG = OmegaConf.create({"lr": 0.1, "hydra": {"sweeper": {"params": {"lr": [0.3, 0.2], "momentum": "0.1,0.9"}}}})
PLAIN = OmegaConf.create({"lr": 0.1, "hydra": {"sweeper": {"params": None}}})


@pytest.mark.parametrize(
    "recorded, given, grown",
    [
        (["lr=0.1,0.01"], "lr=0.05", "lr=0.1,0.01,0.05"),
        (["lr=0.1,0.01"], "lr=0.01,0.05", "lr=0.1,0.01,0.05"),
        (["lr=0.1,0.01"], "lr=0.1", "lr=0.1,0.01"),
        (["seed=range(3)"], "seed=7", "seed=0,1,2,7"),
        (["seed=choice(0,1)"], "seed=range(1,4)", "seed=0,1,2,3"),
        (["algorithm=fedavg,fedprox"], "algorithm=scaffold", "algorithm=fedavg,fedprox,scaffold"),
        (["+model.width=1,2"], "model.width=3", "+model.width=1,2,3"),
        (["model.name=mlp,'a b'"], "model.name=x", "model.name=mlp,'a b',x"),
        (["lr=0.1,0.2"], "lr=0.1,0.2", "lr=0.1,0.2"),
    ],
)
def test_a_value_is_added(recorded, given, grown):
    texts, (told,) = grow(PLAIN, recorded, [given])
    assert texts == [grown] and "--only" in told


@pytest.mark.parametrize(
    "recorded, given, grown",
    [
        ([], "lr=0.5", "lr=0.3,0.2,0.5"),
        ([], "momentum=0.5", "momentum=0.1,0.9,0.5"),
        (["lr=1,2"], "lr=3", "lr=1,2,3"),  # the command line had won
        (["lr=1"], "lr=3", "lr=3"),
    ],
)
def test_to_those_of_a_preset_too(recorded, given, grown):
    assert grow(CONFIG, recorded, [given])[0] == [grown]


@pytest.mark.parametrize(
    "recorded, given", [(["lr=interval(0.1,1)"], "lr=0.5"), (["algorithm=glob(fed*)"], "algorithm=x")]
)
def test_what_cannot_be_joined_takes_its_place_and_says_so(recorded, given):
    texts, (told,) = grow(PLAIN, recorded, [given])
    assert texts == [given] and "takes the place of" in told and recorded[0] in told


@pytest.mark.parametrize(
    "given",
    ["seed=2", "lr=0.5", "num_rounds=20", "hydra.launcher.slots=4", "hydra/launcher=basic", "~model.hidden", "lr="],
)
def test_what_was_not_swept_is_the_studys_to_allow(given):
    assert grow(PLAIN, ["lr=0.1"], [given]) == ([given], [])
