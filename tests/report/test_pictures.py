import math
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from flgo_hydra.objective import Objective
from flgo_hydra.report.bands import Plot, draw_bands, lines_of
from flgo_hydra.report.curves import Curve, draw_curves, line_names
from flgo_hydra.report.figure import BEST, COLORS, is_log_spaced, legend_for, line_looks, shade_range, ticks_of
from flgo_hydra.report.heatmap import Cells, Heatmap, cells_of, draw_heatmap
from flgo_hydra.report.parallel import draw_parallel, scale_of
from flgo_hydra.report.question import Question
from flgo_hydra.report.runs import keys_that_vary, read_runs
from flgo_hydra.report.selection import Selection


def _runs(folder: Path):
    return read_runs([folder])[0]


def _is_drawn(path: Path) -> bool:
    """A PNG with more than one colour in it."""
    import numpy as np
    from matplotlib.image import imread

    return path.read_bytes().startswith(b"\x89PNG") and len(np.unique(imread(path)[::3, ::3, 0])) > 10


_QUESTION = Question(Objective("best_valid_loss"), Selection(Objective("best_valid_loss")))


def _plot(runs, keys=("algorithm",), band="std", curve="valid_loss", panels=(), is_log=False) -> Plot:
    settings = [key for key in keys_that_vary(runs) if key not in (*keys, *panels, "seed")]
    return Plot(curve, tuple(keys), tuple(panels), tuple(settings), band, (), is_log)


def _lines(runs, keys=("algorithm",), band="std", curve="valid_loss", panels=()):
    plot = _plot(runs, keys, band, curve, panels)
    return lines_of(runs, plot, _QUESTION), list(plot.settings)


@pytest.mark.parametrize(
    "band, low, high", [("std", 1.1 - 0.1, 1.1 + 0.1), ("range", 1.0, 1.2), ("ci", 1.1 - 0.2484138, 1.1 + 0.2484138)]
)
def test_mean_and_band_of_each_algorithm_at_its_best(sweep, band, low, high):
    lines, others = _lines(_runs(sweep), band=band)
    assert others == ["lr"] and [(line.point, line.setting) for line in lines] == [
        (("fedavg",), (0.1,)),
        (("fedprox",), (0.1,)),
    ]
    fedavg = lines[0]
    assert list(fedavg.rounds) == [0, 1, 2, 3] and fedavg.count == 3 and fedavg.num_whole == 4
    assert fedavg.mean == pytest.approx([2.5, 1.2, 1.1, 1.3])
    assert (fedavg.low[2], fedavg.high[2]) == pytest.approx((low, high))
    assert fedavg.low[0] == fedavg.high[0] == 2.5


def test_early_stopped_seeds_make_the_line_partial(make_run, tmp_path):
    make_run("s/0", [2.0, 1.0, 0.5, 0.25], seed=0)
    make_run("s/1", [2.0, 2.0], "early_stopped", seed=1)
    make_run("s/2", [2.0, math.nan, 1.0], status=None, seed=2)
    make_run("s/3", [2.0, 9.0, math.inf], "diverged", seed=3)
    make_run("s/4", [], failure="Error: x", seed=4)
    ((line,), _) = _lines(_runs(tmp_path / "s"))
    assert line.mean == pytest.approx([2.0, 1.5, 0.75, 0.25])
    assert (line.count, line.num_whole, line.left_out) == (3, 1, "1 diverged, 1 failed")
    assert line.broken == [([0, 1], [2.0, 9.0])]


def test_numbers_are_in_order_and_other_metrics_decide_nothing(make_run, tmp_path):
    for i, lr in enumerate([0.1, 1e-4, 10, 0.02]):
        make_run(f"s/{i}", [2.0, 1.0], lr=lr)
    lines, others = _lines(_runs(tmp_path / "s"), keys=("lr",), curve="test_loss")
    assert [line.point for line in lines] == [(1e-4,), (0.02,), (0.1,), (10,)] and others == []
    assert lines[0].mean == [2.5, 1.5]


def _bands(folder: Path, path: Path, **changed):
    runs = _runs(folder)
    plot = _plot(runs, **changed)
    draw_bands(path, lines_of(runs, plot, _QUESTION), plot, _QUESTION)


def test_bands_are_drawn(sweep, tmp_path):
    _bands(sweep, tmp_path / "a.png")
    assert _is_drawn(tmp_path / "a.png")
    _bands(sweep, tmp_path / "b.png", keys=("lr", "algorithm"), is_log=True)
    assert _is_drawn(tmp_path / "b.png") and (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_a_logarithmic_axis_has_round_numbers(make_run, tmp_path):
    make_run("s/0", [2.0, 1.0, 0.5, 0.2])
    _bands(tmp_path / "s", tmp_path / "a.svg", is_log=True)
    text = (tmp_path / "a.svg").read_text()
    assert all(f">{tick}<" in text for tick in ("0.2", "0.5", "1", "2"))


@pytest.mark.parametrize("suffix, start", [(".pdf", b"%PDF"), (".svg", b"<?xml")])
def test_other_formats(sweep, tmp_path, suffix, start):
    _bands(sweep, tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes().startswith(start)
    if suffix == ".svg":
        text = (tmp_path / "a.svg").read_text()
        assert "fedprox lr=0.1" in text and "each at its best lr" in text and ">round<" in text


def test_runs_that_blew_up_do_not_press_the_others_flat(make_run, tmp_path):
    make_run("s/0", [2.0, 1.0, 0.5], algorithm="a")
    make_run("s/1", [2.0, 1e30, math.nan], "diverged", algorithm="b")
    make_run("s/2", [2.0, 1e20, 1e25], algorithm="c")
    _bands(tmp_path / "s", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    shown = re.findall(r">([^<>]+)</text>", text)  # not the picture's own names, which are drawn at random
    assert "0.5" in shown and not any("1e" in label for label in shown) and "b (1 diverged)" in shown
    width, height = struct.unpack(">II", _png(tmp_path, tmp_path / "s")[16:24])
    assert width < 2000 and height < 1200


def _png(tmp_path, folder):
    _bands(folder, tmp_path / "x.png")
    return (tmp_path / "x.png").read_bytes()


@pytest.mark.parametrize("count, key", [(1, "lr"), (9, "algorithm"), (40, "lr"), (40, "algorithm")])
def test_few_and_many_lines(make_run, tmp_path, count, key):
    for i in range(count):
        make_run(f"s/{i}", [2.0, 1.0 + i / 100], **{key: 10.0 ** (-i / 10) if key == "lr" else f"algorithm_{i}"})
    _bands(tmp_path / "s", tmp_path / "a.png", keys=(key,))  # a layout that fails would warn, and warnings are errors
    assert _is_drawn(tmp_path / "a.png")


def test_cells_average_the_rest_and_say_so(sweep, make_run, tmp_path):
    make_run("sweep/20", [1.0, math.nan], "diverged", algorithm="new", lr=0.1)
    shown = Heatmap("lr", ("algorithm",))
    (cells,) = cells_of(_runs(sweep), shown, _QUESTION)
    assert cells.columns == [0.01, 0.1] and cells.rows == [("fedavg",), ("fedprox",), ("new",)]
    assert cells.averaged == ["seed"]
    assert cells.means[0] == pytest.approx([2.1, 1.1]) and cells.means[1][1] == pytest.approx(0.999)
    assert all(math.isnan(mean) for mean in cells.means[2])
    assert cells.troubles[2] == ["", "1 diverged"] and cells.counts == [[3, 3], [3, 3], [0, 0]]
    draw_heatmap(tmp_path / "a.svg", [cells], shown, _QUESTION)
    text = (tmp_path / "a.svg").read_text()
    for label in ("0.9990", "1 diverged", "best_valid_loss, mean of 3 runs over seed", ">lr<", ">fedprox<"):
        assert label in text
    draw_heatmap(tmp_path / "a.png", [cells], shown, _QUESTION)
    assert _is_drawn(tmp_path / "a.png")


@pytest.mark.parametrize("mean, trouble, rows", [(math.nan, "1 diverged", 1), (math.nan, "", 2), (1.0, "", 15)])
def test_heatmaps_of_nothing_and_of_very_much(tmp_path, mean, trouble, rows):
    means = [[mean] * 20 for _ in range(rows)]
    cells = Cells(
        list(range(20)), [(row,) for row in range(rows)], means, [[trouble] * 20] * rows, [[1] * 20] * rows, []
    )
    draw_heatmap(tmp_path / "a.png", [cells], Heatmap("x", ("y",)), _QUESTION)
    assert _is_drawn(tmp_path / "a.png")


def test_parallel_coordinates(sweep, make_run, tmp_path):
    make_run("sweep/20", [1.0, math.nan], "diverged", algorithm="fedavg", lr=1)
    draw_parallel(tmp_path / "a.svg", _runs(sweep), ["algorithm", "lr", "seed"], _QUESTION)
    text = (tmp_path / "a.svg").read_text()
    for shown in (
        "best: algorithm=fedprox lr=0.1 (best_valid_loss 0.9990, mean of 3)",
        "1 without a valid result",
        "(log)",
    ):
        assert shown in text
    draw_parallel(
        tmp_path / "a.png",
        _runs(sweep),
        ["algorithm", "lr", "seed"],
        replace(_QUESTION, shown=Objective("test_accuracy@best(valid_loss)", True)),
    )
    assert _is_drawn(tmp_path / "a.png")


def test_where_values_lie_on_an_axis():
    assert scale_of(["b", "a", "b"]).places == {"b": 0.0, "a": 1.0}
    assert scale_of([3, 3]).places == {3: 0.5}
    rates = scale_of([0.1, 0.001, 0.01])
    assert rates.is_log and rates.places[0.01] == pytest.approx(0.5)
    assert [text for _, text in rates.ticks] == ["0.001", "0.01", "0.1"]
    assert not scale_of(list(range(20))).is_log
    mixed = scale_of([1, "auto", None])
    assert list(mixed.places) == [1, "auto", None] and [text for _, text in mixed.ticks] == ["1", "auto", "null"]
    many = scale_of([10 ** (-i / 10) for i in range(31)])
    assert [text for _, text in many.ticks] == ["0.001", "0.01", "0.1", "1"]


@pytest.mark.parametrize(
    "values, is_log",
    [
        ([0.1, 0.01], True),
        ([0.1, 0.05], False),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], False),
        ([1, 2, 4, 8, 16], True),
        ([0, 1, 10], False),
        ([-1, 100], False),
        ([5], False),
        ([], False),
    ],
)
def test_which_values_are_log_spaced(values, is_log):
    assert is_log_spaced(values) == is_log


@pytest.mark.parametrize(
    "low, high, is_log, ticks",
    [
        (0.0, 1.0, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.34, 0.77, False, [0.4, 0.5, 0.6, 0.7]),
        (1e-4, 0.5, True, [1e-4, 1e-3, 1e-2, 1e-1]),
        (0.5, 3.0, True, [0.5, 1, 2]),
        (2.0, 2.0, False, [2.0]),
    ],
)
def test_ticks_are_round(low, high, is_log, ticks):
    assert ticks_of(low, high, is_log) == pytest.approx(ticks)


def test_a_colour_scale_leaves_outliers_out():
    assert shade_range([1.0, 2.0, 3.0], False) == (1.0, 3.0, False)
    assert shade_range([1.0, 1.5, 2.0, 1e30], False) == (1.0, 2.5, True)
    assert shade_range([0.9, 0.8, 0.7, -1e9], True) == (pytest.approx(0.6), 0.9, True)
    assert shade_range([1.0], False) == (1.0, 1.0, False)


def test_where_a_legend_stands():
    assert legend_for(["a", "b"]).is_inside
    beside = legend_for(["a"] * 61)
    assert not beside.is_inside and beside.columns == 3 and beside.width > legend_for(["a"] * 20).width


_STROKE = r"stroke: #\w+|stroke-dasharray: [\d., ]+"


def _colors(path: Path) -> dict[str, str]:
    """Of an SVG's legend: each name's colour and dash."""
    text = path.read_text()
    entries = re.findall(
        r'<path d="[^"]*" style="fill: none;([^"]*stroke: #[^"]*)"/>\s*</g>\s*'
        r'<g id="text_\d+">.*?<text[^>]*>([^<]*)</text>',
        text,
        flags=re.DOTALL,
    )
    return {name: ";".join(sorted(re.findall(_STROKE, style), reverse=True)) for style, name in entries}


def test_a_method_has_one_colour_in_all_figures_of_a_report(make_run, tmp_path, monkeypatch, capsys):
    """Whatever its rank, whichever runs are drawn beside it, and whatever else tells lines apart."""
    from flgo_hydra.report.command import main

    monkeypatch.chdir(tmp_path)
    names = ["scaffold", "fedavg", "fedprox"]
    for i, (algorithm, lr, seed) in enumerate((a, lr, s) for a in names for lr in (0.1, 0.5) for s in range(2)):
        rank = {"scaffold": [1, 2], "fedavg": [3, 1], "fedprox": [2, 3]}[algorithm][lr == 0.5]
        make_run(f"s/{i}", [5.0, float(rank)], algorithm=algorithm, lr=lr, seed=seed, accuracies=[0.0, 1 - rank / 9])

    def colors(*options):
        assert main(["s", "--out", "a.svg", "--plot", "valid_loss", *options]) == 0
        return {name.split()[0]: look for name, look in _colors(tmp_path / "a.svg").items()}

    alone = colors("--where", "lr=0.1")
    assert [alone[name].split(";")[0] for name in names] == [f"stroke: {c}".lower() for c in COLORS[:3]]
    assert colors("--where", "lr=0.5").items() == alone.items()
    assert colors("--where", "algorithm=fedprox,fedavg").items() <= alone.items()
    assert colors("--metric", "test_accuracy", "--select", "test_accuracy").items() == alone.items()
    assert main(["s", "--out", "a.svg", "--plot", "valid_loss", "--by", "lr,algorithm"]) == 0
    both = _colors(tmp_path / "a.svg")
    for name in names:
        own = {look for label, look in both.items() if name in label}
        assert len(own) == 2 and {look.split(";")[0] for look in own} == {alone[name].split(";")[0]}


def test_looks_follow_the_grid():
    known = [(f"a{i}", j) for i in range(9) for j in range(6)]
    looks = line_looks(known, known)
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == len(known)
    some = [known[i] for i in (50, 3, 17)]
    assert line_looks(some, known) == [looks[50], looks[3], looks[17]]
    assert [line_looks([(f"a{i}", 0)], known)[0]["color"] for i in range(7)] == list(COLORS)
    assert line_looks([("new", 0)], []) == [{"color": COLORS[0], "linestyle": "-"}]


def test_methods_have_the_same_colours_at_the_end_of_a_sweep(tmp_path):
    names = line_names([("algorithm=b", "lr=1"), ("algorithm=a", "lr=1"), ("algorithm=b", "lr=2")])
    looks = line_looks(names, names)
    assert [look["color"] for look in looks] == [COLORS[0], COLORS[1], COLORS[0]]
    assert looks[0]["linestyle"] != looks[2]["linestyle"]
    alone = line_names([("lr=1", "algorithm=a"), ("lr=2", "algorithm=a")])
    assert [look["color"] for look in line_looks(alone, alone)] == list(COLORS[:2])


@pytest.mark.parametrize("count, has_methods", [(4, True), (8, False)])
def test_many_curves_have_their_methods_colours(tmp_path, monkeypatch, count, has_methods):
    """Also where all points are drawn finely; of very many methods only the best point is named."""
    points = [(f"algorithm=a{i}", f"lr={j}") for i in range(count) for j in range(5)]
    names = line_names(points)
    drawn = [
        Curve(" ".join(p), [0, 1], [2.0, 1.0], i == 7, 1, n) for i, (p, n) in enumerate(zip(points, names, strict=True))
    ]
    texts = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *args, **kwargs: texts.append(self))
    draw_curves(tmp_path / "a.png", drawn, "valid_loss", known=names)
    lines = texts[0].axes[0].get_lines()
    best = next(line for line in lines if "best" in str(line.get_label()))
    assert best.get_color() == (COLORS[1] if has_methods else BEST)
    labels = {line.get_label(): line.get_color() for line in lines}
    assert [labels.get(f"a{i}") for i in range(count)] == (list(COLORS[:4]) if has_methods else [None] * count)


def test_frames_are_the_selections_and_of_one_condition(make_run, tmp_path):
    for i, (lr, alpha) in enumerate((lr, alpha) for lr in (0.1, 0.5) for alpha in (0.1, 1)):
        loss = (1.0 if (lr == 0.1) == (alpha == 1) else 2.0) - alpha / 10
        make_run(f"s/{i}", [5.0, loss], lr=lr, accuracies=[0.0, lr], **{"task.partition.alpha": alpha})
    by_accuracy = replace(_QUESTION, shown=Objective("test_accuracy@best(valid_loss)", True))
    by_accuracy = replace(by_accuracy, conditions=("task.partition.alpha",))
    (cells,) = cells_of(_runs(tmp_path / "s"), Heatmap("lr", ("task.partition.alpha",)), by_accuracy)
    # Of each row the rate with the lowest valid_loss, though lr=0.5 has the higher accuracy.
    assert sorted(cells.best) == [(0, 1), (1, 0)]
    make_run("s/9", [5.0, 1.0], lr=0.9, **{"task.partition.alpha": 1})
    shown = Heatmap("lr", ("algorithm",), ("task.partition.alpha",))
    hard, easy = cells_of(_runs(tmp_path / "s"), shown, by_accuracy)
    assert (hard.condition, hard.best, easy.condition, easy.best) == ((0.1,), [(0, 1)], (1,), [(0, 0)])
    # lr=0.9 was run with the easier half only: both panels have its column.
    assert hard.columns == easy.columns == [0.1, 0.5, 0.9] and (hard.counts, easy.counts) == ([[1, 1, 0]], [[1, 1, 1]])


@pytest.mark.parametrize("count", [2, 3, 5, 13])
def test_panels_of_conditions(make_run, tmp_path, monkeypatch, count):
    from flgo_hydra.report.command import main

    monkeypatch.chdir(tmp_path)
    for i in range(count):
        for algorithm in ("a", "b"):
            make_run(f"s/{algorithm}{i}", [2.0, 1.0], algorithm=algorithm, **{"task.seed": i})
    assert main(["s", "--plot", "valid_loss", "--out", "a.svg"]) == 0
    text = (tmp_path / "a.svg").read_text()
    assert text.count('id="axes_') == (count if count <= 12 else 1)
    assert (f"a task.seed={count - 1}<" in text) == (count > 12)


@pytest.mark.parametrize("count", [2, 3, 5, 13])
def test_cells_of_conditions(make_run, tmp_path, monkeypatch, count):
    """No cell's mean is over two splits, and each split has its own best: lr=0.1 where it is even, else lr=0.5."""
    from flgo_hydra.report.command import main

    monkeypatch.chdir(tmp_path)
    for i, (split, lr, algorithm, seed) in enumerate(
        (s, lr, a, seed) for s in range(count) for lr in (0.1, 0.5) for a in ("a", "b") for seed in range(2)
    ):
        loss = 1 + split + ((lr == 0.1) == (split % 2 == 0)) * -0.25 + (algorithm == "b") / 8 + (seed - 0.5) / 16
        make_run(f"s/{i}", [99.0, loss], algorithm=algorithm, lr=lr, seed=seed, **{"task.seed": split})
    assert main(["s", "--heatmap", "lr,algorithm", "--out", "a.svg"]) == 0
    text = (tmp_path / "a.svg").read_text()
    assert "mean of 2 runs over seed<" in text
    assert text.count(f"stroke: {BEST.lower()}") == count
    if count <= 12:
        assert text.count('id="axes_') == 2 * count  # with their colour bars
        assert all(f">task.seed={split}<" in text for split in range(count))
        assert "each task.seed has its own colour scale" in text
    else:
        assert text.count('id="axes_') == 2 and ">task.seed=12 algorithm=b<" in text
        assert "each task.seed has its own best, but all have one colour scale" in text
    for split in range(count):
        assert all(f">{1 + split + more:.4f}<" in text for more in (-0.25, -0.125, 0, 0.125))


@pytest.mark.parametrize(
    "conditions, stacked", [(("task.seed",), False), (("task.seed",), True), (("task.seed", "lr"), True)]
)
def test_each_condition_has_its_best_cell(make_run, tmp_path, conditions, stacked):
    """Of `lr` too where it is a condition: of each of its columns."""
    for i, (split, lr, algorithm) in enumerate((s, lr, a) for s in range(2) for lr in (0.1, 0.5) for a in ("a", "b")):
        make_run(f"s/{i}", [99.0, 1 + split + lr - (algorithm == "b") / 8], algorithm=algorithm, lr=lr,
                 **{"task.seed": split})  # fmt: skip
    question = replace(_QUESTION, conditions=conditions)
    shown = Heatmap("lr", ("task.seed", "algorithm") if stacked else ("algorithm",), () if stacked else ("task.seed",))
    best = [sorted(cells.best) for cells in cells_of(_runs(tmp_path / "s"), shown, question)]
    assert best == ([[(1, 0), (1, 1), (3, 0), (3, 1)]] if "lr" in conditions else [[(1, 0), (3, 0)]] if stacked
                    else [[(1, 0)], [(1, 0)]])  # fmt: skip
