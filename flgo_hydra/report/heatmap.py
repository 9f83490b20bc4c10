"""A metric over two keys of a grid: a cell per pair of values, a panel for each condition."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgo_hydra.report.conditions import by_condition
from flgo_hydra.report.figure import BEST, figure, panel_grid, shade_range
from flgo_hydra.report.formats import number_text
from flgo_hydra.report.over_seeds import Point, group_runs, named, point_of
from flgo_hydra.report.question import Question
from flgo_hydra.report.runs import ABSENT, Run, Value, keys_that_vary, value_text
from flgo_hydra.report.selection import sorted_values

_MOST_WRITTEN = 200
"""cells: numbers in more of them could not be read"""
_LEAST_WIDTH = 0.6
"""inches: narrower cells have no room for a number"""
_LEAST_HEIGHT = 0.22
"""inches of a row whose name is that of a condition"""


@dataclass(frozen=True)
class Heatmap:
    """What a picture of cells shows."""

    x: str
    ys: tuple[str, ...]
    """a row for each of their values: the second key, and before it conditions that are too many for panels"""
    panels: tuple[str, ...] = ()
    """conditions, of whose values each has a panel of its own"""

    @property
    def stacked(self) -> tuple[str, ...]:
        """Conditions that share a panel."""
        return self.ys[:-1]


@dataclass(frozen=True)
class Cells:
    """The grid of a condition: a row per value of the second key."""

    columns: Sequence[Value]
    rows: Sequence[Point]
    means: Sequence[Sequence[float]]
    """nan where no valid run is"""
    troubles: Sequence[Sequence[str]]
    """`1 diverged`: runs that the mean does not know"""
    counts: Sequence[Sequence[int]]
    averaged: Sequence[str]
    """the further keys that vary"""
    best: Sequence[tuple[int, int]] = ()
    """row and column of what the selection chooses, under each condition that is an axis"""
    condition: Point = ()
    """whose panel it is"""


def cells_of(runs: Sequence[Run], heatmap: Heatmap, question: Question) -> list[Cells]:
    """Averages the metric over everything but the two keys, within each condition. All grids have the same axes."""
    columns = sorted_values(run.values.get(heatmap.x, ABSENT) for run in runs)
    rows = [point_of(own[0], heatmap.ys) for own in by_condition(runs, heatmap.ys)]
    return [_cells(own, columns, rows, heatmap, question) for own in by_condition(runs, heatmap.panels)]


def _cells(
    runs: Sequence[Run], columns: Sequence[Value], rows: Sequence[Point], heatmap: Heatmap, question: Question
) -> Cells:
    metric, selection = question.metric, question.selection
    axes = (heatmap.x, *heatmap.ys)
    groups = {group.point: group for group in group_runs(runs, axes, [metric], question.over, selection)}
    means, troubles, counts = [], [], []
    chosen: dict[Point, tuple[tuple[bool, bool, float], tuple[int, int]]] = {}
    for i, row in enumerate(rows):
        found = [groups.get((column, *row)) for column in columns]
        estimates = [group.estimates.get(metric) if group else None for group in found]
        means.append([one.mean if one else math.nan for one in estimates])
        counts.append([one.count if one else 0 for one in estimates])
        troubles.append([group.left_out if group else "" for group in found])
        for j, group in enumerate(found):
            if group is None or selection.metric not in group.estimates:
                continue
            under = tuple(value for key, value in zip(axes, group.point, strict=True) if key in question.conditions)
            order = group.place(selection)
            if under not in chosen or order < chosen[under][0]:
                chosen[under] = (order, (i, j))
    averaged = [key for key in keys_that_vary(runs) if key not in axes]
    is_choice = not set(axes) <= set(question.conditions)
    best = [place for _, place in chosen.values()] if is_choice else []
    return Cells(columns, rows, means, troubles, counts, averaged, best, point_of(runs[0], heatmap.panels))


def draw_heatmap(path: Path, grids: Sequence[Cells], heatmap: Heatmap, question: Question) -> None:
    """Draws the cells, dark for good; the best one is framed, those without a value are hatched.

    Each condition has a colour scale of its own: on a common one harder data would be pale throughout.
    """
    num_columns, num_rows = panel_grid(len(grids))
    cells_across, cells_down = len(grids[0].columns), len(grids[0].rows)
    width = min(16.0, max(4.5, 1.9 + 0.95 * cells_across))
    height = min(14.0, max(3.0, 1.6 + 0.55 * cells_down))
    if heatmap.stacked:
        height = max(height, 1.6 + _LEAST_HEIGHT * cells_down)
    beside = 0.078 * max(len(named(heatmap.ys, row)) for row in grids[0].rows) if heatmap.stacked else 0.0
    with figure(path, num_columns * (width + beside), num_rows * height) as drawn:
        panels = drawn.subplots(num_rows, num_columns, squeeze=False).ravel()
        for axes in panels[len(grids) :]:
            axes.remove()
        for axes, cells in zip(panels, grids, strict=False):
            _draw_panel(drawn, axes, cells, heatmap, question, width)
            if heatmap.panels:
                axes.set_title(named(heatmap.panels, cells.condition), fontsize=9)
        told = "\n".join(_title(grids, heatmap, question))
        if heatmap.panels or heatmap.stacked:
            drawn.suptitle(told, x=0.01, ha="left", color="#555555", fontsize=8.5)
        else:
            panels[0].set_title(told, loc="left", color="#555555", fontsize=8.5)


def _draw_panel(drawn: Any, axes: Any, cells: Cells, heatmap: Heatmap, question: Question, width: float) -> None:
    import matplotlib
    import numpy as np
    from matplotlib.patches import Rectangle

    metric, is_max = question.metric, question.is_max
    means = np.array(cells.means, dtype=float)
    finite = means[np.isfinite(means)]
    num_rows, num_columns = means.shape
    shades = matplotlib.colormaps["viridis_r" if is_max else "viridis"]
    low, high, is_cut = shade_range(finite.tolist(), is_max) if finite.size else (0.0, 1.0, False)
    is_log = bool(finite.size and low > 0 and high / low > 20)
    scale = (matplotlib.colors.LogNorm if is_log else matplotlib.colors.Normalize)(low, high, clip=True)
    image = axes.pcolormesh(np.ma.masked_invalid(means), cmap=shades, norm=scale, edgecolors="white", linewidth=1)
    cell_width = (width - 1.9) / num_columns
    is_written = means.size <= _MOST_WRITTEN and cell_width >= _LEAST_WIDTH
    for row in range(num_rows):
        for column in range(num_columns):
            _draw_cell(axes, cells, row, column, shades, scale, is_written)
    for row, column in cells.best:
        frame: dict[str, Any] = {"fill": False, "edgecolor": BEST, "linewidth": 2.5, "zorder": 5}
        axes.add_patch(Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, **frame))
    if finite.size:
        extend = ("min" if is_max else "max") if is_cut else "neither"
        drawn.colorbar(image, ax=axes, label=metric, extend=extend, pad=0.02).outline.set_visible(False)
    names = [value_text(value) for value in cells.columns]
    turn = 45 if sum(map(len, names)) > 9 * width else 0
    axes.set_xticks(np.arange(num_columns) + 0.5, names, rotation=turn, ha="right" if turn else "center")
    names = [named(heatmap.ys, row) if heatmap.stacked else value_text(row[0]) for row in cells.rows]
    axes.set_yticks(np.arange(num_rows) + 0.5, names)
    if heatmap.stacked or not all(isinstance(row[0], int | float) for row in cells.rows):
        axes.invert_yaxis()  # words are read from above
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(heatmap.x)
    if not heatmap.stacked:
        axes.set_ylabel(heatmap.ys[0])


def _draw_cell(axes: Any, cells: Cells, row: int, column: int, shades: Any, scale: Any, is_written: bool) -> None:
    from matplotlib.patches import Rectangle

    mean, trouble = cells.means[row][column], cells.troubles[row][column]
    if math.isnan(mean):
        looks: dict[str, Any] = {"facecolor": "#f2f2f2", "edgecolor": "white", "hatch": "///" if trouble else None}
        axes.add_patch(Rectangle((column, row), 1, 1, **looks, linewidth=1))
    if not is_written:
        return
    text = trouble.replace(", ", "\n") if math.isnan(mean) else number_text(mean)
    if trouble and not math.isnan(mean):
        text += f"\n({trouble})".replace(", ", ",\n")
    red, green, blue, _ = shades(scale(mean)) if not math.isnan(mean) else (1, 1, 1, 1)
    is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
    color = "white" if is_dark else "#333333"
    axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=color)


def _title(grids: Sequence[Cells], heatmap: Heatmap, question: Question) -> list[str]:
    counts = sorted({count for cells in grids for row in cells.counts for count in row if count})
    averaged = dict.fromkeys(key for cells in grids for key in cells.averaged)
    told = f"{question.metric}, a run a cell"
    if averaged and counts and counts[-1] > 1:
        number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        told = f"{question.metric}, mean of {number} runs over {', '.join(averaged)}"
    apart = f"each {', '.join(heatmap.panels)} has its own colour scale" if heatmap.panels else ""
    if heatmap.stacked:
        apart = f"each {', '.join(heatmap.stacked)} has its own best, but all have one colour scale"
    return [line for line in (told, "; ".join(filter(None, (apart, framed(grids, question))))) if line]


def framed(grids: Sequence[Cells], question: Question) -> str:
    """What the frames say, for titles; nothing where it is what the colours say."""
    selection = question.selection
    is_told = selection.metric == question.metric and selection.by.samples == "validation"
    return "" if is_told or not any(cells.best for cells in grids) else f"framed: best by {selection.words}"
