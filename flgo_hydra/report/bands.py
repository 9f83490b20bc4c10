"""A metric by round, a line per value of a key: the mean over seeds in a band, a panel for each condition."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgo_hydra.report.conditions import by_condition
from flgo_hydra.report.curves import top_of
from flgo_hydra.report.figure import (
    Name,
    figure,
    is_log_spaced,
    legend_for,
    line_looks,
    panel_grid,
    place_legend,
    ticks_of,
)
from flgo_hydra.report.over_seeds import Point, group_runs, named, point_of
from flgo_hydra.report.question import Question
from flgo_hydra.report.replicates import Level, estimate_over
from flgo_hydra.report.runs import Run, Value, value_text

_MOST_NAMED = 12
"""lines: more are drawn finer"""
BANDS = {"std": "standard deviation", "ci": "95 % interval of the mean", "range": "lowest to highest"}


@dataclass(frozen=True)
class Line:
    """The curves of one value, taken together."""

    point: Point
    setting: Point
    """of the other keys: the best one of this value, where they vary"""
    rounds: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    num_whole: int
    """so many rounds from the first on every run has: after them the mean is over fewer"""
    count: int
    """runs in the mean"""
    broken: Sequence[tuple[Sequence[float], Sequence[float]]] = ()
    """rounds and finite values of diverged runs, which are in no mean"""
    left_out: str = ""
    """`1 diverged, 1 failed`"""
    condition: Point = ()
    """whose panel it is in"""


@dataclass(frozen=True)
class Plot:
    """What a picture of curves shows."""

    curve: str
    keys: tuple[str, ...]
    """a line for each of their values"""
    panels: tuple[str, ...]
    """conditions, of whose values each has a panel of its own"""
    settings: tuple[str, ...]
    """the further keys that vary: each line is at the best of those"""
    band: str
    """std, ci or range"""
    known: tuple[Name, ...] = ()
    """of all lines of the runs that were read, whether drawn or not"""
    is_log: bool = False

    @property
    def method(self) -> int:
        """Which of the keys has the colours."""
        return self.keys.index("algorithm") if "algorithm" in self.keys else 0

    def name_of(self, point: Point) -> Name:
        """Of a line, for its colour and dash."""
        return point[self.method], (*point[: self.method], *point[self.method + 1 :])


def lines_of(runs: Sequence[Run], plot: Plot, question: Question) -> list[Line]:
    """A line for each value of the keys, in order of the values, condition after condition."""
    lines = []
    for own in by_condition(runs, plot.panels):
        condition = point_of(own[0], plot.panels)
        for same in by_condition(own, plot.keys):
            best = group_runs(same, plot.settings, [], question.over, question.selection)[0]
            point = point_of(same[0], plot.keys)
            lines.append(_line(point, best.point, best.runs, condition, plot, question.over))
    return lines


def _line(point: Point, setting: Point, runs: Sequence[Run], condition: Point, plot: Plot, over: Sequence[str]) -> Line:
    curve = plot.curve
    in_mean = [run for run in runs if run.row.status not in ("diverged", "failed") and _finite(run, curve)[0]]
    values: dict[float, list[tuple[Level, float]]] = {}
    for run in in_mean:
        for round_num, value in zip(*_finite(run, curve), strict=True):
            values.setdefault(round_num, []).append((point_of(run, over), value))
    rounds = sorted(values)
    bands = [_band(values[round_num], over, plot.band) for round_num in rounds]
    num_whole = next((i for i, r in enumerate(rounds) if len(values[r]) < len(in_mean)), len(rounds))
    statuses = Counter(run.row.status for run in runs if run not in in_mean)
    return Line(
        point,
        setting,
        rounds,
        [mean for mean, _, _ in bands],
        [low for _, low, _ in bands],
        [high for _, _, high in bands],
        num_whole,
        len(in_mean),
        [found for run in runs if run.row.status == "diverged" and (found := _finite(run, curve))[0]],
        ", ".join(
            f"{count} {status if status in ('diverged', 'failed') else 'without it'}"
            for status, count in statuses.items()
        ),
        condition,
    )


def _finite(run: Run, curve: str) -> tuple[list[float], list[float]]:
    """Rounds and values of a run's curve where they are finite."""
    pairs = [(line["round"], line[curve]) for line in run.rounds if math.isfinite(line.get(curve, math.nan))]
    return [at for at, _ in pairs], [value for _, value in pairs]


def _band(values: Sequence[tuple[Level, float]], over: Sequence[str], band: str) -> tuple[float, float, float]:
    found = estimate_over(values, over)
    if len(values) == 1:
        return found.mean, found.mean, found.mean
    if band == "range":
        numbers = [value for _, value in values]
        return found.mean, min(numbers), max(numbers)
    if band == "ci":
        is_known = math.isfinite(found.low)
        return found.mean, found.low if is_known else found.mean, found.high if is_known else found.mean
    return found.mean, found.mean - found.std, found.mean + found.std


def draw_bands(path: Path, lines: Sequence[Line], plot: Plot, question: Question) -> None:
    """Draws the lines. Where not every run reaches a round (early stop, half-finished) the line is dotted."""
    conditions = list(dict.fromkeys(line.condition for line in lines))
    parts = [[line for line in lines if line.condition == condition] for condition in conditions]
    numbers = [line.point[0] for line in lines]
    # Many values of one number have a colour scale instead of a legend.
    is_scaled = max(map(len, parts)) > _MOST_NAMED and len(plot.keys) == 1 and all(_is_number(n) for n in numbers)
    legends = [legend_for([] if is_scaled else [_label(line, plot) for line in own]) for own in parts]
    num_columns, num_rows = panel_grid(len(parts))
    width = (7.2 if num_columns == 1 else 5.4) + max(legend.width for legend in legends)
    height = max(4.4 if num_columns == 1 else 3.6, *(legend.height for legend in legends))
    with figure(path, num_columns * width, num_rows * height) as drawn:
        panels = drawn.subplots(num_rows, num_columns, squeeze=False).ravel()
        for axes in panels[len(parts) :]:
            axes.remove()
        for axes, own, legend in zip(panels, parts, legends, strict=False):
            looks = _scaled_looks(plot, own) if is_scaled else None
            looks = looks or line_looks([plot.name_of(line.point) for line in own], plot.known)
            _draw_panel(axes, own, looks, plot, [None if is_scaled else _label(line, plot) for line in own])
            if is_scaled:
                scale = _scale(plot, own)
                drawn.colorbar(scale, ax=axes, label=plot.keys[0], pad=0.02).outline.set_visible(False)
            else:
                place_legend(axes, legend)
            if plot.panels:
                axes.set_title(named(plot.panels, own[0].condition), fontsize=9)
        told = "\n".join(_title(lines, plot, question))
        if plot.panels:
            drawn.suptitle(told, x=0.01, ha="left", color="#555555", fontsize=8.5)
        else:
            panels[0].set_title(told, loc="left", color="#555555", fontsize=8.5)


def _draw_panel(
    axes: Any, lines: Sequence[Line], looks: Sequence[dict[str, Any]], plot: Plot, names: Sequence[str | None]
) -> None:
    from matplotlib.ticker import MaxNLocator

    is_many = len(lines) > _MOST_NAMED
    for line, look, name in zip(lines, looks, names, strict=True):
        whole, rest = slice(line.num_whole), slice(max(0, line.num_whole - 1), None)
        width = 1.2 if is_many else 1.8
        axes.plot(line.rounds[whole], line.mean[whole], label=name, linewidth=width, **look)
        if line.num_whole < len(line.rounds):
            axes.plot(line.rounds[rest], line.mean[rest], color=look["color"], linestyle=":", linewidth=1.2)
        if line.count > 1:
            opacity = 0.10 if is_many else 0.18
            axes.fill_between(line.rounds, line.low, line.high, color=look["color"], alpha=opacity, linewidth=0)
    low, high = _limits(lines, plot.curve)
    if plot.is_log and low > 0:
        axes.set_yscale("log")
        ticks = ticks_of(low, high, is_log=True)
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.yaxis.set_minor_formatter("")
    for line, look in zip(lines, looks, strict=True):
        for rounds, values in line.broken:
            # What flies off ends in a cross on the upper edge.
            shown = [min(max(value, low), high) for value in values]
            end = next((i + 1 for i, value in enumerate(values) if value >= high), len(values))
            axes.plot(rounds[:end], shown[:end], color=look["color"], linewidth=0.8, alpha=0.7)
            axes.plot(rounds[end - 1], shown[end - 1], color=look["color"], marker="x", clip_on=False)
    if low < high:
        axes.set_ylim(low, high)
    axes.set_xlabel("round")
    axes.set_ylabel(plot.curve)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(True)


def _scale(plot: Plot, lines: Sequence[Line]) -> Any:
    """Colours by size of the value, over all that were read."""
    import matplotlib

    values = [method for method, _ in plot.known] + [line.point[0] for line in lines]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    kind = matplotlib.colors.LogNorm if is_log_spaced(numbers) else matplotlib.colors.Normalize
    shades = matplotlib.colors.LinearSegmentedColormap.from_list(
        "viridis without its pale end", matplotlib.colormaps["viridis"]([0.92 * i / 255 for i in range(256)])
    )
    return matplotlib.cm.ScalarMappable(kind(min(numbers), max(numbers)), shades)


def _scaled_looks(plot: Plot, lines: Sequence[Line]) -> list[dict[str, Any]]:
    scale = _scale(plot, lines)
    return [{"color": scale.cmap(scale.norm(float(str(line.point[0])))), "linestyle": "-"} for line in lines]


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(line: Line, plot: Plot) -> str:
    first = value_text(line.point[0])
    texts = [first if plot.keys[0] == "algorithm" else f"{plot.keys[0]}={first}"]
    texts += [named(plot.keys[1:], line.point[1:]), named(plot.settings, line.setting)]
    return " ".join(filter(None, texts)) + (f" ({line.left_out})" if line.left_out else "")


def _title(lines: Sequence[Line], plot: Plot, question: Question) -> list[str]:
    counts = sorted({line.count for line in lines if line.count})
    told = []
    if counts and counts[-1] > 1:
        number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        told.append(f"mean over {number} runs ({', '.join(question.over)}); band: {BANDS[plot.band]}")
    if plot.settings:
        told.append(chosen(plot.settings, question))
    if any(line.num_whole < len(line.rounds) for line in lines):
        told.append("dotted: not every run reached it")
    if any(line.broken for line in lines):
        told.append("×: diverged, not in the mean")
    return ["; ".join(told)] if len("; ".join(told)) <= 90 else ["; ".join(told[:1]), "; ".join(told[1:])]


def chosen(settings: Sequence[str], question: Question) -> str:
    """How each line's setting was chosen, for titles."""
    return f"each at its best {', '.join(settings)} by {question.selection.words}"


def _limits(lines: Sequence[Line], curve: str) -> tuple[float, float]:
    """Ends of the axis: all means and bands, but of a loss not what blew up, nor bands wider than all that is there."""
    means = [value for line in lines for value in line.mean]
    means = means or [value for line in lines for _, values in line.broken for value in values]
    if not means:
        return 0.0, 0.0
    low, high = min(means), max(means)
    top = top_of([line.mean for line in lines if line.mean]) if "loss" in curve else None
    if top is not None:
        high = min(high, top)
    room = 0.25 * (high - low) or 0.05 * abs(high) or 0.05
    lows = [value for line in lines for value in line.low]
    highs = [value for line in lines for value in line.high]
    margin = 0.04 * (high - low)
    lowest = max(min([low, *lows]), low - room) - margin
    highest = min(max([high, *highs]), high + room) + margin
    if "accuracy" in curve:
        return max(lowest, -0.01), min(highest, 1.01)
    return (max(lowest, 0.9 * low) if low > 0 and lowest <= 0 else lowest), highest
