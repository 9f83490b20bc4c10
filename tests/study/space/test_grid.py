import re
from dataclasses import replace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from flgo_hydra.study.space.grid import parse_point, read_grid, read_points, refuse_repeated, refuse_twice, write_axis


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


@pytest.mark.parametrize(
    "items",
    [
        [None, 3],
        ["true", True, "1", 1, 1.0, "1.5", "null", "none", ""],
        [
            "a,b",
            "x=y",
            "a b",
            " a",
            "it's",
            'say "no"',
            "a\\",
            "[1]",
            "{a:1}",
            "range(3)",
            "${",
            "$",
            "tag(x,1)",
            "é",
            "a#b",
        ],
        [[200], [200, 100], []],
        [{"name": "median", "n_warmup_steps": 5}, None],
        [1e-05, float("inf"), -3, 10**20],
        ["glob(*)", "(", ")", "a:b", "\\'", "~x", "+x", "2026-11-27", "1e3", "off", "TRUE", "nan"],
    ],
)
def test_items_of_a_preset_keep_their_types(items):
    line = write_axis("key", items)
    (axis,) = grid(line).axes
    values = [OverridesParser.create().parse_override(f"key={text}").value() for text in axis.values]
    assert values == items and [type(value) for value in values] == [type(item) for item in items]


@pytest.mark.parametrize("written, line", [("0.1,0.01", "k=0.1,0.01"), ("range(3)", "k=range(3)"), (None, "k=null")])
def test_a_text_of_a_preset_is_a_grid_as_on_the_command_line(written, line):
    assert write_axis("k", written) == line


def test_an_axis_without_values_is_refused():
    with pytest.raises(ValueError, match="`hydra.sweeper.params` has no values for `lr`"):
        write_axis("lr", [])


@pytest.mark.parametrize(
    "points, besides, says",
    [
        (["lr=0.1", "lr=0.2"], ["lr=0.5,0.6"], "sets `lr` (`lr=0.1`), and so does `lr=0.5,0.6`"),
        (["lr=0.1", "seed=1"], ["seed=5"], "sets `seed` (`seed=1`), and so does `seed=5`"),
        (["seed=1", "lr=0.1"], ["lr=interval(0.1,0.2)"], "and so does `lr=interval(0.1,0.2)`"),
        (["algorithm=fedprox"], ["algorithm=fedavg"], "sets `algorithm`"),
        (["+algorithm.beta=1"], ["++algorithm.beta=2,3"], "sets `algorithm.beta`"),
        (["lr=0.1"], ["~lr"], "and so does `~lr`"),
        (["seed=0 lr=0.1 lr=0.2"], [], "The point `seed=0 lr=0.1 lr=0.2` of `hydra.sweeper.points` sets `lr` twice"),
    ],
)
def test_what_listed_points_set_is_set_nowhere_else(points, besides, says):
    with pytest.raises(ValueError) as error:
        refuse_twice(replace(grid(*besides), listed=read_points(points)))
    assert says in str(error.value)


def test_listed_points_may_set_parts_of_what_is_chosen_besides():
    refuse_twice(replace(grid("algorithm=fedprox", "seed=0,1"), listed=read_points(["algorithm.mu=1 lr=2"])))


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["lr=0.1,0.2", "lr=0.5"], "`lr` is given twice, `lr=0.1,0.2` and `lr=0.5`: only the last would count"),
        (["seed=range(3)", "num_rounds=2", "seed=1,2"], "`seed` is given twice"),
        (["+lr=interval(0.1,1)", "lr=1,2"], "`lr` is given twice"),
        (["lr=0.1", "lr=0.1,0.2"], ""),  # a script's default, and what is asked for
        (["lr=0.1,0.2", "lr=0.1,0.2"], ""),
        (["task/partition=iid,dirichlet", "task=digits"], ""),
    ],
)
def test_listed_values_that_would_never_run_are_refused(arguments, says):
    overrides = OverridesParser.create().parse_overrides(arguments)
    if not says:
        refuse_repeated(overrides)
        return
    with pytest.raises(ValueError, match=re.escape(says)):
        refuse_repeated(overrides)
