"""Which pictures a report has, and where their files lie."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flgo_hydra.report.conditions import by_condition, covers
from flgo_hydra.report.figure import FORMATS
from flgo_hydra.report.over_seeds import point_of
from flgo_hydra.report.question import Question
from flgo_hydra.report.runs import ABSENT, Run, keys_that_vary
from flgo_hydra.report.selection import check_curve, check_keys, curves_of, varying

_MOST_PANELS = 12
"""conditions: more of them have lines, or rows of cells, of their own in one panel"""


@dataclass(frozen=True)
class Picture:
    """A picture that can be drawn into a file."""

    name: str
    """of its file, without suffix"""
    title: str
    draw: Callable[[Path], None]


def curves(
    runs: Sequence[Run],
    question: Question,
    curve: str,
    by: Sequence[str],
    band: str,
    is_log: bool,
    known: Sequence[Run] = (),
) -> Picture:
    """`--plot`.

    Args:
        known: all runs that were read, in the order of the grid: a line's colour comes from its place among them.
    Raises:
        ValueError: no run recorded the metric, or there is no such key.
    """
    from flgo_hydra.report.bands import Plot, chosen, draw_bands, lines_of

    curve = check_curve(curve, runs)
    asked = check_keys(by, runs) if by else _default_by(runs, question)
    for key in asked:
        if key in question.over:
            raise ValueError(
                f"`--by {key}`: the lines are means over {', '.join(question.over)}. "
                "To draw its values apart, choose another `--over`."
            )
    # Methods are not chosen over either: those that are not asked for by their own keys have lines of their own.
    keys = [*asked, *(key for key in question.compared if not any(covers(own, key) for own in asked))]
    panels = [key for key in question.conditions if key not in keys]
    if len(by_condition(runs, panels)) > _MOST_PANELS:
        keys, panels = [*keys, *panels], []
    settings = [key for key in keys_that_vary(runs) if key not in (*keys, *panels, *question.over)]
    plot = Plot(curve, tuple(keys), tuple(panels), tuple(settings), band, (), is_log)
    names = dict.fromkeys(plot.name_of(point_of(run, keys)) for run in known or runs)
    plot = replace(plot, known=tuple(names))

    def draw(path: Path) -> None:
        draw_bands(path, lines_of(runs, plot, question), plot, question)

    title = f"{curve} by {', '.join(keys)}" + (f", {chosen(settings, question)}" if settings else "")
    return Picture(_name(curve, "by", *asked), title, draw)


def heatmap(runs: Sequence[Run], question: Question, axes: Sequence[str]) -> Picture:
    """`--heatmap`.

    Raises:
        ValueError: not two keys, or one that does not vary.
    """
    from flgo_hydra.report.heatmap import Heatmap, cells_of, draw_heatmap, framed

    if len(axes) != 2 or axes[0] == axes[1]:
        raise ValueError(f"`--heatmap {','.join(axes)}` must be two keys: `--heatmap lr,algorithm`.")
    check_keys(axes, runs)
    for key in axes:
        if len({run.values.get(key, ABSENT) for run in runs}) < 2:
            raise ValueError(f"`--heatmap {','.join(axes)}`: all runs have the same {key}. {varying(runs)}")
    panels = [key for key in question.conditions if key not in axes]
    ys = [axes[1]]
    if len(by_condition(runs, panels)) > _MOST_PANELS:
        ys, panels = [*panels, *ys], []
    shown = Heatmap(axes[0], tuple(ys), tuple(panels))
    grids = cells_of(runs, shown, question)

    def draw(path: Path) -> None:
        draw_heatmap(path, grids, shown, question)

    title = ", ".join(filter(None, (f"{question.metric} over {axes[0]} and {axes[1]}", framed(grids, question))))
    return Picture(_name("heatmap", *axes), title, draw)


def parallel(runs: Sequence[Run], question: Question) -> Picture:
    """`--parallel`.

    Raises:
        ValueError: nothing varies.
    """
    from flgo_hydra.report.parallel import draw_parallel

    keys = keys_that_vary(runs)
    if not keys:
        raise ValueError("`--parallel` needs runs that differ in some key. Nothing varies.")
    return Picture(
        "parallel",
        f"{question.metric} by every key that varies, best by {question.selection.words}",
        lambda path: draw_parallel(path, runs, keys, question),
    )


def usual(
    runs: Sequence[Run], question: Question, by: Sequence[str], band: str, is_log: bool, known: Sequence[Run] = ()
) -> list[Picture]:
    """What a page shows when nothing was asked for: the curves there are, and the grid if it has two axes."""
    recorded = curves_of(runs)
    chosen = [name for name in ("valid_loss", "test_loss", "test_accuracy") if name in recorded] or recorded[:1]
    pictures = [curves(runs, question, name, by, band, is_log, known) for name in chosen]
    keys = [key for key in keys_that_vary(runs) if key not in question.over]
    if len(keys) >= 2:
        # A number along x reads better than a word.
        numbers = [key for key in keys if all(isinstance(run.values.get(key), int | float) for run in runs)]
        x = next(iter(numbers), keys[0])
        pictures.append(heatmap(runs, question, [x, next(key for key in keys if key != x)]))
        pictures.append(parallel(runs, question))
    return pictures


def file_of(picture: Picture, out: Path | None, folders: Sequence[Path], is_alone: bool) -> Path:
    """Where a picture is written: `--out` as a file or folder, else the folder that was read, else here.

    Raises:
        ValueError: one file for several pictures, or a format that is not known.
    """
    if out is None:
        folder = folders[0] if len(folders) == 1 else Path.cwd()
        return folder / f"{picture.name}.png"
    if out.suffix.lower() in FORMATS and not out.is_dir():
        if not is_alone:
            raise ValueError(f"`--out {out}` is one file for several pictures. Give a folder.")
        return out.with_suffix(out.suffix.lower())
    if out.suffix and not out.is_dir():
        raise ValueError(f"`--out {out}` must be a folder or end in {', '.join(FORMATS)}.")
    return out / f"{picture.name}.png"


def _default_by(runs: Sequence[Run], question: Question) -> list[str]:
    """The compared keys; without any whatever varies beside the seed."""
    keys = [key for key in keys_that_vary(runs) if key not in question.over]
    return list(question.compared) or keys or ["algorithm"]


def _name(*parts: str) -> str:
    return "_".join(parts).replace("/", "-")
