"""Composed quickly or Hydra's way: the same config."""

import pytest
from hydra import initialize_config_dir
from hydra import version as hydra_version
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from flgo_hydra.composer import MOST_KEPT, Composer, without_hydra

ARGUMENTS = {"version_base": "1.3"} if hydra_version.__version__.startswith("1.3") else {}


@pytest.fixture
def loader(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_text("defaults: [_self_, {model: mlp}]\nlr: 0.1\nname: run\ntwice: ${lr}\n")
    (tmp_path / "model" / "mlp.yaml").write_text("hidden: 3\n")
    (tmp_path / "model" / "cnn.yaml").write_text("channels: [1, 2]\n")
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(tmp_path), **ARGUMENTS):
        yield GlobalHydra.instance().config_loader()


@pytest.mark.parametrize(
    "overrides, is_quick",
    [
        (["lr=0.2"], True),
        (["lr=0.2", "lr=1e-3"], True),
        (["name='a b'", "lr=null"], True),
        (["model=cnn", "lr=0.3"], True),
        (["lr=0.3", "model=cnn"], True),
        (["model.hidden=4"], True),
        (["name=run-1"], True),
        ([], True),
        (["+new=1"], True),
        (["++lr=1"], True),
        (["++lr=1", "lr=0.2"], False),
        (["~name", "lr=2"], True),
        (["model.channels=[3]", "model=cnn", "lr=0.2"], True),
        (["model.channels=[3]", "model=cnn", "model.channels.0=4"], True),
        (["+extra={a: 1, b: 2}", "name=other"], True),
        (["model.channels.0=3", "model=cnn"], True),
        (["model.hidden=4", "+model.more={a: 1}"], True),
        (["+model.more={a: 1}", "model.more.a=2"], False),
        (["hydra.job.name=other", "lr=0.2"], False),
    ],
)
@pytest.mark.few(5)
def test_same_as_hydra(loader, overrides, is_quick):
    config = loader.load_configuration("config", ["name=fixed"], RunMode.MULTIRUN)
    sweep_dir = str(config.hydra.sweep.dir)  # answers ${now:}
    composer = Composer(loader, config)
    for _ in range(2):
        composed, expected = composer.compose(overrides), loader.load_sweep_config(config, overrides)
        assert OmegaConf.to_yaml(composed) == OmegaConf.to_yaml(expected)
        assert composed.hydra.sweep.dir == sweep_dir
        for key in ("", "hydra", "hydra.job", "model"):
            nodes = [OmegaConf.select(c, key) if key else c for c in (composed, expected)]
            assert [OmegaConf.is_struct(node) for node in nodes] == [True, True]
    assert bool(composer._bases) == is_quick


def test_what_was_kept_is_taken_once(loader):
    composer = Composer(loader, loader.load_configuration("config", [], RunMode.MULTIRUN))
    points = [[f"lr={number}"] for number in range(MOST_KEPT + 2)]
    made = [composer.typed(point, composer.compose(point)) for point in points]
    for point, one in zip(points, made, strict=True):
        composer.keep(point, one)
    assert composer.take(points[-1]) == (made[-1].cfg, None)  # of another app nothing is typed
    assert composer.take(points[-1])[0] is not made[-1].cfg  # who takes it may change it
    assert composer.take(points[0])[0] is not made[0].cfg and composer.take(points[2])[0] is made[2].cfg
    for point, one in zip(points, made, strict=True):
        assert OmegaConf.to_container(composer.compose(point)) == OmegaConf.to_container(one.cfg)
    assert len({one.identity for one in made}) == len(points)


def test_hydras_node_comes_back_as_it_was(loader):
    config = Composer(loader, loader.load_configuration("config", [], RunMode.MULTIRUN)).compose(["lr=2"])
    before, node = OmegaConf.to_yaml(config), config.hydra
    with pytest.raises(ValueError), without_hydra(config):
        assert "hydra" not in config and config.lr == 2
        raise ValueError
    assert config.hydra is node and OmegaConf.is_struct(config) and OmegaConf.is_struct(node)
    assert OmegaConf.create(OmegaConf.to_yaml(config)) == OmegaConf.create(before)
    assert node._get_full_key("job") == "hydra.job"


@pytest.mark.parametrize("overrides", [["no_such_key=1"], ["model=nothing"], ["model.hidden.x=1"]])
def test_errors_are_hydras(loader, overrides):
    config = loader.load_configuration("config", [], RunMode.MULTIRUN)
    with pytest.raises(Exception) as ours:
        Composer(loader, config).compose(overrides)
    with pytest.raises(Exception) as hydras:
        loader.load_sweep_config(config, overrides)
    assert str(ours.value) == str(hydras.value) and type(ours.value) is type(hydras.value)
