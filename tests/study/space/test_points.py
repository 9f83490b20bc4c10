"""Every point is composed as Hydra would compose it, and checked, before anything runs."""

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode

from flgo_hydra import app, compose
from flgo_hydra.composer import MOST_KEPT, Composer
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.explain import explain
from flgo_hydra.launch.launcher import PackingLauncher
from flgo_hydra.study.space.grid import read_grid
from flgo_hydra.study.space.points import PointChecker, check_points
from flgo_hydra.templates import Templates


@pytest.fixture
def loader(empty_folder):
    compose.prepare()
    GlobalHydra.instance().clear()
    base = {k: v for k, v in compose.hydra_main_arguments().items() if k == "version_base"}
    with initialize_config_dir(config_dir=str(conf_dir()), **base):
        yield GlobalHydra.instance().config_loader()


@pytest.fixture
def points_of(loader):
    """`points_of("lr=0.1,0.2")`: the grid's points on our conf/."""

    def check(*overrides, searchpath=None, composer=None):
        own = [] if searchpath is None else [f"hydra.searchpath=[file://{searchpath}]"]
        config = loader.load_configuration("config", overrides=own, run_mode=RunMode.MULTIRUN)
        parser = OverridesParser.create(config_loader=loader)
        grid = read_grid(parser.parse_overrides(list(overrides)))
        return check_points(PointChecker(composer or Composer(loader, config), config, grid.fixed), grid.points())

    return check


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
    assert len(points_of("algorithm=glob(fedav*)")) == 2
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


class _Queue:
    """Takes the launcher's jobs, and starts none."""

    fuse = 8

    def __init__(self):
        self.jobs = []

    def submit(self, job):
        self.jobs.append(job)

    def refuse(self, job, failure):
        raise AssertionError(failure.message)


@pytest.mark.parametrize(
    "overrides, num_points, num_composed",
    [
        (["lr=range(1,21)"], 20, 20),
        (["algorithm=fedavg,fedprox", "lr=range(1,6)", "seed=0,1"], 20, 20),
        (["model.hidden=" + ",".join(f"[{width}]" for width in range(1, 9))], 8, 8),
        # Ten thousand such configs would not fit into memory: the last ones are composed when they start.
        (["task.seed='${seed}'", "lr=range(1,101)"], 100, 100 + 100 - MOST_KEPT),
    ],
)
@pytest.mark.few(2)
def test_from_check_to_launch_a_point_is_composed_once_and_typed_once(
    points_of, loader, monkeypatch, overrides, num_points, num_composed
):
    launcher, queue = PackingLauncher(), _Queue()
    config = loader.load_configuration("config", overrides=["hydra.sweep.dir=sweep"], run_mode=RunMode.MULTIRUN)
    context = HydraContext(callbacks=Callbacks(), config_loader=loader)
    launcher.setup(hydra_context=context, task_function=app.job, config=config)
    launcher._queue, launcher._num_threads = queue, 1
    monkeypatch.setattr(PointChecker, "refer", lambda *_: ("", ""))  # composes and types nothing
    composed, typed = [], []
    once, to_conf, make = Composer.compose, compose.to_conf, Templates.make

    def count(made, made_by):
        def counting(*args, **kwargs):
            result = made_by(*args, **kwargs)
            made.extend([result] * (result is not None))
            return result

        return counting

    monkeypatch.setattr(Composer, "compose", count(composed, once))
    monkeypatch.setattr(compose, "to_conf", count(typed, to_conf))
    monkeypatch.setattr(Templates, "make", count(typed, make))
    points, fixed = points_of(*overrides, composer=launcher.composer), [text for text in overrides if "$" in text]
    for number, point in enumerate(points):
        launcher.submit([*fixed, *point.overrides], number)
    assert len(points) == num_points == len(queue.jobs) and {job.num for job in queue.jobs} == {*range(num_points)}
    assert all(job.fuse_key for job in queue.jobs)
    assert (len(composed), len(typed)) == (num_composed, num_composed)
