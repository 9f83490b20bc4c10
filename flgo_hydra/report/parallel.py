"""Parallel coordinates: an axis per key, a line per run, coloured by what it came to."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgo_hydra.report.conditions import by_condition
from flgo_hydra.report.figure import BEST, MISSING, figure, is_log_spaced, shade_range, ticks_of
from flgo_hydra.report.formats import number_text
from flgo_hydra.report.over_seeds import Point, named, point_of
from flgo_hydra.report.question import Question
from flgo_hydra.report.runs import ABSENT, Run, Value, value_text
from flgo_hydra.report.selection import sorted_values

_MOST_TICKS = 8
_MOST_BEST = 6
_LETTERS_PER_INCH = 13
"""of a legend"""


@dataclass(frozen=True)
class Scale:
    """Where values lie on an axis from 0 to 1."""

    places: dict[Value, float]
    ticks: Sequence[tuple[float, str]]
    is_log: bool = False


def scale_of(values: Sequence[Value]) -> Scale:
    """Words at equal distances; numbers by size, or by their logarithm where those are more evenly spaced."""
    distinct = sorted_values(values)
    numbers = [value for value in distinct if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(distinct) or len(distinct) == 1:
        step = 1 / max(1, len(distinct) - 1)
        places = {value: i * step if len(distinct) > 1 else 0.5 for i, value in enumerate(distinct)}
        return Scale(places, [(place, value_text(value)) for value, place in places.items()])
    is_log = is_log_spaced(numbers)
    at = [math.log(number) if is_log else float(number) for number in numbers]
    places = {value: (a - at[0]) / (at[-1] - at[0]) for value, a in zip(distinct, at, strict=True)}
    if len(numbers) <= _MOST_TICKS:
        return Scale(places, [(place, value_text(value)) for value, place in places.items()], is_log)
    ticks = ticks_of(min(numbers), max(numbers), is_log)
    heights = [((math.log(tick) if is_log else tick) - at[0]) / (at[-1] - at[0]) for tick in ticks]
    return Scale(places, [(h, f"{tick:.6g}") for h, tick in zip(heights, ticks, strict=True)], is_log)


def draw_parallel(path: Path, runs: Sequence[Run], keys: Sequence[str], question: Question) -> None:
    """Draws the runs, the best one of each condition on top; runs without a valid result are grey and do not reach the
    last axis."""
    metric, is_max = question.metric, question.is_max
    import matplotlib
    import numpy as np

    scales = [scale_of([run.values.get(key, ABSENT) for run in runs]) for key in keys]
    valid = [run for run in runs if run.row.is_valid and math.isfinite(run.metric(metric))]
    results = [run.metric(metric) for run in valid]
    low, high, is_cut = shade_range(results, is_max) if results else (0.0, 1.0, False)
    is_log = low > 0 and high / low > 20
    shades = matplotlib.colormaps["viridis_r" if is_max else "viridis"]

    def height(value: float) -> float:
        if high == low:
            return 0.5
        value = min(max(value, low), high)
        return math.log(value / low) / math.log(high / low) if is_log else (value - low) / (high - low)

    inches = min(16.0, max(5.0, 1.7 * (len(keys) + 1)))
    with figure(path, inches, 4.4) as drawn:
        axes = drawn.subplots()
        points = _best_of(valid, keys, question)
        letters = round(inches * _LETTERS_PER_INCH)
        labels = {id(point[0]): _label(point, keys, question, letters) for point in points}
        best = [run for point in points for run in point]
        # The best of the valid runs last, so that nothing is drawn over it.
        ordered = sorted(valid, key=lambda run: run.metric(metric), reverse=not is_max)
        best_ids = {id(run) for run in best}
        ordered = [run for run in ordered if id(run) not in best_ids] + best
        drawn_runs = [*(run for run in runs if run not in valid), *ordered]
        for i, run in enumerate(drawn_runs):
            # Runs that share values lie a little apart, the same way in each picture.
            apart = 0.03 * ((i * 0.618) % 1 - 0.5) if len(drawn_runs) > 1 and id(run) not in best_ids else 0.0
            places = [
                scale.places[run.values.get(key, ABSENT)] + apart for scale, key in zip(scales, keys, strict=True)
            ]
            look: dict[str, Any] = {"color": MISSING, "linewidth": 0.8, "linestyle": "--", "zorder": 1}
            if run.row.is_valid and run in valid:
                places.append(height(run.metric(metric)))
                # Not to the pale end of the colours: lines are thin.
                look = {
                    "color": shades(0.1 + 0.9 * places[-1] if is_max else 0.9 * places[-1]),
                    "linewidth": 1.2,
                    "alpha": 0.75,
                    "zorder": 2,
                }
            if id(run) in best_ids:
                look = {"color": BEST, "linewidth": 2.6, "zorder": 4, "label": labels.get(id(run))}
            axes.plot(*_smooth(np.arange(len(places)), np.array(places)), **look)
        if len(valid) < len(runs):
            rest = len(runs) - len(valid)
            axes.plot([], [], color=MISSING, linewidth=0.8, linestyle="--", label=f"{rest} without a valid result")
        _draw_axes(axes, keys, scales, metric, (low, high, is_log, is_cut, is_max, height))
        if axes.get_legend_handles_labels()[0]:
            drawn.legend(loc="outside lower left", fontsize=8.5)


def _best_of(valid: Sequence[Run], keys: Sequence[str], question: Question) -> list[list[Run]]:
    """The runs of the best point of each condition that has several; of many conditions none is pointed out.

    Where replicates vary, a point is as good as their mean.
    """
    selection = question.selection
    scored = [run for run in valid if math.isfinite(run.metric(selection.metric))]
    best = []
    apart = by_condition(scored, question.conditions) if scored else []
    for own in apart:
        points: dict[Point, list[Run]] = {}
        for run in own:
            points.setdefault(point_of(run, [key for key in keys if key not in question.over]), []).append(run)
        if len(points) > 1 or len(apart) == 1:
            best.append(min(points.values(), key=lambda runs: selection.by.rank(_mean(runs, selection.metric))))
    return best if len(best) <= _MOST_BEST else []


def _mean(runs: Sequence[Run], metric: str) -> float:
    return math.fsum(run.metric(metric) for run in runs) / len(runs)


def _label(point: Sequence[Run], keys: Sequence[str], question: Question, width: int) -> str:
    """What the legend says of the best point, in lines that the picture has room for."""
    metric, selection = question.metric, question.selection
    shared = keys if len(point) == 1 else [key for key in keys if key not in question.over]
    is_plain = selection.metric == metric and selection.by.samples == "validation"
    of = f", mean of {len(point)}" if len(point) > 1 else ""
    label = f"best: {named(shared, point_of(point[0], shared))} ({metric} {number_text(_mean(point, metric))}{of})"
    lines = textwrap.wrap(label, width, break_on_hyphens=False)
    return "\n".join(lines if is_plain else [*lines, f"best by {selection.words}"])


def _smooth(x: Any, y: Any) -> tuple[Any, Any]:
    """Between the axes level at both ends: lines that meet in a point can be followed through it."""
    import numpy as np

    if len(x) < 2:
        return x, y
    steps = np.linspace(0, 1, 30)
    ease = steps * steps * (3 - 2 * steps)
    pieces = [(x[i] + steps, y[i] + (y[i + 1] - y[i]) * ease) for i in range(len(x) - 1)]
    return np.concatenate([piece[0] for piece in pieces]), np.concatenate([piece[1] for piece in pieces])


def _draw_axes(axes: Any, keys: Sequence[str], scales: Sequence[Scale], metric: str, result: tuple[Any, ...]) -> None:
    low, high, is_log, is_cut, is_max, height = result
    values = ticks_of(low, high, is_log)
    results = [(height(value), f"{value:.6g}") for value in values]
    if is_cut:  # the end that stands for everything beyond it
        end, place, sign = (low, 0.0, "≤") if is_max else (high, 1.0, "≥")
        results = [(at, text) for at, text in results if abs(at - place) > 0.06] + [(place, f"{sign} {end:.3g}")]
    ticks = [*(scale.ticks for scale in scales), results]
    for x, own in enumerate(ticks):
        axes.axvline(x, color="#333333", linewidth=1, zorder=3)
        is_last = x == len(keys)
        for place, text in own:
            axes.plot([x - 0.015, x + 0.015], [place, place], color="#333333", linewidth=1, zorder=3)
            at = x + 0.03 if is_last else x - 0.03
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
            side = "left" if is_last else "right"
            axes.text(at, place, text, ha=side, va="center", fontsize=8, zorder=5, bbox=box)
    names = [f"{key}\n(log)" if scale.is_log else key for key, scale in zip(keys, scales, strict=True)]
    axes.set_xticks(range(len(keys) + 1), [*names, f"{metric}\n(log)" if is_log else metric])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlim(-0.35, len(keys) + 0.35)
    axes.set_ylim(-0.06, 1.06)
