import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # comes with scikit-learn

from flgo_hydra.report.statistics import holm, sign_flip_p, t_quantile, t_test, t_two_sided_p


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
    assert t_two_sided_p(1e-8, 1) == pytest.approx(1 - 2e-8 / math.pi, abs=1e-8)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_one_variance_is_students_test(differences: list[float]) -> None:
    count = len(differences)
    mean = sum(differences) / count
    variance = sum((value - mean) ** 2 for value in differences) / (count - 1) / count
    if max(differences) - min(differences) < 1e-6:
        return
    half, p = t_test(mean, [variance], [count - 1])
    assert p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-6, abs=1e-12)
    assert half == pytest.approx(stats.t.ppf(0.975, count - 1) * math.sqrt(variance), rel=1e-9)


@pytest.mark.parametrize("variances, dfs", [([1.0, 0.25], [4, 1]), ([0.5, 0.5], [9, 2]), ([0.0, 2.0], [3, 5])])
def test_two_variances_average_students_quantiles(variances: list[float], dfs: list[float]) -> None:
    shares = [variance / sum(variances) for variance in variances]

    def quantile(p: float) -> float:
        return sum(share * stats.t.isf(p / 2, df) for share, df in zip(shares, dfs, strict=True))

    for mean in (0.5, 3.0, 20.0):
        half, p = t_test(mean, variances, dfs)
        assert half == pytest.approx(quantile(0.05) * math.sqrt(sum(variances)), rel=1e-8)
        assert quantile(p) == pytest.approx(mean / math.sqrt(sum(variances)), rel=1e-5)
    assert t_test(0.0, variances, dfs)[1] == 1.0


@pytest.mark.parametrize("df", [1, 2, 7, 100])
@pytest.mark.parametrize("level", [0.1, 0.9, 0.999999])
def test_quantiles_far_out(df: int, level: float) -> None:
    assert t_quantile(df, level) == pytest.approx(stats.t.isf((1 - level) / 2, df), rel=1e-8)


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
