from dataclasses import replace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from flgo_hydra.study.grid import parse_point, read_grid, read_points


def grid(*overrides):
    return read_grid(OverridesParser.create().parse_overrides(list(overrides)))


@pytest.mark.parametrize(
    "overrides, points",
    [
        (["lr=0.1"], [()]),
        (["lr=0.1,0.01"], [("lr=0.1",), ("lr=0.01",)]),
        (["lr=0.1,0.1"], [()]),  # one value is no axis
        (["seed=range(0,5,2)"], [("seed=0",), ("seed=2",), ("seed=4",)]),
        (["lr=choice(0.1,0.2)", "seed=1"], [("lr=0.1",), ("lr=0.2",)]),
        (
            ["a=1,2", "b=x,y"],
            [("a=1", "b=x"), ("a=1", "b=y"), ("a=2", "b=x"), ("a=2", "b=y")],
        ),
        (["a=1,2", "a=3"], [()]),  # the last one counts
        (["a=3", "a=1,2"], [("a=1",), ("a=2",)]),
        (["model.hidden=[10],[20,30]"], [("model.hidden=[10]",), ("model.hidden=[20,30]",)]),
        (["num_steps=null,5"], [("num_steps=null",), ("num_steps=5",)]),
        (["+algorithm.beta=1,2"], [("+algorithm.beta=1",), ("+algorithm.beta=2",)]),
        (["name='a b',c"], [("name='a b'",), ("name=c",)]),
    ],
)
def test_points_in_order(overrides, points):
    assert grid(*overrides).points() == points


def test_fixed_ones_are_kept_as_they_were_written():
    assert grid("lr=0.1,0.2", "task=mnist5k", "~model", "seed=1,1").fixed == ("task=mnist5k", "~model", "seed=1")


def test_listed_points_are_no_product_but_meet_the_axes():
    listed = read_points(["algorithm=fedprox lr=0.1", ["algorithm=fedavg", "task.path='my data'"]])
    points = replace(grid("seed=0,1", "num_rounds=3"), listed=listed).points()
    assert points == [
        ("algorithm=fedprox", "lr=0.1", "seed=0"),
        ("algorithm=fedprox", "lr=0.1", "seed=1"),
        ("algorithm=fedavg", "task.path='my data'", "seed=0"),
        ("algorithm=fedavg", "task.path='my data'", "seed=1"),
    ]


@pytest.mark.parametrize("wrong", [[3], ["lr"], [["lr=0.1", 2]], [{"lr": 0.1}]])
def test_points_that_are_no_overrides_are_refused(wrong):
    with pytest.raises(ValueError, match="`hydra.sweeper.points` must list points as texts"):
        read_points(wrong)


def test_an_interval_is_refused_with_advice():
    with pytest.raises(ValueError, match=r"lr=interval\(0.001,0.1\).*single values"):
        grid("lr=interval(0.001,0.1)").points()


@pytest.mark.parametrize(
    "text, value",
    [
        ("lr=0.1", 0.1),
        ("lr=1e-1", 0.1),
        ("seed=1", 1),
        ("algorithm=fedavg", "fedavg"),
        ("num_steps=null", None),
        ("save_best=true", True),
        ("model.hidden=[10,20]", "[10, 20]"),
        ("name='a b'", "a b"),
        ("+beta=2", 2),
    ],
)
def test_values_are_typed(text, value):
    key = text.split("=")[0].lstrip("+")
    assert parse_point([text]) == {key: value}
    assert type(parse_point([text])[key]) is type(value)
