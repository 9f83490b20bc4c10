"""Means over seeds: intervals, paired differences, and how surely they are more than noise.

Student's t distribution is computed here. SciPy has it too, but importing `scipy.special` takes a quarter of a second,
which every end of a sweep would wait for; the tests compare the two.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MOST_FLIPPED = 16
"""differences: 65,536 ways to choose their signs"""


@dataclass(frozen=True)
class Estimate:
    """A mean of independent values and its 95 % interval."""

    mean: float
    std: float
    """of the values (n - 1 in the denominator); nan for a single one"""
    count: int
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval, which a single value does not have (nan)."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, math.nan, 1, math.nan, math.nan)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = t_quantile(count - 1) * std / math.sqrt(count)
    return Estimate(mean, std, count, mean - half, mean + half)


def paired_t_p(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t-test that the mean difference is 0; nan for fewer than two pairs.

    Without any spread p is 1 (all differences are 0) or 0 (all are the same other number).
    """
    if len(differences) < 2:
        return math.nan
    found = estimate(differences)
    if found.std <= 1e-12 * abs(found.mean):  # rounding alone
        return 1.0 if found.mean == 0 else 0.0
    return t_two_sided_p(found.mean / (found.std / math.sqrt(found.count)), found.count - 1)


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the exact permutation test: how many choices of signs give as large a sum. None for many pairs.

    It assumes nothing about the distribution, and cannot fall below 2 / 2^n: six pairs are the fewest for 0.05.
    """
    if not 2 <= len(differences) <= _MOST_FLIPPED:
        return None
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    observed = abs(math.fsum(differences))
    tolerance = 1e-12 * math.fsum(abs(difference) for difference in differences)  # sums of equal terms, rounded apart
    return float(np.mean(np.abs(sums) >= observed - tolerance))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): each at most 0.05 with at most 5 % risk of any false one."""
    corrected = [math.nan] * len(ps)
    known = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def t_two_sided_p(t: float, df: float) -> float:
    """P(|T| >= |t|) of Student's t distribution with `df` degrees of freedom."""
    if math.isinf(t):
        return 0.0
    # Near 0 from the other side: df / (df + t^2) would round to 1.
    return _incomplete_beta(df / 2, 0.5, df / (df + t * t), t * t / (df + t * t))


@functools.lru_cache(maxsize=1024)
def t_quantile(df: float, level: float = 0.95) -> float:
    """The t with P(|T| < t) = level."""
    low, high = 0.0, 1.0
    while t_two_sided_p(high, df) > 1 - level:
        low, high = high, 2 * high
    while high - low > 1e-14 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_two_sided_p(middle, df) > 1 - level else (low, middle)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float, y: float) -> float:
    """The regularized incomplete beta function I_x(a, b), given y = 1 - x too.

    By the continued fraction 26.5.8 of Abramowitz and Stegun, evaluated as Lentz and Thompson do.
    """
    if x <= 0:
        return 0.0
    if y <= 0:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - _incomplete_beta(b, a, y, x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y)
    tiny = 1e-300
    c, d = 1.0, 1 / _away_from_0(1 - (a + b) * x / (a + 1), tiny)
    fraction = d
    for m in range(1, 10_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_0(1 + numerator * d, tiny)
            c = _away_from_0(1 + numerator / c, tiny)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(log_front) * fraction / a


def _away_from_0(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
