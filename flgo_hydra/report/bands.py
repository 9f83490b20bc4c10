"""A metric by round, a line per value of a key: the mean over seeds in a band."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgo_hydra.report.curves import top_of
from flgo_hydra.report.figure import figure, is_log_spaced, legend_for, line_looks, place_legend, ticks_of
from flgo_hydra.report.groups import Point, group_runs, point_of
from flgo_hydra.report.runs import ABSENT, Run, Value, keys_that_vary, value_text
from flgo_hydra.report.selection import sorted_values
from flgo_hydra.report.statistics import estimate

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


def lines_by(
    runs: Sequence[Run], keys: Sequence[str], over: Sequence[str], curve: str, decides: str, is_max: bool, band: str
) -> tuple[list[Line], list[str]]:
    """A line for each value of `keys`, in order of the values.

    Args:
        over: keys whose values are replicates.
        decides: the metric that chooses a value's setting where further keys vary.
        band: std, ci or range.
    Returns:
        The lines, and the further keys that vary: each line is of its best setting of those.
    """
    others = [key for key in keys_that_vary(runs) if key not in keys and key not in over]
    points = dict.fromkeys(point_of(run, keys) for run in runs)
    ranks = [
        {value: i for i, value in enumerate(sorted_values(point[k] for point in points))} for k in range(len(keys))
    ]
    lines = []
    for point in sorted(points, key=lambda point: [ranks[k][value] for k, value in enumerate(point)]):
        own = [run for run in runs if point_of(run, keys) == point]
        best = group_runs(own, others, [decides], is_max)[0]
        lines.append(_line(point, best.point, best.runs, curve, band))
    return lines, others


def _line(point: Point, setting: Point, runs: Sequence[Run], curve: str, band: str) -> Line:
    in_mean = [run for run in runs if run.row.status not in ("diverged", "failed") and _finite(run, curve)[0]]
    values: dict[float, list[float]] = {}
    for run in in_mean:
        for round_num, value in zip(*_finite(run, curve), strict=True):
            values.setdefault(round_num, []).append(value)
    rounds = sorted(values)
    bands = [_band(values[round_num], band) for round_num in rounds]
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
    )


def _finite(run: Run, curve: str) -> tuple[list[float], list[float]]:
    """Rounds and values of a run's curve where they are finite."""
    pairs = [(line["round"], line[curve]) for line in run.rounds if math.isfinite(line.get(curve, math.nan))]
    return [at for at, _ in pairs], [value for _, value in pairs]


def _band(values: Sequence[float], band: str) -> tuple[float, float, float]:
    found = estimate(values)
    if len(values) == 1:
        return found.mean, found.mean, found.mean
    if band == "range":
        return found.mean, min(values), max(values)
    if band == "ci":
        return found.mean, found.low, found.high
    return found.mean, found.mean - found.std, found.mean + found.std


def draw_bands(
    path: Path,
    lines: Sequence[Line],
    keys: Sequence[str],
    others: Sequence[str],
    over: Sequence[str],
    curve: str,
    band: str,
    is_log: bool = False,
) -> None:
    """Draws the lines. Where not every run reaches a round (early stop, half-finished) the line is dotted."""
    from matplotlib.ticker import MaxNLocator

    numbers = [line.point[0] for line in lines]
    # Many values of one number have a colour scale instead of a legend.
    is_scaled = len(lines) > _MOST_NAMED and len(keys) == 1 and all(_is_number(value) for value in numbers)
    names = [] if is_scaled else [_label(line, keys, others) for line in lines]
    legend = legend_for(names)
    is_many = len(lines) > _MOST_NAMED
    with figure(path, 7.2 + legend.width, max(4.4, legend.height)) as drawn:
        axes = drawn.subplots()
        looks = _scaled_looks(drawn, axes, keys[0], numbers) if is_scaled else line_looks(len(lines))
        for i, (line, look) in enumerate(zip(lines, looks, strict=True)):
            whole, rest = slice(line.num_whole), slice(max(0, line.num_whole - 1), None)
            name = None if is_scaled else names[i]
            width = 1.2 if is_many else 1.8
            axes.plot(line.rounds[whole], line.mean[whole], label=name, linewidth=width, **look)
            if line.num_whole < len(line.rounds):
                axes.plot(line.rounds[rest], line.mean[rest], color=look["color"], linestyle=":", linewidth=1.2)
            if line.count > 1:
                opacity = 0.10 if is_many else 0.18
                axes.fill_between(line.rounds, line.low, line.high, color=look["color"], alpha=opacity, linewidth=0)
        low, high = _limits(lines, curve)
        if is_log and low > 0:
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
        axes.set_ylabel(curve)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.grid(True)
        axes.set_title("\n".join(_title(lines, others, over, band)), loc="left", color="#555555", fontsize=8.5)
        place_legend(drawn, axes, legend)


def _scaled_looks(drawn: Any, axes: Any, key: str, values: Sequence[Value]) -> list[dict[str, Any]]:
    """Colours by size of the value, and the scale beside the axes."""
    import matplotlib

    numbers = [float(value) for value in values if isinstance(value, int | float)]
    kind = matplotlib.colors.LogNorm if is_log_spaced(numbers) else matplotlib.colors.Normalize
    shades = matplotlib.colors.LinearSegmentedColormap.from_list(
        "viridis without its pale end", matplotlib.colormaps["viridis"]([0.92 * i / 255 for i in range(256)])
    )
    scale: Any = matplotlib.cm.ScalarMappable(kind(min(numbers), max(numbers)), shades)
    drawn.colorbar(scale, ax=axes, label=key, pad=0.02).outline.set_visible(False)
    return [{"color": shades(scale.norm(number)), "linestyle": "-"} for number in numbers]


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(line: Line, keys: Sequence[str], others: Sequence[str]) -> str:
    texts = [value_text(line.point[0]) if keys[0] == "algorithm" else f"{keys[0]}={value_text(line.point[0])}"]
    named = [*zip(keys[1:], line.point[1:], strict=True), *zip(others, line.setting, strict=True)]
    texts += [f"{key}={value_text(value)}" for key, value in named if value != ABSENT]
    return " ".join(texts) + (f" ({line.left_out})" if line.left_out else "")


def _title(lines: Sequence[Line], others: Sequence[str], over: Sequence[str], band: str) -> list[str]:
    counts = sorted({line.count for line in lines if line.count})
    told = []
    if counts and counts[-1] > 1:
        number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        told.append(f"mean over {number} runs ({', '.join(over)}); band: {BANDS[band]}")
    if others:
        told.append(f"each at its best {', '.join(others)}")
    if any(line.num_whole < len(line.rounds) for line in lines):
        told.append("dotted: not every run reached it")
    if any(line.broken for line in lines):
        told.append("×: diverged, not in the mean")
    return ["; ".join(told)] if len("; ".join(told)) <= 90 else ["; ".join(told[:1]), "; ".join(told[1:])]


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
