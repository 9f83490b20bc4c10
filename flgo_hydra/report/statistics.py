"""How surely a mean is more than noise: Student's t (SciPy's), exact sign flips, Holm's correction."""

import math
from collections.abc import Sequence

import numpy as np

_MOST_FLIPPED = 16
"""differences: 65,536 ways to choose their signs"""


def t_test(mean: float, variances: Sequence[float], dfs: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Half the width of a mean's interval, and the two-sided p that it is 0, where its variance is a sum of estimates.

    With one estimate this is Student's. With several, Student's quantiles are averaged by the estimates' shares
    (Cochran and Cox, Experimental Designs, 1957, 4.14), which errs towards caution; Satterthwaite's degrees of freedom
    came to 12 % false positives at 5 % where one of the estimates had a single one.

    Args:
        variances: of the mean, not all 0.
        dfs: degrees of freedom of each.
    """
    total = math.fsum(variances)
    shares = [variance / total for variance in variances]
    error = math.sqrt(total)
    t = abs(mean) / error

    def quantile(p: float) -> float:
        return math.fsum(share * t_quantile(df, 1 - p) for share, df in zip(shares, dfs, strict=True) if share)

    return quantile(1 - level) * error, _averaged_p(t, shares, dfs)


def _averaged_p(t: float, shares: Sequence[float], dfs: Sequence[float]) -> float:
    """The p whose averaged quantile is t: between the p of the fewest and of the most degrees of freedom."""
    used = [(share, df) for share, df in zip(shares, dfs, strict=True) if share]
    ends = sorted(t_two_sided_p(t, df) for _, df in used)
    low, high = ends[0], ends[-1]
    while high - low > 1e-6 * high and low > 0:
        middle = math.sqrt(low * high)
        if math.fsum(share * _upper_quantile(df, middle) for share, df in used) > t:
            low = middle
        else:
            high = middle
    return high


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
    from scipy.special import stdtr

    return 2 * float(stdtr(df, -abs(t)))


def t_quantile(df: float, level: float = 0.95) -> float:
    """The t with P(|T| < t) = level."""
    return _upper_quantile(df, 1 - level)


def _upper_quantile(df: float, p: float) -> float:
    """The t with P(|T| >= t) = p."""
    from scipy.special import stdtrit

    return -float(stdtrit(df, p / 2))
