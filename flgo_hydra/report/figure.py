"""What all pictures share: size, type, colours that colour-blind readers tell apart, axes, the file."""

import contextlib
import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgo_hydra.record.files import replacing

DPI = 200
FORMATS = (".png", ".pdf", ".svg")

# Okabe and Ito, Color Universal Design; without its yellow, which is hardly seen on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", (0, (8, 2)))
BEST = "#D55E00"
"""of what is pointed out"""
MISSING = "#9a9a9a"
"""of what has no value"""

_MOST_INSIDE = 4
"""lines: a legend of more of them stands beside the axes"""
_MOST_ROWS = 30
_LOG_RATIO = 8.0


@contextlib.contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """A figure, written to `path` when the block ends, in the format of its suffix.

    Without pyplot, and with settings of its own: a user's plots are left alone.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": "#dddddd",
        "legend.frameon": False,
        "pdf.fonttype": 42,  # text as text: publishers refuse Type 3
        "svg.fonttype": "none",
    }
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn
        with replacing(path) as file:
            drawn.savefig(file, format=path.suffix[1:], dpi=DPI)


def panel_grid(count: int) -> tuple[int, int]:
    """Columns and rows of so many panels."""
    num_columns = 2 if count in (2, 4) else min(3, count)
    return num_columns, math.ceil(count / num_columns)


Name = tuple[Hashable, Hashable]
"""of a line: the method, which has a colour, and whatever else tells it apart (its rate), which has a dash"""


def line_looks(names: Sequence[Name], known: Sequence[Name]) -> list[dict[str, Any]]:
    """A colour and a dash for each line, which it has in every figure that is drawn from the same runs.

    The colour is the method's, whatever its rank and whichever others are drawn beside it. Methods beyond the number of
    colours are paler and begin with another dash; lines of a method beyond the number of dashes are greyer.

    Args:
        known: the names of all runs in the order of the grid, drawn or not: they take the colours and dashes in turn.
    """
    methods: dict[Hashable, dict[Hashable, int]] = {}
    for method, rest in (*known, *names):
        own = methods.setdefault(method, {})
        own.setdefault(rest, len(own))
    places = {method: i for i, method in enumerate(methods)}
    looks = []
    for method, rest in names:
        turn, place = places[method] // len(COLORS), methods[method][rest]
        color = _mixed(COLORS[places[method] % len(COLORS)], 255, turn)
        color = _mixed(color, 90, place // len(STYLES))
        looks.append({"color": color, "linestyle": STYLES[(turn + place) % len(STYLES)]})
    return looks


def _mixed(color: str, other: int, times: int) -> str:
    """With a grey; from the fourth time on the shades repeat."""
    share = (0.0, 0.4, 0.6, 0.75)[times % 4]
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(part + share * (other - part)):02X}" for part in parts)


@dataclass(frozen=True)
class Legend:
    """Where the names of lines are put, and the room that they take."""

    is_inside: bool
    columns: int
    width: float
    """inches beside the axes"""
    height: float


def legend_for(names: Sequence[str]) -> Legend:
    """Inside where there is room for it, beside the axes otherwise."""
    if len(names) <= _MOST_INSIDE and max(map(len, names), default=0) <= 40:
        return Legend(True, 1, 0.0, 0.0)
    columns = math.ceil(len(names) / _MOST_ROWS)
    rows = math.ceil(len(names) / columns)
    return Legend(False, columns, columns * (0.7 + 0.078 * max(map(len, names))), 0.5 + 0.2 * rows)


def place_legend(axes: Any, legend: Legend) -> None:
    """Draws it, if any line has a name."""
    if not axes.get_legend_handles_labels()[0]:
        return
    if legend.is_inside:
        axes.legend(loc="best", fontsize=9)
    else:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=9, ncols=legend.columns, borderaxespad=0.0)


def ticks_of(low: float, high: float, is_log: bool) -> list[float]:
    """Round numbers from low to high: powers of ten on a logarithmic axis, else about five at equal steps."""
    if high <= low:
        return [low]
    if is_log:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1,), (1, 2, 5), range(1, 10)):
            ticks = [digit * 10.0**exponent for exponent in exponents for digit in digits]
            ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
            if len(ticks) >= 3:
                return ticks
    size = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(size * digit for digit in (1, 2, 5, 10) if (high - low) / (size * digit) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def is_log_spaced(values: Sequence[float]) -> bool:
    """Whether numbers are better told apart by their ratios: 0.001, 0.01, 0.1, but not 1, 2, 3."""
    distinct = sorted(set(values))
    if len(distinct) < 2 or distinct[0] <= 0 or distinct[-1] / distinct[0] < _LOG_RATIO:
        return False
    if len(distinct) == 2:
        return True
    return _unevenness([math.log(value) for value in distinct]) < _unevenness(distinct)


def _unevenness(values: Sequence[float]) -> float:
    """Standard deviation of the gaps over their mean."""
    gaps = [after - before for before, after in zip(values, values[1:], strict=False)]
    mean = sum(gaps) / len(gaps)
    return math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) / mean


def shade_range(values: Sequence[float], is_max: bool) -> tuple[float, float, bool]:
    """Ends of a colour scale, and whether it leaves outliers beyond its bad end.

    A run that blew up to 1e30 would make all others one colour: the scale ends at three times the spread between the
    median and the best value.
    """
    ordered = sorted(values, reverse=is_max)
    best, middle, worst = ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1]
    spread = abs(middle - best)
    if spread == 0 or abs(worst - best) <= 10 * spread:
        return min(best, worst), max(best, worst), False
    end = best - 3 * spread if is_max else best + 3 * spread
    return min(best, end), max(best, end), True
