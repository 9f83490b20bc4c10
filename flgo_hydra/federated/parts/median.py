"""The coordinate-wise median.

Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018.
https://arxiv.org/abs/1803.01498, Definition 1 (Option I of Algorithm 1).
"""

from collections.abc import Mapping

from torch import Tensor

from flgo_hydra.federated.algorithm.base import Tensors
from flgo_hydra.federated.parts.base import Numbers, ServerRule


class Median(ServerRule):
    """Each number is the median of the clients', whatever they weigh; of an even number of them, the middle two's
    mean."""

    numbers: Mapping[str, tuple[float, float]] = {}

    def combine(self, messages: Tensors, weights: Tensor, hyper: Numbers) -> Tensors:
        return {name: _median(t) for name, t in messages.items()}


def _median(t: Tensor) -> Tensor:
    # Not `quantile`, which takes 16 million numbers at most; NaN is sorted last, as if it were larger than all.
    ordered = t.sort(dim=0).values
    n = len(t)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
