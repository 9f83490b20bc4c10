"""curves.png: a metric by round, one line a job, the best one marked."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgo_hydra.overrides import texts_of
from flgo_hydra.record.files import replacing
from flgo_hydra.report.figure import BEST, COLORS, Name, line_looks

_MOST_NAMED = 12
"""beyond that many lines a legend is longer than the picture: only the best one is named"""


@dataclass(frozen=True)
class Curve:
    """A job's metric over its evaluated rounds."""

    name: str
    rounds: Sequence[float]
    values: Sequence[float]
    is_best: bool = False
    best_round: int | None = None
    line: Name = ("", "")
    """of its colour and dash"""
    chosen_by: str = "valid_loss"
    """the metric that is best there"""


def line_names(points: Sequence[Sequence[str]]) -> list[Name]:
    """Of jobs by their overrides: where algorithms vary, each has a colour."""
    swept = [texts_of(point) for point in points]
    if len({values.get("algorithm") for values in swept}) < 2:
        return [(tuple(values.items()), "") for values in swept]
    return [(values.pop("algorithm", None), tuple(values.items())) for values in swept]


def prepare() -> None:
    """Imports what drawing needs: half a second, which a caller may spend while it waits for something else."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure
    import matplotlib.font_manager
    import matplotlib.ticker  # noqa: F401


def draw_curves(
    path: Path, curves: Sequence[Curve], metric: str, num_left_out: int = 0, known: Sequence[Name] = ()
) -> None:
    """Draws the curves into a PNG. Values that are not finite are gaps.

    Args:
        num_left_out: points that are not among the curves; the legend says so.
        known: the lines of all points, in order, whether drawn or not: a line looks the same whichever are.
    """
    # Without pyplot: it would set a user's own plots aside.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = [curve for curve in curves if any(math.isfinite(v) for v in curve.values)]
    is_crowded = len(curves) > _MOST_NAMED
    names = distinct_names([curve.name for curve in curves])
    methods = _methods([curve.line for curve in curves], known) if is_crowded else {}
    num_entries = 2 + len(methods) if is_crowded else len(curves)
    # Laid out by hand: matplotlib's own layouts draw everything twice, and the end of a sweep waits for it.
    legend_inches = 0.2 * num_entries + 0.15
    figure = Figure(figsize=(9, 4.8 + legend_inches))
    axes = figure.subplots()
    bottom = (0.5 + legend_inches) / (4.8 + legend_inches)
    figure.subplots_adjust(left=0.085, right=0.985, top=0.975, bottom=bottom)
    shades = matplotlib.colormaps["viridis"]
    looks = line_looks([curve.line for curve in curves], known)
    for i, curve in enumerate(curves):
        crowded_color = methods.get(curve.line[0], shades(0.92 * i / len(curves)))
        look: dict[str, Any] = {
            "color": crowded_color if is_crowded else looks[i]["color"],
            "linestyle": "-" if is_crowded else looks[i]["linestyle"],
            "linewidth": 0.8 if is_crowded else 1.4,
            "alpha": 0.45 if is_crowded else 1.0,
            "label": None if is_crowded else names[i],
        }
        if curve.is_best:
            # Above the others, so that nothing is drawn over it.
            look |= {"linewidth": 2.6, "alpha": 1.0, "zorder": 10, "label": f"{names[i]} (best)"}
            look |= {"color": BEST} if is_crowded and not methods else {}
            if curve.best_round in list(curve.rounds):
                at = list(curve.rounds).index(curve.best_round)
                look |= {"marker": "o", "markersize": 8, "markerfacecolor": "white", "markeredgewidth": 2.2}
                look["markevery"] = [at]
                by = f" {curve.chosen_by}, with {metric}" if curve.chosen_by != metric else ":"
                look["label"] = f"{names[i]} (best{by} {curve.values[at]:.4g} at round {curve.best_round})"
        axes.plot(curve.rounds, [v if math.isfinite(v) else math.nan for v in curve.values], **look)
    if is_crowded:
        others = len(curves) - sum(curve.is_best for curve in curves)
        label = f"{others} other points"
        if num_left_out:
            label = f"{others} of {others + num_left_out} other points: the best, and some at random"
        axes.plot([], [], color="gray", linewidth=0.8, label=label)
        for method, color in methods.items():
            axes.plot([], [], color=color, label=method)
    if "loss" in metric:
        top = top_of([curve.values for curve in curves])
        low, high = axes.get_ylim()
        if top is not None and top < high:
            low = min((v for curve in curves for v in curve.values if math.isfinite(v)), default=low)
            axes.set_ylim(low - 0.05 * (top - low), top)
    axes.set_xlabel("round")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        # Below the axes: nowhere inside is free of lines for certain.
        figure.legend(loc="lower left", fontsize=9, frameon=False, borderaxespad=0.3)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=130, pil_kwargs={"compress_level": 1})


def _methods(lines: Sequence[Name], known: Sequence[Name]) -> dict[Hashable, str]:
    """The colours of the methods among many lines; none where it is not methods that vary, or very many do."""
    firsts: dict[Hashable, Name] = {}
    for name in (*known, *lines):
        firsts.setdefault(name[0], name)
    drawn = dict.fromkeys(method for method, _ in lines)
    if not 1 < len(drawn) <= len(COLORS) or not all(isinstance(method, str) for method in drawn):
        return {}
    looks = line_looks([firsts[method] for method in drawn], known)
    return {method: look["color"] for method, look in zip(drawn, looks, strict=True)}


def top_of(losses: Sequence[Sequence[float]]) -> float | None:
    """Where the axis of a loss ends, so that a run that blew up does not press all others flat.

    Half as high again as the highest first value and as the whole of the tamest curve; None without finite values.
    """
    finite = [[v for v in values if math.isfinite(v)] for values in losses]
    finite = [values for values in finite if values]
    if not finite:
        return None
    return 1.5 * max(*(values[0] for values in finite), min(max(values) for values in finite))


def distinct_names(names: Sequence[str], most: int = 90) -> list[str]:
    """Names without the words that all of them have; one that is still long loses its middle."""
    words = [name.split() for name in names]
    common = set.intersection(*map(set, words)) if len(names) > 1 else set()
    shorter = [" ".join(word for word in own if word not in common) or " ".join(own) for own in words]
    half = (most - 1) // 2
    return [name if len(name) <= most else f"{name[:half]}…{name[-half:]}" for name in shorter]
