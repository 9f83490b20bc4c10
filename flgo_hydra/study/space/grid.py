"""What varies and what is fixed: a grid's points in order, or the space a sampler chooses from."""

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.types import IntervalSweep
from hydra.core.override_parser.types import Override as Parsed

from flgo_hydra.overrides import Override, line_of, override, texts_of, varied

Value = str | int | float | bool | None

_NUM_DIGITS = 6
"""Significant digits of a value that a sampler chooses from an interval."""


@dataclass(frozen=True)
class Axis:
    """A swept key and its values, as they are written after `key=`."""

    key: str
    values: tuple[str, ...]
    is_range: bool = False
    """numbers at equal distances: `range(1,10)`"""

    @property
    def name(self) -> str:
        """The key as the study calls it: without the `+` that adds it."""
        return Override.read(self.key).key

    @property
    def lines(self) -> list[str]:
        """An override for each value."""
        return [line_of(self.key, text) for text in self.values]

    def texts(self) -> dict[Value, str]:
        """Each value as it is written, by what it is: `{0.1: "0.1", "fedavg": "fedavg"}`."""
        typed = {parse_point([line])[self.name]: text for line, text in zip(self.lines, self.values, strict=True)}
        # 1, 1.0 and true are one key of a dict, but three values.
        return typed if len(typed) == len(self.values) else {text: text for text in self.values}


@dataclass(frozen=True)
class Interval:
    """A swept key that may take any number from `low` to `high`, both included."""

    key: str
    low: float
    high: float
    is_log: bool = False
    line: str = ""
    """as it was written"""

    @property
    def name(self) -> str:
        return Override.read(self.key).key

    @property
    def is_int(self) -> bool:
        return isinstance(self.low, int)

    @property
    def middle(self) -> float:
        mean = math.sqrt(self.low * self.high) if self.is_log else (self.low + self.high) / 2
        return round(mean) if self.is_int else self.rounded(mean)

    def rounded(self, value: float) -> float:
        """With as many digits as people can read; still inside."""
        return min(max(float(f"{value:.{_NUM_DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Grid:
    """The product of the axes, the last one varying fastest, beside intervals and what is fixed.

    Where points are listed, the product is made for each of them in turn.
    """

    fixed: tuple[str, ...]
    axes: tuple[Axis, ...]
    intervals: tuple[Interval, ...] = ()
    listed: tuple[tuple[str, ...], ...] = ()
    """points that are no product, as their overrides (`hydra.sweeper.points`)"""

    def points(self) -> list[tuple[str, ...]]:
        """Every point as its swept overrides, in the order of the axes: `("lr=0.1", "algorithm=fedavg")`.

        Raises:
            ValueError: there is a continuous interval, which no grid has.
        """
        for interval in self.intervals:
            raise ValueError(
                f"`{interval.line}` is an interval, but a grid needs single values. Write them out "
                f"(`{interval.key}=0.1,0.01`, `{interval.key}=range(…)`), or let a sampler choose: "
                "`hydra.sweeper.sampler=tpe hydra.sweeper.n_trials=30`."
            )
        lists = [axis.lines for axis in self.axes]
        return [(*point, *rest) for point in self.listed or ((),) for rest in itertools.product(*lists)]

    def keys(self) -> list[str]:
        """What varies."""
        return [*(axis.key for axis in self.axes), *(interval.key for interval in self.intervals)]

    def split(self, keys: Sequence[str]) -> tuple["Grid", "Grid"]:
        """The grid without these axes, and the grid of these axes alone."""
        rest = tuple(axis for axis in self.axes if axis.name not in keys)
        own = tuple(axis for axis in self.axes if axis.name in keys)
        return replace(self, axes=rest), Grid(self.fixed, own)

    def edges(self) -> list[tuple[str, ...]]:
        """Points that show whether every choice and every end of an interval is lawful by itself, few of them."""
        middle = {i.key: repr(i.middle) for i in self.intervals}
        first = {**{axis.key: axis.values[0] for axis in self.axes}, **middle}
        changes = [(axis.key, value) for axis in self.axes for value in axis.values[1:]]
        changes += [(i.key, repr(end)) for i in self.intervals for end in (i.low, i.high)]
        return [_lines(first), *(_lines({**first, key: value}) for key, value in changes)]

    def write(self, values: Mapping[str, Value]) -> tuple[str, ...]:
        """A point that a sampler has chosen, by name of the key, as overrides."""
        texts = {axis.key: axis.texts()[values[axis.name]] for axis in self.axes}
        return _lines({**texts, **{i.key: repr(values[i.name]) for i in self.intervals}})


def _lines(texts: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(itertools.starmap(line_of, texts.items()))


def read_points(written: Any) -> tuple[tuple[str, ...], ...]:
    """The points of `hydra.sweeper.points`: each a list of overrides, or a text with spaces between them.

    Raises:
        ValueError: it is something else.
    """
    points = []
    for point in written:
        overrides = point.split() if isinstance(point, str) else point
        if not isinstance(overrides, list) or not all(
            isinstance(text, str) and Override.read(text).is_set for text in overrides
        ):
            raise ValueError(
                '`hydra.sweeper.points` must list points as texts, "algorithm=fedprox lr=0.1", or as lists of '
                f"overrides, but got {point!r}."
            )
        points.append(tuple(overrides))
    return tuple(points)


def write_axis(key: str, values: Any) -> str:
    """An axis of `hydra.sweeper.params` as an override: a text is Hydra's grammar (`"0.1,0.01"`, `"range(5)"`); of a
    list each item is a value, and keeps its type: `"true"` is a text, `null` is none.

    Raises:
        ValueError: the list is empty, or an item cannot stand in a config.
    """
    if isinstance(values, list | tuple):
        if not values:
            raise ValueError(f"`hydra.sweeper.params` has no values for `{key}`.")
        return varied(key, values)
    return line_of(key, values) if isinstance(values, str) else override(key, values)


def refuse_twice(grid: Grid) -> None:
    """Refuses a key that listed points set and that is set, or varies, besides: one of the two would never run.

    Raises:
        ValueError: there is one; or a point sets a key twice.
    """
    besides = {Override.read(text).key: text for text in grid.fixed}
    besides |= {axis.name: line_of(axis.key, ",".join(axis.values)) for axis in grid.axes}
    besides |= {interval.name: interval.line for interval in grid.intervals}
    for point in grid.listed:
        names = [Override.read(text).key for text in point]
        for name, text in zip(names, point, strict=True):
            if name in besides:
                raise ValueError(
                    f"`hydra.sweeper.points` sets `{name}` (`{text}`), and so does `{besides[name]}`: only one of them "
                    "would count. Drop one of the two."
                )
            if names.count(name) > 1:
                raise ValueError(f"The point `{' '.join(point)}` of `hydra.sweeper.points` sets `{name}` twice.")


def refuse_repeated(overrides: Iterable[Parsed]) -> None:
    """Refuses values that a command lists for a key that it sets again: they would never run.

    Raises:
        ValueError: there are some.
    """
    swept: dict[str, str] = {}
    for one in overrides:
        line = str(one.input_line)
        key = Override.read(line).key
        if swept.get(key, line) != line:
            raise ValueError(f"`{key}` is given twice, `{swept[key]}` and `{line}`: only the last would count.")
        if one.is_sweep_override():
            swept[key] = line


def read_grid(overrides: Iterable[Parsed]) -> Grid:
    """Splits parsed overrides into what varies and what is fixed. Of a key given twice the last one counts.

    Raises:
        ValueError: an empty axis, an empty interval, or a tag that nobody reads.
    """
    fixed: dict[str, str] = {}
    axes: dict[str, Axis] = {}
    intervals: dict[str, Interval] = {}
    for one in overrides:
        key = one.get_key_element()
        for earlier in (fixed, axes, intervals):
            earlier.pop(key, None)
        line = one.input_line
        assert line is not None
        if not one.is_sweep_override():
            fixed[key] = line
            continue
        sweep: Any = one.value()
        unread: set[str] = getattr(sweep, "tags", set()) - ({"log"} if one.is_interval_sweep() else set())
        if unread:
            raise ValueError(
                f"`{line}` has the tag {', '.join(sorted(unread))}, which means nothing here. "
                f"There is one tag: `{key}=tag(log,interval(0.001,0.1))`."
            )
        if one.is_interval_sweep():
            intervals[key] = _read_interval(key, sweep, line)
            continue
        values = tuple(dict.fromkeys(one.sweep_string_iterator()))
        if not values:
            raise ValueError(f"`{line}` has no values.")
        if len(values) == 1 and not one.is_range_sweep():
            fixed[key] = line_of(key, values[0])
        else:
            axes[key] = Axis(key, values, is_range=one.is_range_sweep())
    return Grid(tuple(fixed.values()), tuple(axes.values()), tuple(intervals.values()))


def _read_interval(key: str, sweep: IntervalSweep, line: str) -> Interval:
    low, high = sweep.start, sweep.end
    assert low is not None and high is not None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"`{line}` is empty: `interval(low,high)` needs finite numbers and low < high.")
    if "log" in sweep.tags and low <= 0:
        raise ValueError(f"`{line}` begins at {low}, but a logarithmic interval needs low > 0.")
    return Interval(key, low, high, "log" in sweep.tags, line)


def give_axes(grid: Grid, keys: Iterable[str]) -> Grid:
    """The same grid with fixed keys as axes of one value, where an earlier sweep of the study varied them."""
    wanted = list(keys)
    fixed = texts_of(grid.fixed)
    moved = tuple(Axis(key, (fixed[key],)) for key in wanted if key in fixed)
    gone = {axis.key for axis in moved}
    kept = tuple(text for text in grid.fixed if Override.read(text).name not in gone)
    return replace(grid, fixed=kept, axes=(*moved, *grid.axes))


def description(earlier: Mapping[str, Any], space: Grid, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """What a study is of after this sweep: values of its axes, earlier ones included, and what they have in common."""
    grid = {key: values if isinstance(values, str) else list(values) for key, values in earlier.get("grid", {}).items()}
    for axis in space.axes:
        values = grid.get(axis.key, [])
        grid[axis.key] = list(dict.fromkeys([*(values if isinstance(values, list) else []), *axis.values]))
    grid |= texts_of(interval.line for interval in space.intervals)
    before = earlier.get("fixed")
    kept = fixed if before is None else {key: value for key, value in before.items() if key in fixed}
    return {"grid": grid, "fixed": dict(kept)}


def parse_point(point: Sequence[str]) -> dict[str, Value]:
    """Typed values of a point by key: `{"lr": 0.1, "algorithm": "fedavg"}`. Lists and dicts become JSON text."""
    return dict(_parse_one(text) for text in point)


@functools.lru_cache(maxsize=100_000)
def _parse_one(text: str) -> tuple[str, Value]:
    one = Override.read(text)
    return one.key, _scalar(one.value)


def _scalar(value: Any) -> Value:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    return str(value)


def read_choices(
    points: Iterable[Sequence[str]], group_options: Callable[[str], Sequence[str]]
) -> dict[str, list[Value]]:
    """Every value that a swept key may take: a group's all choices, so that a study can grow by one later."""
    choices: dict[str, dict[tuple[str, Value], None]] = {}
    for point in points:
        for key, value in parse_point(point).items():
            if key not in choices:
                choices[key] = {("str", option): None for option in group_options(key)}
            choices[key][(type(value).__name__, value)] = None  # 1, 1.0 and True are equal
    return {key: [value for _, value in values] for key, values in choices.items()}


def label(point: Sequence[str]) -> str:
    """How a point is called in tables and pictures."""
    return " ".join(point) if point else "(no swept key)"
