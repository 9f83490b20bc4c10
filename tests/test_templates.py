"""Points whose values were set afterwards are what composing makes of them."""

from dataclasses import asdict

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import open_dict

from flgo_hydra import compose
from flgo_hydra.composer import Composer
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.templates import Templates


@pytest.fixture
def composer():
    compose.prepare()
    GlobalHydra.instance().clear()
    base = {k: v for k, v in compose.hydra_main_arguments().items() if k == "version_base"}
    with initialize_config_dir(config_dir=str(conf_dir()), **base):
        loader = GlobalHydra.instance().config_loader()
        yield Composer(loader, loader.load_configuration("config", overrides=[], run_mode=RunMode.MULTIRUN))


def composed(composer, overrides):
    return composer.typed(overrides, composer.compose(overrides)).conf


def quickly(composer, overrides):
    made = composer.typed_quickly(overrides)
    return None if made is None else made.conf


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
    assert quickly(composer, first) is None
    template = composed(composer, first)
    for overrides in (*others, first):
        made, expected = quickly(composer, overrides), compose.to_conf(_own(composer.compose(overrides)))
        assert made == expected and type(made) is type(expected)
        assert types(asdict(made)) == types(asdict(expected))
        assert composer.typed_quickly(overrides).identity == compose.fingerprint(expected)
    assert quickly(composer, first) == template  # nobody has changed it


@pytest.mark.parametrize(
    "first, other",
    [
        (("lr=0.1",), ("lr=-1",)),  # a law
        (("lr=0.1",), ("lr=fast",)),  # a type
        (("lr=0.1",), ("lr=0.1", "seed=1")),  # other keys
        (("lr=0.1",), ("lr=0.1", "algorithm=fedprox")),  # other choices
        (("lr=0.1",), ("lr='${seed}'",)),
        (("model.hidden=[1]",), ("model.hidden=[2]",)),
        (("model=custom", "model._target_=a.B", "+model.x=1"), ("model=custom", "model._target_=a.B", "+model.x=2")),
    ],
)
def test_what_is_not_plain_is_composed(composer, first, other):
    composed(composer, first)
    assert quickly(composer, other) is None


def test_a_config_whose_values_decide_others_is_composed(composer):
    config = composer.compose(["seed=1"])
    config.task.seed = "${seed}"
    composer.typed(["seed=1"], config)
    assert quickly(composer, ["seed=1"]) is None


def test_few_templates_are_kept(composer, monkeypatch):
    monkeypatch.setattr("flgo_hydra.templates._MOST", 3)
    templates, config = Templates(), _own(composer.compose([]))
    conf = compose.to_conf(config)
    for number in range(4):
        templates.learn((f"choice={number}",), {}, config, conf)
    assert templates.make(("choice=0",), {}) is None and templates.make(("choice=1",), {}) == conf


def _own(config):
    with open_dict(config):
        del config["hydra"]
    return config
