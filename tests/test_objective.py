import ast
import math
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flgo_hydra
from flgo_hydra.objective import KNOWN, VALID_LOSS, Objective, caveats, metric_of

nan, inf = math.nan, math.inf


@pytest.mark.parametrize(
    "metric, mode, is_maximized",
    [
        ("valid_loss", None, False),
        ("valid_accuracy", None, True),
        ("test_loss", None, False),
        ("test_accuracy", None, True),
        ("test_accuracy", "min", False),
        ("macro_f1", "max", True),
        ("my_accuracy", "min", False),
    ],
)
def test_the_direction_of_ours_is_known_and_of_others_said(metric, mode, is_maximized):
    assert Objective.asked(metric, mode) == Objective(metric, is_maximized)


@pytest.mark.parametrize("metric", ["macro_f1", "my_accuracy", "worst_loss", "accuracy", "f1_score", ""])
def test_nothing_is_guessed_from_a_name(metric):
    with pytest.raises(ValueError, match="`monitor_mode=min` or `monitor_mode=max`"):
        Objective.asked(metric)


def test_a_wrong_mode_is_refused():
    with pytest.raises(ValueError, match="`monitor_mode` must be one of min, max, but got 'maximize'"):
        Objective.asked("test_accuracy", "maximize")


@pytest.mark.parametrize("monitor", [VALID_LOSS, Objective("x", True)])
@given(values=st.lists(st.sampled_from([0.0, -1.0, 2.0, nan, inf, -inf]), max_size=8))
def test_the_best_round_is_the_first_of_the_best_finite_ones(monitor, values):
    lines = [{"round": i, monitor.metric: value} for i, value in enumerate(values)]
    finite = [value for value in values if math.isfinite(value)]
    best = monitor.best_of(lines)
    if not finite:
        assert best is None
        return
    wanted = max(finite) if monitor.is_maximized else min(finite)
    assert best is not None and (best["round"], best[monitor.metric]) == (values.index(wanted), wanted)
    assert min(finite, key=monitor.score) == wanted == sorted(values, key=monitor.rank)[0]


def test_a_score_is_its_own_inverse_and_a_missing_metric_is_nan():
    for monitor in (VALID_LOSS, Objective("x", True)):
        assert monitor.score(monitor.score(2.5)) == 2.5
        assert math.isnan(monitor.of({})) and math.isnan(monitor.of({"y": 1.0}))


def test_the_sign_is_turned_on_the_way_into_optuna_and_nowhere_else():
    package = Path(flgo_hydra.__file__).parent
    turning = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "score"
    }
    assert turning == {"objective.py", "study/stored/study.py", "study/pruning.py"}


@pytest.mark.parametrize("name", [*KNOWN, "best", "a.b", "x@best(y)", "best_valid_los"])
def test_columns_name_metric_and_monitor(name):
    for monitor in (VALID_LOSS, Objective("test_accuracy", True), Objective("é", True)):
        assert monitor.at_best(name) == f"{name}@best({monitor.metric})" and metric_of(monitor.at_best(name)) == name
    assert VALID_LOSS.column == "best_valid_loss" and metric_of("best_valid_loss") == "valid_loss"
    assert Objective("valid_loss", True).column == "valid_loss@best(valid_loss)"


def test_it_travels_as_plain_values():
    for monitor in (VALID_LOSS, Objective("best", True)):
        assert Objective.from_json(asdict(monitor)) == monitor
    assert Objective.from_json(None) == Objective.from_json({"metric": 3}) == VALID_LOSS


@pytest.mark.parametrize(
    "metric, mode, num_caveats",
    [
        ("valid_loss", None, 0),
        ("valid_loss", "min", 0),
        ("valid_loss", "max", 1),
        ("test_accuracy", "min", 1),
        ("own", "min", 0),
    ],
)
def test_a_direction_that_is_turned_round_is_told(metric: str, mode: str | None, num_caveats: int) -> None:
    told = caveats(metric, mode)
    assert len(told) == num_caveats and all(
        f"`monitor_mode={mode}` follows the worst {metric}" in text for text in told
    )


@pytest.mark.parametrize(
    "name, is_test", [("latest_gap", False), ("fastest", False), ("test_f1", True), ("f1_test", True)]
)
def test_which_samples_a_metric_is_of_is_read_off_whole_words(name, is_test):
    assert (Objective(name).samples == "test") == is_test
