import itertools
import math

import pytest
from scipy import stats

from flgo_hydra.report.replicates import estimate, estimate_over, halves, independent_keys

_OVER = ("seed", "task.seed")
_CROSSED = list(itertools.product(range(3), range(2)))  # seeds 0, 1, 2 in each of the splits 0, 1
_OWN = [(0, 0), (1, 0), (10, 1), (20, 2)]  # seeds of its own for each split


def test_independent_values_by_hand():
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.std, found.count, found.num_units) == (2.0, 1.0, 3, 3)
    assert found.high == pytest.approx(2 + 4.302652730 / math.sqrt(3)) and found.low == pytest.approx(4 - found.high)
    assert found.p == pytest.approx(stats.ttest_1samp([1.0, 2.0, 3.0], 0).pvalue)
    alone = estimate([5.0])
    assert alone.mean == 5.0 and all(math.isnan(value) for value in (alone.std, alone.low, alone.high, alone.p))


@pytest.mark.parametrize(
    "values, p", [([0.0] * 3, 1.0), ([0.1] * 3, 0.25), ([-2.0] * 2, 0.5), ([0.1] * 6, 2 / 64), ([1e-300, 1e-300], 0.5)]
)
def test_without_spread_the_signs_are_all_there_is(values, p):
    found = estimate(values)
    assert found.p == p and found.low == found.high == pytest.approx(found.mean)


@pytest.mark.parametrize(
    "levels, over, keys",
    [
        ([(0,), (1,)], ["seed"], [0]),
        ([(0,), (0,)], ["seed"], []),
        (_CROSSED, _OVER, [1, 0]),  # both count, the split is the outer one
        (_OWN, _OVER, [1]),  # seeds within splits
        ([(1, 0), (2, 1), (3, 2)], _OVER, [1]),  # seed and split vary as one
        ([(1, 0), (2, 0), (3, 0)], _OVER, [0]),  # a single split
        ([(0, 0), (0, 1), (1, 2), (1, 3)], _OVER, [0]),  # splits within seeds: the seed is the outer one
        ([(0, 0), (0, 1), (1, 0)], _OVER, [1, 0]),  # a run is missing
        ([(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)], ["seed", "task.seed", "lr"], [1, 2]),
    ],
)
def test_which_keys_are_units(levels, over, keys):
    assert independent_keys(levels, over) == keys


def test_inner_values_are_averaged_first():
    """Splits 0, 1, 2 with means 1.5, 5 and 4, however many seeds each has."""
    found = estimate_over([(level, value) for level, value in zip(_OWN, [1.0, 2.0, 5.0, 4.0], strict=True)], _OVER)
    by_split = estimate([1.5, 5.0, 4.0])
    assert found.count == 4 and found.num_units == 3 and found.std == pytest.approx(1.8257419)
    assert (found.mean, found.low, found.high, found.p) == (by_split.mean, by_split.low, by_split.high, by_split.p)
    assert found.p_exact == by_split.p_exact


def test_seeds_of_one_split_are_not_independent():
    """Ten seeds of two splits that differ: two units, and nothing is known."""
    values = [((seed, split), 1.0 + split + 0.01 * seed) for seed in range(10) for split in range(2)]
    found = estimate_over(values, _OVER)
    assert found.num_units == 2 and found.p > 0.05
    assert estimate([value for _, value in values]).p < 1e-6  # as if they were


def test_crossed_seeds_and_splits_add_their_variances():
    values = [((seed, split), float(seed + 10 * split)) for seed, split in _CROSSED]
    found = estimate_over(values, _OVER)
    # By split: 1, 11; by seed: 5, 6, 7.
    variance = 50 / 2 + 1 / 3
    quantile = (25 * stats.t.isf(0.025, 1) + 1 / 3 * stats.t.isf(0.025, 2)) / variance
    assert found.mean == 6 and found.high - 6 == pytest.approx(quantile * math.sqrt(variance))


def test_a_luck_that_splits_share_is_seen():
    """Seed 0 is high in every one of five splits: that is one observation, not five."""
    values = [((seed, split), 1.0 - seed + 0.01 * split) for seed in range(2) for split in range(5)]
    assert estimate_over(values, _OVER).p > 0.2


@pytest.mark.parametrize(
    "levels, over, choosing, comparing",
    [
        ([(i,) for i in range(3)], ["seed"], None, None),
        ([(i,) for i in (10, 9, 8, 7)], ["seed"], [(7,)], [(10,), (9,), (8,)]),
        ([(i,) for i in range(7)], ["seed"], [(0,), (1,)], [(i,) for i in range(2, 7)]),
        ([(4 * i + j, i) for i in range(4) for j in range(2)], _OVER, [(0, 0), (1, 0)], None),
        (list(itertools.product(range(3), range(4))), _OVER, [(0, 0)], list(itertools.product((1, 2), (1, 2, 3)))),
        (list(itertools.product(range(2), range(9))), _OVER, None, None),
    ],
)
def test_who_chooses_shares_no_unit_with_who_is_compared(levels, over, choosing, comparing):
    parts = halves(levels, over)
    if choosing is None:
        assert parts is None
        return
    assert parts is not None and parts[0] == choosing
    if comparing is not None:
        assert parts[1] == comparing
    for key in independent_keys(levels, over):
        assert not {level[key] for level in parts[0]} & {level[key] for level in parts[1]}
