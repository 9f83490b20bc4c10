"""A metric over two keys of a grid: a cell per pair of values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgo_hydra.report.figure import BEST, figure, shade_range
from flgo_hydra.report.formats import number_text
from flgo_hydra.report.groups import Point, group_runs, point_of
from flgo_hydra.report.question import Question
from flgo_hydra.report.runs import ABSENT, Run, Value, keys_that_vary, value_text
from flgo_hydra.report.selection import sorted_values

_MOST_WRITTEN = 200
"""cells: numbers in more of them could not be read"""
_LEAST_WIDTH = 0.6
"""inches: narrower cells have no room for a number"""


@dataclass(frozen=True)
class Cells:
    """The grid: a row per value of the second key."""

    columns: Sequence[Value]
    rows: Sequence[Value]
    means: Sequence[Sequence[float]]
    """nan where no valid run is"""
    troubles: Sequence[Sequence[str]]
    """`1 diverged`: runs that the mean does not know"""
    counts: Sequence[Sequence[int]]
    averaged: Sequence[str]
    """the further keys that vary"""
    best: Sequence[tuple[int, int]] = ()
    """row and column of what the selection chooses, under each condition that is an axis"""
    is_even: bool = True
    """every cell averages over the same further conditions: nothing is chosen of cells that do not"""


def cells_of(runs: Sequence[Run], x: str, y: str, question: Question) -> Cells:
    """Averages the metric over everything but the two keys."""
    metric, selection = question.metric, question.selection
    groups = {group.point: group for group in group_runs(runs, [x, y], [metric], question.over, selection)}
    columns = sorted_values(run.values.get(x, ABSENT) for run in runs)
    rows = sorted_values(run.values.get(y, ABSENT) for run in runs)
    further = [key for key in question.conditions if key not in (x, y)]
    means, troubles, counts = [], [], []
    chosen: dict[Point, tuple[float, tuple[int, int]]] = {}
    averaged_conditions = set()
    for i, row in enumerate(rows):
        found = [groups.get((column, row)) for column in columns]
        estimates = [group.estimates.get(metric) if group else None for group in found]
        means.append([one.mean if one else math.nan for one in estimates])
        counts.append([one.count if one else 0 for one in estimates])
        troubles.append([group.left_out if group else "" for group in found])
        for j, group in enumerate(found):
            score = group.estimates.get(selection.metric) if group else None
            if group is None or score is None:
                continue
            averaged_conditions.add(frozenset(point_of(run, further) for run in group.valid))
            under = tuple(value for key, value in ((x, columns[j]), (y, row)) if key in question.conditions)
            order = selection.by.rank(score.mean)
            if under not in chosen or order < chosen[under][0]:
                chosen[under] = (order, (i, j))
    averaged = [key for key in keys_that_vary(runs) if key not in (x, y)]
    is_even = len(averaged_conditions) <= 1
    is_choice = not {x, y} <= set(question.conditions)
    best = [place for _, place in chosen.values()] if is_even and is_choice else []
    return Cells(columns, rows, means, troubles, counts, averaged, best, is_even)


def draw_heatmap(path: Path, cells: Cells, x: str, y: str, question: Question) -> None:
    """Draws the cells, dark for good; the best one is framed, those without a value are hatched."""
    metric, is_max = question.metric, question.is_max
    import matplotlib
    import numpy as np
    from matplotlib.patches import Rectangle

    means = np.array(cells.means, dtype=float)
    finite = means[np.isfinite(means)]
    num_rows, num_columns = means.shape
    width = min(16.0, max(4.5, 1.9 + 0.95 * num_columns))
    with figure(path, width, min(14.0, max(3.0, 1.6 + 0.55 * num_rows))) as drawn:
        axes = drawn.subplots()
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
        axes.set_yticks(np.arange(num_rows) + 0.5, [value_text(value) for value in cells.rows])
        if not all(isinstance(value, int | float) for value in cells.rows):
            axes.invert_yaxis()  # words are read from above
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_title(_title(cells, question), loc="left", color="#555555", fontsize=8.5)


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


def _title(cells: Cells, question: Question) -> str:
    counts = sorted({count for row in cells.counts for count in row if count})
    told = f"{question.metric}, a run a cell"
    if cells.averaged and counts and counts[-1] > 1:
        number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        told = f"{question.metric}, mean of {number} runs over {', '.join(cells.averaged)}"
    return "\n".join(filter(None, (told, framed(cells, question))))


def framed(cells: Cells, question: Question) -> str:
    """What the frame says, for titles; nothing where it is what the colours say."""
    if not cells.is_even:
        return f"cells average over different {', '.join(question.conditions)}: no best is framed"
    selection = question.selection
    if not cells.best or (selection.metric == question.metric and selection.samples == "validation"):
        return ""
    return f"framed: best by {selection.words}"
