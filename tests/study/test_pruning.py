"""Patience beside a definition anybody can check, and Optuna's pruners over groups of runs."""

import math

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from flgo_hydra import compose
from flgo_hydra.reference import described
from flgo_hydra.study.pruning import PatiencePruner, Pruning, _rung_rounds, make_pruner

LOSSES = st.one_of(st.sampled_from([0.0, 1.0, 2.0, math.nan, math.inf, -math.inf]), st.floats(-3, 3))
CURVES = st.lists(LOSSES, min_size=1, max_size=30)


def has_waited(curve, patience):
    """By definition: for `patience` rounds in a row no loss was finite and below all finite ones before it."""
    for end in curve:
        better = [
            r
            for r in curve
            if r <= end
            and math.isfinite(curve[r])
            and all(curve[r] < curve[q] for q in curve if q < r and math.isfinite(curve[q]))
        ]
        if end - max(better, default=0) >= patience:
            return True
    return False


def frozen(curve, state=TrialState.RUNNING):
    value = min(curve.values()) if state == TrialState.COMPLETE else None
    return optuna.create_trial(state=state, value=value, intermediate_values=curve)


@settings(max_examples=300, deadline=None)
@given(CURVES, st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_patience_is_its_definition(losses, patience, eval_interval, is_maximized):
    """With ties, nan and inf; evaluated every few rounds, and in the last one."""
    last = (len(losses) - 1) * eval_interval + 1 if len(losses) > 1 else 0
    rounds = [i * eval_interval for i in range(len(losses) - 1)] + [last]
    curve = dict(zip(rounds, losses, strict=True))
    study = optuna.create_study(direction="maximize" if is_maximized else "minimize")
    reported = {r: -v for r, v in curve.items()} if is_maximized else curve
    assert PatiencePruner(patience).prune(study, frozen(reported)) == has_waited(curve, patience)


def test_it_prunes_when_early_stop_stops(make_conf, empty_folder):
    """The run's own decision, in a real run."""
    from flgo_hydra import app
    from flgo_hydra.record.paths import RunPaths
    from flgo_hydra.record.result import read_rounds

    study = optuna.create_study()
    conf = make_conf("model=logistic", "lr=4", "num_steps=1", "num_rounds=30", "early_stop=3", "eval_interval=2")
    result = app.run(conf, empty_folder / "run")
    assert result.status == "early_stopped"
    curve = {int(line["round"]): line["valid_loss"] for line in read_rounds(RunPaths(empty_folder / "run"))}
    assert PatiencePruner(3).prune(study, frozen(curve))
    curve.pop(result.last_round)
    assert not PatiencePruner(3).prune(study, frozen(curve))


def test_patience_in_a_study_of_ones_own():
    study = optuna.create_study(pruner=PatiencePruner(2))

    def objective(trial):
        for step, loss in enumerate([1.0, 0.5, 0.5, 0.5, 0.1]):
            trial.report(loss, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return loss

    study.optimize(objective, n_trials=1)
    assert list(study.trials[0].intermediate_values) == [0, 1, 2, 3] and study.trials[0].state == TrialState.PRUNED


def test_no_patience_at_all_is_an_error():
    with pytest.raises(ValueError, match="patience >= 1"):
        PatiencePruner(0)


@pytest.mark.parametrize(
    "setting, kind, text",
    [
        ("median", "MedianPruner", "median"),
        (
            {"name": "median", "n_warmup_steps": 5, "n_min_trials": 2},
            "MedianPruner",
            "n_warmup_steps=5",
        ),
        ({"name": "percentile", "percentile": 25.0}, "PercentilePruner", "percentile=25.0"),
        ("asha", "SuccessiveHalvingPruner", "asha"),
        ("hyperband", "HyperbandPruner", "hyperband"),
        ("wilcoxon", "WilcoxonPruner", "wilcoxon"),
        (
            {"_target_": "flgo_hydra.study.pruning.PatiencePruner", "patience": 3},
            "PatiencePruner",
            "Pruner(patience=3",
        ),
    ],
)
def test_pruners_by_name(setting, kind, text):
    assert type(make_pruner(setting, 20)).__name__ == kind
    assert text in described(setting)


@pytest.mark.parametrize(
    "setting, says",
    [
        ({"name": "median", "warmup": 5}, "warmup"),
        ({"name": "median", "n_warmup_steps": -1}, "n_warmup_steps"),
        ({"_target_": "optuna.Study"}, "cannot be called"),
        ({"_target_": "optuna.samplers.RandomSampler"}, "BasePruner"),
        ({"_target_": "nowhere.Pruner"}, "nowhere"),
    ],
)
def test_wrong_pruners_are_refused(setting, says):
    with pytest.raises(ValueError, match=says):
        Pruning(setting)


def play(pruning, number, losses, group="g", num_rounds=20):
    """Runs a trial to the end, or to where it is pruned; returns the last round."""
    pruning.start(number, group, num_rounds)
    for round_num, loss in enumerate(losses):
        if pruning.report(number, round_num, loss):
            pruning.finish(number, None, is_pruned=True)
            return round_num
    pruning.finish(number, min(losses))
    return round_num


GOOD = [2.0, 1.0, 0.9, 0.8, 0.7]
BAD = [2.0, 1.9, 1.8, 1.7, 1.6]


def test_a_run_below_the_median_ends():
    pruning = Pruning({"name": "median", "n_startup_trials": 2, "n_warmup_steps": 2})
    assert [play(pruning, n, GOOD) for n in range(2)] == [4, 4]
    assert play(pruning, 2, BAD) == 2
    assert play(pruning, 3, [*GOOD[:4], 0.6]) == 4


def test_only_runs_of_a_group_are_compared():
    """Losses of two tasks, or two seeds, say nothing of each other."""
    pruning = Pruning({"name": "median", "n_startup_trials": 1})
    assert play(pruning, 0, GOOD, "one") == 4
    assert play(pruning, 1, BAD, "other") == 4
    assert play(pruning, 2, BAD, "one") == 1


def test_what_a_diverged_run_says_is_not_the_pruners():
    pruning = Pruning({"name": "median", "n_startup_trials": 1})
    play(pruning, 0, GOOD)
    pruning.start(1, "g", 20)
    assert not pruning.report(1, 0, 2.0) and not pruning.report(1, 1, math.nan)
    pruning.finish(1, None)


def test_it_is_said_once_and_known_to_a_new_attempt():
    pruning = Pruning({"name": "median", "n_startup_trials": 1})
    play(pruning, 0, GOOD)
    pruning.start(1, "g", 20)
    assert [pruning.report(1, r, loss) for r, loss in enumerate(BAD[:4])] == [False, True, False, False]
    assert pruning.is_pruned(1)
    assert not pruning.report(1, 2, BAD[2])  # again, from the checkpoint
    pruning.finish(1, None, is_pruned=True)
    assert not pruning.is_pruned(1)


@pytest.mark.parametrize("setting", ["asha", "hyperband", {"name": "median", "n_startup_trials": 1}])
def test_a_later_sweep_decides_as_if_it_were_the_same(setting):
    """Earlier trials count as if they had run in this process: successive halving's notes are made again."""
    curves = [[2.0] + [1.0 + i * 0.1 + 1.0 / r for r in range(1, 21)] for i in (3, 1, 4, 1.5, 5, 9, 2, 6, 0.5, 3.5)]
    whole = Pruning(setting)
    expected = [play(whole, n, curve) for n, curve in enumerate(curves)]
    assert any(last < 20 for last in expected) and any(last == 20 for last in expected)
    for cut in (3, 7):
        ended = [
            ("g", frozen(dict(enumerate(curve[: last + 1])), TrialState.COMPLETE if last == 20 else TrialState.PRUNED))
            for curve, last in zip(curves[:cut], expected, strict=False)
        ]
        later = Pruning(setting, ended)
        assert [play(later, n, curves[n]) for n in range(cut, 10)] == expected[cut:]


def test_rungs_of_successive_halving():
    pruner = make_pruner({"name": "asha", "min_resource": 2, "reduction_factor": 3}, 100)
    assert list(_rung_rounds(pruner, list(range(60)))) == [2, 6, 18, 54]
    assert list(_rung_rounds(pruner, [0, 5, 10, 15, 20])) == [5, 10, 20]
    assert list(_rung_rounds(make_pruner("median", 100), list(range(60)))) == []


def test_wilcoxon_takes_a_few_rounds_behind_the_best_for_a_verdict():
    """As documented: rounds are no independent samples, so it ends whatever starts more slowly than the best run."""
    pruning = Pruning("wilcoxon")
    play(pruning, 0, [2.0 - 0.1 * r for r in range(20)])
    slower_but_better = [2.0] + [2.0 - 0.05 * r for r in range(1, 10)] + [0.01] * 10
    assert play(pruning, 1, slower_but_better) < 9
    pruning = Pruning({"name": "wilcoxon", "n_startup_steps": 10})
    play(pruning, 0, [2.0 - 0.1 * r for r in range(20)])
    assert play(pruning, 1, slower_but_better) >= 9


def test_runs_of_a_group_share_task_and_seed(make_conf):
    def of(*overrides):
        return compose.group(make_conf(*overrides))

    one = of("model=logistic")
    assert [of(key) for key in ("lr=0.3", "algorithm=fedprox", "device=cpu")] == [one] * 3
    others = [of(key) for key in ("seed=1", "task.seed=1", "task/partition=dirichlet", "task=synthetic")]
    assert len({one, *others}) == 5
