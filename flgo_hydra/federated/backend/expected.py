"""How many samples the clients of a task may be expected to have, whatever the seed of its split.

Runs that differ in seeds only shall be trained in one way. So nothing here looks at one cohort, nor at the sizes that
one split has drawn, but at what all splits of a config have in common: the number of samples and of clients, and
whether clients are alike, differ, or differ much. That last one is read off the sizes by their Gini coefficient (0:
all alike; 1: one has all), which varies little from draw to draw, in three classes far apart: iid, shards and balanced
splits are at 0; Dirichlet splits of ten classes with alpha = 0.5 at 0.25, with 0.1 at 0.5; log-normal ones with
sigma = 1 at 0.52.

What is lost: the sizes within a class are taken to be log-normal with the class's spread, so a split at a class's
border is judged by a somewhat wrong one; and two draws of such a split may fall on two sides of it. Sizes that come
with the data, or of a user's own partition, count as any others.
"""

from statistics import NormalDist

import numpy as np

_CLASSES = ((0.08, 0.0), (0.4, 0.5), (1.0, 1.0))
"""Up to which Gini coefficient, and the standard deviation of the sizes' logarithms that stands for it."""


def expected_sizes(num_samples: np.ndarray, num: int) -> list[int]:
    """Samples of `num` of these clients, ascending, as they would be on average.

    Args:
        num_samples: of every client of the task.
    """
    total, num_clients = int(num_samples.sum()), len(num_samples)
    mean = total / num_clients
    sigma = _sigma(num_samples)
    if sigma == 0.0:
        num_larger = round(num * (total % num_clients) / num_clients)
        return [total // num_clients] * (num - num_larger) + [total // num_clients + 1] * num_larger
    normal = NormalDist()
    # Blom's means of the order statistics.
    places = [normal.inv_cdf((i - 0.375) / (num + 0.25)) for i in range(1, num + 1)]
    shares = np.exp(sigma * np.array(places))
    return [max(1, round(float(size))) for size in mean * shares / shares.mean()]


def _sigma(num_samples: np.ndarray) -> float:
    sizes = np.sort(num_samples)
    if sizes[-1] - sizes[0] <= 1:  # however small they are
        return 0.0
    n = len(sizes)
    gini = float((2 * np.arange(1, n + 1) - n - 1) @ sizes) / (n * float(sizes.sum()))
    return next(sigma for limit, sigma in _CLASSES if gini <= limit)
