import math
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from flgo_hydra.report.curves import Curve, distinct_names, draw_curves, top_of

_ROOT = Path(__file__).resolve().parents[2]


def _curve(i: int, is_best: bool = False) -> Curve:
    return Curve(f"lr={i}", [0, 1, 2], [2.0, 1.0 + i / 200, math.nan], is_best, 1)


@pytest.mark.parametrize(
    "curves",
    [
        [],
        [Curve("a single point", [0], [2.0], True, 0)],
        [Curve("nan", [0, 1], [math.nan, math.inf])],
        [_curve(0), _curve(1, is_best=True)],
        [_curve(0), Curve("blew up", [0, 1, 2], [2.0, 1e30, math.inf])],
        [Curve("best round was not recorded", [0, 2], [2.0, 1.0], True, 1)],
        [_curve(i, is_best=i == 7) for i in range(200)],
        [_curve(i) for i in range(13)],
    ],
    ids=["none", "one", "nan", "two", "blew up", "no best", "200", "13, no best"],
)
def test_a_png_is_drawn(tmp_path: Path, curves: list[Curve]) -> None:
    draw_curves(tmp_path / "curves.png", curves, "valid_loss")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_a_users_own_plots_are_left_alone(tmp_path: Path) -> None:
    before = matplotlib.get_backend()
    draw_curves(tmp_path / "curves.png", [_curve(0)], "valid_loss")
    assert matplotlib.get_backend() == before
    code = "import sys, flgo_hydra.report.curves; print('matplotlib' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(_ROOT)}, capture_output=True, text=True)
    assert ended.stdout == "False\n"


@pytest.mark.parametrize(
    "losses, top",
    [
        ([], None),
        ([[math.nan]], None),
        ([[2.0, 1.0]], 3.0),
        ([[2.0, 1.0], [2.0, 1e30]], 3.0),  # one blew up
        ([[2.0, 1e20], [2.0, 1e30], [math.nan, 2.0]], 3.0),
        ([[0.1, 0.4], [0.1, 0.8]], pytest.approx(0.6)),  # from good weights: the tamest curve is seen whole
    ],
)
def test_top_of_the_axis(losses: list[list[float]], top: float | None) -> None:
    assert top_of(losses) == top


@pytest.mark.parametrize(
    "names, shown",
    [
        ([], []),
        (["lr=1 seed=0"], ["lr=1 seed=0"]),
        (["lr=1 seed=0", "lr=2 seed=0"], ["lr=1", "lr=2"]),
        (["lr=1 seed=0", "lr=2 seed=0", "lr=1 seed=1"], ["lr=1 seed=0", "lr=2 seed=0", "lr=1 seed=1"]),
        (["lr=1", "lr=1"], ["lr=1", "lr=1"]),
        (["lr=1", "lr=1 mu=2"], ["lr=1", "mu=2"]),
    ],
)
def test_names_without_what_all_have(names: list[str], shown: list[str]) -> None:
    assert distinct_names(names) == shown


def test_a_long_name_keeps_both_ends() -> None:
    assert distinct_names(["abcdefghij"], most=7) == ["abc…hij"]
