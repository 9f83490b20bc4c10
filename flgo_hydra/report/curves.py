"""curves.png: a metric by round, one line a job, the best one marked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MOST_NAMED = 12
"""beyond that many lines a legend is longer than the picture: only the best ones are named"""


@dataclass(frozen=True)
class Curve:
    """A job's metric over its evaluated rounds."""

    name: str
    rounds: Sequence[float]
    values: Sequence[float]
    is_best: bool = False
    best_round: int | None = None


def draw_curves(path: Path, curves: Sequence[Curve], metric: str) -> None:
    """Draws the curves into a PNG. Values that are not finite are gaps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    curves = [curve for curve in curves if any(math.isfinite(v) for v in curve.values)]
    is_crowded = len(curves) > _MOST_NAMED
    figure, axes = pyplot.subplots(figsize=(9, 5.2), layout="constrained")
    colors = matplotlib.colormaps["viridis" if is_crowded else "tab10"]
    # The best last, so that nothing is drawn over it.
    order = sorted(range(len(curves)), key=lambda i: curves[i].is_best)
    for i in order:
        curve = curves[i]
        color = colors(i / max(1, len(curves) - 1)) if is_crowded else colors(i % 10)
        is_named = not is_crowded or curve.is_best
        values = [v if math.isfinite(v) else math.nan for v in curve.values]
        axes.plot(
            curve.rounds,
            values,
            color="crimson" if curve.is_best and is_crowded else color,
            linestyle="-" if is_crowded or i < 10 else "--",
            linewidth=2.6 if curve.is_best else (0.8 if is_crowded else 1.4),
            alpha=1.0 if curve.is_best or not is_crowded else 0.45,
            label=_short(curve.name) + (" (best)" if curve.is_best else "") if is_named else None,
        )
        if curve.is_best and curve.best_round in list(curve.rounds):
            value = values[list(curve.rounds).index(curve.best_round)]
            axes.plot(
                [curve.best_round],
                [value],
                marker="o",
                markersize=8,
                color="crimson",
                linestyle="none",
                label=f"best: {value:.4g} at round {curve.best_round}",
                zorder=10,
            )
    _limit(axes, curves)
    axes.set_xlabel("round")
    axes.set_ylabel(metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if is_crowded:
        axes.plot([], [], color="gray", linewidth=0.8, label=f"{len(curves) - 1} other points")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _limit(axes: object, curves: Sequence[Curve]) -> None:
    """Keeps a run that blew up from pressing all others flat."""
    finite = [v for curve in curves for v in curve.values if math.isfinite(v)]
    starts = [curve.values[0] for curve in curves if len(curve.values) and math.isfinite(curve.values[0])]
    if finite and starts:
        low, high = min(finite), max(finite)
        top = 3 * max(starts)
        if high > top:
            axes.set_ylim(low - 0.05 * (top - low), top)  # type: ignore[attr-defined]


def _short(name: str, most: int = 60) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
