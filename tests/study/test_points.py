"""Every point is composed as Hydra would compose it, and checked, before anything runs."""

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode

from flgo_hydra import compose
from flgo_hydra.composer import Composer
from flgo_hydra.explain import explain
from flgo_hydra.study.grid import read_grid
from flgo_hydra.study.points import PointChecker, check_points


@pytest.fixture
def points_of(empty_folder):
    """`points_of("lr=0.1,0.2")`: the grid's points on our conf/."""
    compose.prepare()
    GlobalHydra.instance().clear()
    base = {k: v for k, v in compose.hydra_main_arguments().items() if k == "version_base"}
    with initialize_config_dir(config_dir=str(compose.conf_dir()), **base):
        loader = GlobalHydra.instance().config_loader()

        def check(*overrides, searchpath=None):
            own = [] if searchpath is None else [f"hydra.searchpath=[file://{searchpath}]"]
            config = loader.load_configuration("config", overrides=own, run_mode=RunMode.MULTIRUN)
            parser = OverridesParser.create(config_loader=loader)
            grid = read_grid(parser.parse_overrides(list(overrides)))
            return check_points(PointChecker(Composer(loader, config), config, grid.fixed), grid.points())

        yield check


def test_points_keep_their_order_and_their_words(points_of):
    assert [point.overrides for point in points_of("algorithm=fedprox,fedavg", "lr=0.1,0.2")] == [
        ("algorithm=fedprox", "lr=0.1"),
        ("algorithm=fedprox", "lr=0.2"),
        ("algorithm=fedavg", "lr=0.1"),
        ("algorithm=fedavg", "lr=0.2"),
    ]


def test_the_same_point_in_other_words_is_one_point(points_of):
    assert len(points_of("lr=0.1,1e-1,0.10,0.2")) == 2
    assert len(points_of("seed=0,1", "algorithm=fedavg,fedprox")) == 4


def test_fixed_overrides_belong_to_the_identity(points_of):
    first = {point.identity for point in points_of("lr=0.1,0.2")}
    other = {point.identity for point in points_of("lr=0.1,0.2", "num_rounds=7")}
    assert first.isdisjoint(other)


def test_globs_and_ranges(points_of):
    assert len(points_of("algorithm=glob(fed*)")) == 3
    assert len(points_of("seed=range(3)")) == 3


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["lr=0.1,-1"], ["lr > 0", "-1", "lr=-1"]),
        (["lr=0.1,abc"], ["lr", "abc", "number"]),
        (["lrr=0.1,0.2"], ["lrr", "`lr`"]),
        (["algorithm.mu=0.1,0.2"], ["algorithm.mu", "algorithm=fedprox"]),
        (["task/partion=iid,shards"], ["task/partion", "`task/partition`"]),
        (["task.partition.min_samples=1,100000"], ["min_samples", "100000"]),
        (["task/partition=iid,given"], ["given", "client"]),
        (["algorithm=fedavg,custom"], ["algorithm._target_"]),
        (["experiment=tune,early_stop"], ["experiment=tune", "changes the sweep itself"]),
    ],
)
def test_a_bad_point_is_refused_before_the_first_one_runs(points_of, overrides, words):
    with pytest.raises((ValueError, HydraException)) as error:
        points_of(*overrides)
    for word in words:
        assert word in explain(error.value, overrides)


def test_a_wrong_choice_is_hydras_own_error(points_of):
    with pytest.raises(HydraException, match="fedavgg"):
        points_of("algorithm=fedavg,fedavgg")


@pytest.mark.parametrize(
    "overrides, number",
    [
        (["engine.backend=loop,vmap"], 2),
        (["num_threads=1,2", "lr=0.1,0.2"], 4),
        (["save_best=false,true"], 2),
        (["save_best=false,False"], 1),
        (["task.data_dir=clean,noisy"], 2),
        (["task.cache=true,false"], 2),
        (["device=cpu,auto", "checkpoint_interval=null,1"], 4),
        (["lr=0.1,0.10", "engine.compile=auto,off"], 2),
        (["num_threads=1"], 1),
    ],
)
def test_every_swept_value_is_a_point_of_its_own(points_of, overrides, number):
    points = points_of(*overrides)
    assert len({point.identity for point in points}) == len(points) == number


def test_choices_of_a_group_that_differ_in_nothing_that_decides_are_two_points(points_of, empty_folder):
    for name in ("clean", "noisy"):
        text = "# @package _global_\n" + f"task: {{data_dir: {name}}}\n"
        (empty_folder / "experiment").mkdir(exist_ok=True)
        (empty_folder / "experiment" / f"{name}.yaml").write_text(text)
    points = points_of("experiment=clean,noisy", searchpath=empty_folder)
    assert len({point.identity for point in points}) == 2
    assert {point.how["task.data_dir"] for point in points} == {"clean", "noisy"}


def test_where_nothing_but_that_is_swept_a_run_may_go_on_with_another(points_of):
    """As a single run may: a key that decides no numbers is no part of what runs."""
    (one,), (other,) = points_of("num_threads=1"), points_of("num_threads=2")
    assert one.identity == other.identity == one.run_fingerprint
    assert {point.run_fingerprint for point in points_of("num_threads=1,2")} == {one.identity}
