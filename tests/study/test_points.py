"""Every point is composed as Hydra would compose it, and checked, before anything runs."""

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from flgo_hydra import compose
from flgo_hydra.study.grid import read_grid
from flgo_hydra.study.points import PointComposer, check_points


@pytest.fixture
def composer(empty_folder):
    """A PointComposer on our conf/, while Hydra is initialised."""
    compose.prepare()
    GlobalHydra.instance().clear()
    base = {k: v for k, v in compose.hydra_main_arguments().items() if k == "version_base"}
    with initialize_config_dir(config_dir=str(compose.conf_dir()), **base):
        loader = GlobalHydra.instance().config_loader()
        yield lambda *fixed: PointComposer(loader, "config", fixed)


def points_of(composer, *overrides):
    loader = GlobalHydra.instance().config_loader()
    grid = read_grid(OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)))
    return check_points(composer(*grid.fixed), grid)


@pytest.mark.parametrize(
    "overrides",
    [
        ["lr=0.3"],
        ["algorithm=fedprox", "algorithm.mu=0.7"],
        ["task=mnist5k", "task/partition=dirichlet", "task.partition.alpha=0.3", "seed=3"],
        ["model=mlp", "model.hidden=[5,6]"],
        ["num_steps=null"],
        ["+hydra.job.env_set.X=1"],
        ["task.path=${task.name}"],
    ],
)
def test_a_point_is_what_hydra_composes(composer, overrides):
    assert OmegaConf.to_container(composer("num_rounds=3").compose(overrides)) == OmegaConf.to_container(
        hydra_compose("config", overrides=["num_rounds=3", *overrides])
    )


def test_hydra_composes_once_for_each_combination_of_choices(composer, monkeypatch):
    made = composer()
    calls = []
    original = PointComposer._compose_choices
    monkeypatch.setattr(PointComposer, "_compose_choices", lambda self, key: calls.append(key) or original(self, key))
    for algorithm in ("fedavg", "fedprox"):
        for lr in (0.1, 0.2, 0.3):
            made.compose([f"algorithm={algorithm}", f"lr={lr}"])
    assert calls == [("algorithm=fedavg",), ("algorithm=fedprox",)]


def test_the_same_point_in_other_words_is_one_point(composer):
    assert len(points_of(composer, "lr=0.1,1e-1,0.10,0.2")) == 2
    assert len(points_of(composer, "seed=0,1", "algorithm=fedavg,fedprox")) == 4


def test_fixed_overrides_belong_to_the_identity(composer):
    first = {point.identity for point in points_of(composer, "lr=0.1,0.2")}
    other = {point.identity for point in points_of(composer, "lr=0.1,0.2", "num_rounds=7")}
    assert first.isdisjoint(other)


def test_globs_and_ranges(composer):
    assert len(points_of(composer, "algorithm=glob(fed*)")) == 2
    assert len(points_of(composer, "seed=range(3)")) == 3


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["lr=0.1,-1"], ["lr > 0", "-1", "lr=-1"]),
        (["lr=0.1,abc"], ["lr", "abc", "Float"]),
        (["lrr=0.1,0.2"], ["lrr", "`lr`"]),
        (["algorithm.mu=0.1,0.2"], ["algorithm.mu", "algorithm=fedprox"]),
        (["task.partition.min_samples=1,100000"], ["min_samples", "100000"]),
        (["task/partition=iid,given"], ["given", "client"]),
        (["algorithm=fedavg,custom"], ["algorithm._target_"]),
        (["experiment=tune,early_stop"], ["experiment=tune", "grid of its own"]),
    ],
)
def test_a_bad_point_is_refused_before_the_first_one_runs(composer, overrides, words):
    with pytest.raises(ValueError) as error:
        points_of(composer, *overrides)
    for word in words:
        assert word in str(error.value)


def test_a_wrong_choice_is_hydras_own_error(composer):
    from hydra.errors import HydraException

    with pytest.raises(HydraException, match="fedavgg"):
        points_of(composer, "algorithm=fedavg,fedavgg")
