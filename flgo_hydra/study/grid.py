"""A grid: what varies, what is fixed, and every point in order."""

import functools
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Axis:
    """A swept key and its values, as they are written after `key=`."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """The product of the axes, the last one varying fastest, beside what is fixed; for each listed point in turn."""

    fixed: tuple[str, ...]
    axes: tuple[Axis, ...]
    listed: tuple[tuple[str, ...], ...] = ()
    """points that are no product, as their overrides (`hydra.sweeper.points`)"""

    def points(self) -> list[tuple[str, ...]]:
        """Every point as its swept overrides, in the order of the axes: `("lr=0.1", "algorithm=fedavg")`."""
        lists = [[f"{axis.key}={value}" for value in axis.values] for axis in self.axes]
        return [(*point, *rest) for point in self.listed or ((),) for rest in itertools.product(*lists)]


def read_points(written: Any) -> tuple[tuple[str, ...], ...]:
    """The points of `hydra.sweeper.points`: each a list of overrides, or a text with spaces between them.

    Raises:
        ValueError: it is something else.
    """
    points = []
    for point in written:
        overrides = point.split() if isinstance(point, str) else point
        if not isinstance(overrides, list) or not all(isinstance(text, str) and "=" in text for text in overrides):
            raise ValueError(
                '`hydra.sweeper.points` must list points as texts, "algorithm=fedprox lr=0.1", or as lists of '
                f"overrides, but got {point!r}."
            )
        points.append(tuple(overrides))
    return tuple(points)


def read_grid(overrides: Iterable[Override]) -> Grid:
    """Splits parsed overrides into axes and fixed ones. Of a key given twice the last one counts.

    Raises:
        ValueError: a continuous interval, which no grid has, or an empty axis.
    """
    fixed: dict[str, str] = {}
    axes: dict[str, Axis] = {}
    for override in overrides:
        key = override.get_key_element()
        fixed.pop(key, None)
        axes.pop(key, None)
        if not override.is_sweep_override():
            assert override.input_line is not None
            fixed[key] = override.input_line
            continue
        if override.is_interval_sweep():
            raise ValueError(
                f"`{override.input_line}` is an interval, but a grid needs single values. "
                f"Write them out (`{key}=0.1,0.01`) or as `{key}=range(…)`."
            )
        values = tuple(dict.fromkeys(override.sweep_string_iterator()))
        if not values:
            raise ValueError(f"`{override.input_line}` has no values.")
        if len(values) == 1 and not override.is_range_sweep():
            fixed[key] = f"{key}={values[0]}"
        else:
            axes[key] = Axis(key, values)
    return Grid(tuple(fixed.values()), tuple(axes.values()))


def give_axes(grid: Grid, keys: Iterable[str]) -> Grid:
    """The same grid with fixed keys as axes of one value, where an earlier sweep of the study varied them."""
    wanted = list(keys)
    fixed = {text.partition("=")[0]: text for text in grid.fixed}
    moved = tuple(Axis(key, (fixed[key].partition("=")[2],)) for key in wanted if key in fixed)
    gone = {axis.key for axis in moved}
    kept = tuple(text for key, text in fixed.items() if key not in gone)
    return replace(grid, fixed=kept, axes=(*moved, *grid.axes))


def parse_point(point: Sequence[str]) -> dict[str, Value]:
    """Typed values of a point by key: `{"lr": 0.1, "algorithm": "fedavg"}`. Lists and dicts become JSON text."""
    return dict(_parse_one(text) for text in point)


@functools.lru_cache(maxsize=100_000)
def _parse_one(text: str) -> tuple[str, Value]:
    override = OverridesParser.create().parse_override(text)
    return override.get_key_element().lstrip("+"), _scalar(override.value())


def _scalar(value: Any) -> Value:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    return str(value)


def label(point: Sequence[str]) -> str:
    """How a point is called in tables and pictures."""
    return " ".join(point) if point else "(no swept key)"
