import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # comes with scikit-learn

from flgo_hydra.report.statistics import estimate, holm, paired_t_p, sign_flip_p, t_quantile, t_two_sided_p


@pytest.mark.parametrize("df", [1, 2, 3, 4.5, 9, 30, 500, 1e5])
def test_students_t_is_scipys(df: float) -> None:
    for t in (0.01, 0.3, 1.0, 2.5, 10.0, 200.0):
        assert t_two_sided_p(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-9, abs=1e-300)
        assert t_two_sided_p(-t, df) == t_two_sided_p(t, df)
    for level in (0.5, 0.9, 0.95, 0.999):
        assert t_quantile(df, level) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-8)


def test_the_ends_of_students_t() -> None:
    assert t_two_sided_p(0, 3) == 1.0 and t_two_sided_p(math.inf, 3) == 0.0
    assert t_quantile(1) == pytest.approx(12.706204736, rel=1e-9)  # the tables' value
    assert t_two_sided_p(1e-8, 1) == pytest.approx(1 - 2e-8 / math.pi, abs=1e-16)


def test_estimate_by_hand() -> None:
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.std, found.count) == (2.0, 1.0, 3)
    assert found.high == pytest.approx(2 + 4.302652730 / math.sqrt(3)) and found.low == pytest.approx(4 - found.high)
    alone = estimate([5.0])
    assert alone.mean == 5.0 and all(math.isnan(value) for value in (alone.std, alone.low, alone.high))


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_paired_t_is_scipys(differences: list[float]) -> None:
    if max(differences) - min(differences) < 1e-6:
        return
    assert paired_t_p(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("differences, p", [([0.0, 0.0, 0.0], 1.0), ([0.1, 0.1, 0.1], 0.0), ([-2.0, -2.0], 0.0)])
def test_without_spread(differences: list[float], p: float) -> None:
    assert paired_t_p(differences) == p
    assert math.isnan(paired_t_p(differences[:1]))


def test_sign_flips_are_all_counted() -> None:
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8  # only all as they are, and all turned round
    assert sign_flip_p([0.1] * 6) == 2 / 64
    assert sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([1.0]) is None and sign_flip_p([1.0] * 17) is None
    rng = random.Random(0)
    for count in (2, 3, 5, 8):
        values = [rng.gauss(0.5, 1) for _ in range(count)]
        sums = [
            abs(sum(s * v for s, v in zip(signs, values, strict=True)))
            for signs in itertools.product((1, -1), repeat=count)
        ]
        assert sign_flip_p(values) == pytest.approx(sum(s >= abs(sum(values)) - 1e-12 for s in sums) / 2**count)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []
    corrected = holm([math.nan, 0.02])
    assert math.isnan(corrected[0]) and corrected[1] == 0.02
