import math

import pytest

from flgo_hydra.objective import Objective
from flgo_hydra.report.comparison import compare, with_parameters
from flgo_hydra.report.over_seeds import group_runs
from flgo_hydra.report.question import Question
from flgo_hydra.report.runs import read_runs
from flgo_hydra.report.selection import Selection


def _runs(folder):
    return read_runs([folder])[0]


_BY_LOSS = Selection(Objective("best_valid_loss"))


def _compare(runs, keys=("algorithm",), over=("seed",), metric="best_valid_loss", selection=_BY_LOSS, conditions=()):
    return compare(runs, Question(Objective(metric), selection, (), tuple(over), tuple(keys), tuple(conditions)))


def test_groups_over_seeds(sweep):
    best, *others = group_runs(_runs(sweep), ["algorithm", "lr"], ["test_loss@best(valid_loss)"], ["seed"], _BY_LOSS)
    assert best.point == ("fedprox", 0.1) and len(best.runs) == 3 and best.left_out == ""
    assert best.estimates["best_valid_loss"].mean == pytest.approx(0.999)
    assert best.estimates["test_loss@best(valid_loss)"].mean == pytest.approx(1.499)
    assert [group.point for group in others] == [("fedavg", 0.1), ("fedavg", 0.01), ("fedprox", 0.01)]
    worst, *_ = group_runs(
        _runs(sweep), ["algorithm", "lr"], [], ["seed"], Selection(Objective("best_valid_loss", True))
    )
    assert worst.point[1] == 0.01


def test_a_mean_says_whom_it_does_not_know(make_run, tmp_path):
    for seed, (losses, status) in enumerate([([1.0], "completed"), ([0.1], "pruned"), ([0.1], "diverged")]):
        make_run(f"s/{seed}", losses, status, seed=seed)
    make_run("s/3", [0.1], status=None, failure="Error: x", seed=3)
    make_run("s/4", [0.1], "diverged", lr=9)
    good, bad = group_runs(_runs(tmp_path / "s"), ["lr"], [], ["seed"], _BY_LOSS)
    assert good.estimates["best_valid_loss"].mean == 1.0 and good.left_out == "1 pruned, 1 diverged, 1 failed"
    assert bad.estimates == {} and bad.left_out == "1 diverged"


def test_differences_averaged_and_at_best(sweep):
    averaged, tuned = _compare(_runs(sweep))
    assert (averaged.first, averaged.second, averaged.num_settings) == (("fedavg",), ("fedprox",), 2)
    assert averaged.estimate.mean == pytest.approx(0.101 / 2) and averaged.estimate.count == 3
    assert averaged.verdict == "larger than seed noise"
    assert (tuned.first_setting, tuned.second_setting) == ((0.1,), (0.1,))
    assert tuned.estimate.mean == pytest.approx(0.101) and tuned.estimate.std == pytest.approx(0.001)
    # Three seeds cannot both choose and be compared.
    assert tuned.verdict == "not tested: the same seeds chose the settings" and not tuned.is_tested
    assert math.isnan(tuned.p) and math.isnan(tuned.estimate.low) and tuned.p_exact is None
    assert averaged.p_exact == 0.25 and averaged.p == averaged.p_holm < 0.01


def test_the_setting_is_no_noise_and_the_seed_is(make_run, tmp_path):
    """b is lower by 1 in one setting and by 0 in another, alike in each seed: nothing of that is noise."""
    for i, (lr, gap) in enumerate([(0.1, 1.0), (0.2, 0.0)]):
        for seed in range(3):
            wobble = 0.01 * seed * (2 if lr == 0.1 else -1)
            make_run(f"s/{6 * i + 2 * seed}", [5.0 + seed], algorithm="a", lr=lr, seed=seed)
            make_run(f"s/{6 * i + 2 * seed + 1}", [5.0 + seed - gap + wobble], algorithm="b", lr=lr, seed=seed)
    averaged, _ = _compare(_runs(tmp_path / "s"))
    assert averaged.estimate.mean == pytest.approx(0.495) and averaged.verdict == "larger than seed noise"


def test_half_finished_settings_are_left_out_not_mixed(make_run, tmp_path):
    for i, (algorithm, lr, seed) in enumerate((a, lr, s) for a in "ab" for lr in (0.1, 0.2) for s in range(3)):
        if (algorithm, lr, seed) != ("b", 0.2, 2):
            make_run(
                f"s/{i}", [1.0 + (algorithm == "b") * (lr == 0.2) + seed / 10], algorithm=algorithm, lr=lr, seed=seed
            )
    averaged, _ = _compare(_runs(tmp_path / "s"))
    # 2 seeds in both settings are more pairs than 3 in one.
    assert (averaged.estimate.count, averaged.num_settings, averaged.num_left_out) == (2, 2, 1)
    assert averaged.estimate.mean == pytest.approx(-0.5)


def test_each_at_its_best_where_those_differ(make_run, tmp_path):
    for i, (algorithm, lr, loss) in enumerate([("a", 0.1, 1.0), ("a", 0.2, 3.0), ("b", 0.1, 3.0), ("b", 0.2, 2.0)]):
        for seed in range(2):
            make_run(
                f"s/{10 * i + seed}",
                [loss + seed * (1.1 if algorithm == "a" else 1)],
                algorithm=algorithm,
                lr=lr,
                seed=seed,
            )
    averaged, tuned = _compare(_runs(tmp_path / "s"))
    assert averaged.estimate.mean == pytest.approx(-0.5 + 0.05)
    assert (tuned.first_setting, tuned.second_setting) == ((0.1,), (0.2,))
    assert tuned.estimate.mean == pytest.approx(-0.95)


def test_one_seed_says_nothing_about_noise(make_run, tmp_path):
    make_run("s/0", [1.0], algorithm="a")
    make_run("s/1", [2.0], algorithm="b")
    (found,) = _compare(_runs(tmp_path / "s"))
    assert found.verdict == "one seed: noise unknown" and found.estimate.mean == -1 and math.isnan(found.p)


def test_equal_in_every_seed(make_run, tmp_path):
    for i, (algorithm, seed) in enumerate((a, s) for a in "ab" for s in range(3)):
        make_run(f"s/{i}", [1.0 + seed], algorithm=algorithm, seed=seed)
    (found,) = _compare(_runs(tmp_path / "s"))
    assert found.verdict == "equal" and found.p == 1.0


def test_three_are_corrected_for_three(make_run, tmp_path):
    for i, (algorithm, seed) in enumerate((a, s) for a in range(3) for s in range(4)):
        make_run(
            f"s/{i}",
            [10 + algorithm + [0, 0.3, 0.1, 0.2][(seed + algorithm) % 4]],
            algorithm=f"a{algorithm}",
            seed=seed,
        )
    found = _compare(_runs(tmp_path / "s"))
    assert len(found) == 3 and min(d.p_holm / d.p for d in found) >= 1
    assert max(d.p_holm / d.p for d in found) == pytest.approx(3)


def test_parameters_make_an_algorithm_another_one(make_run, tmp_path):
    make_run("s/0", [1.0], algorithm="fedavg")
    make_run("s/1", [2.0], algorithm="fedprox", **{"algorithm.mu": 0.1})
    make_run("s/2", [4.0], algorithm="fedprox", **{"algorithm.mu": 1})
    runs = _runs(tmp_path / "s")
    keys = with_parameters(["algorithm"], runs)
    assert keys == ["algorithm", "algorithm.mu"]
    found = _compare(runs, keys)
    assert [d.estimate.mean for d in found] == [-1.0, -3.0, -2.0]
    assert found[0].first == ("fedavg", "-") and found[2].second == ("fedprox", 1)


def test_runs_that_did_not_end_well_are_not_compared(make_run, tmp_path):
    make_run("s/0", [1.0], algorithm="a")
    make_run("s/1", [0.5], "pruned", algorithm="b")
    assert _compare(_runs(tmp_path / "s")) == []
