"""Points whose values were set afterwards are what composing makes of them."""

from dataclasses import asdict

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import open_dict

from flgo_hydra import compose
from flgo_hydra.composer import Composer
from flgo_hydra.templates import Templates


@pytest.fixture
def composer():
    compose.prepare()
    GlobalHydra.instance().clear()
    base = {k: v for k, v in compose.hydra_main_arguments().items() if k == "version_base"}
    with initialize_config_dir(config_dir=str(compose.conf_dir()), **base):
        loader = GlobalHydra.instance().config_loader()
        yield Composer(loader, loader.load_configuration("config", overrides=[], run_mode=RunMode.MULTIRUN))


def composed(composer, overrides):
    config = composer.compose(overrides)
    with open_dict(config):
        del config["hydra"]
    return config, compose.to_conf(config)


def types(value):
    return {key: types(item) if isinstance(item, dict) else type(item) for key, item in value.items()}


@pytest.mark.parametrize(
    "points",
    [
        [("lr=0.1",), ("lr=1",), ("lr=1e-3",)],
        [("batch_size=10", "seed=0"), ("batch_size=0.5", "seed=1"), ("batch_size=64.0", "seed=2")],
        [("num_steps=null",), ("num_steps=3",), ("num_steps=null",)],
        [
            ("task/partition=dirichlet", "task.partition.alpha=1", "task.seed=3", "task.num_clients=5"),
            ("task/partition=dirichlet", "task.partition.alpha=0.1", "task.seed=4", "task.num_clients=6"),
        ],
        [("model=mlp", "model.name=a"), ("model=mlp", "model.name=b")],
        [("algorithm=custom", "algorithm._target_=a.B"), ("algorithm=custom", "algorithm._target_=a.C")],
        [("save_best=true", "early_stop=3"), ("save_best=false", "early_stop=null")],
    ],
)
def test_the_same_config(composer, points):
    first, *others = points
    typed = Templates(composer)
    assert typed.make(first) is None
    template = composed(composer, first)[1]
    typed.learn(first, *composed(composer, first))
    for overrides in (*others, first):
        made, expected = typed.make(overrides), composed(composer, overrides)[1]
        assert made == expected and type(made) is type(expected)
        assert types(asdict(made)) == types(asdict(expected))
        assert compose.fingerprint(made) == compose.fingerprint(expected)
    assert typed.make(first) == template  # nobody has changed it


@pytest.mark.parametrize(
    "first, other",
    [
        (("lr=0.1",), ("lr=-1",)),  # a law
        (("lr=0.1",), ("lr=fast",)),  # a type
        (("lr=0.1",), ("lr=0.1", "seed=1")),  # other keys
        (("lr=0.1",), ("lr=0.1", "algorithm=fedprox")),  # other choices
        (("lr=0.1",), ("lr='${seed}'",)),
        (("model.hidden=[1]",), ("model.hidden=[2]",)),
        (("+model.x=1",), ("+model.x=2",)),
    ],
)
def test_what_is_not_plain_is_composed(composer, first, other):
    typed = Templates(composer)
    config = composer.compose(first)
    with open_dict(config):
        del config["hydra"]
    typed.learn(first, config, compose.to_conf(config, has_known_keys=True))
    assert typed.make(other) is None


def test_a_config_whose_values_decide_others_is_composed(composer):
    typed = Templates(composer)
    config, conf = composed(composer, ["seed=1"])
    config.task.seed = "${seed}"
    typed.learn(["seed=1"], config, conf)
    assert typed.make(["seed=1"]) is None
