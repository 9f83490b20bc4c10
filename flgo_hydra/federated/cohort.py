"""Which clients take part in a round, and how much each counts."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cohort:
    """The clients of a round."""

    clients: np.ndarray
    """distinct client ids, ascending, int64 of shape (size,)"""
    weights: np.ndarray
    """what each client's model update counts, float64 of shape (size,); they sum to 1 under `other` and `uniform`"""
    model_factor: float
    """what the clients' models and the server's own weigh together: 1, except under weighted_scale"""
    participation: float
    """clients that take part / all clients: the papers' |S| / N"""
    num_drawn: int
    """draws; more than the clients where one was drawn twice (md)"""

    @property
    def mean_weights(self) -> np.ndarray:
        """`weights`, scaled to sum to 1: of a mean, whatever the aggregate leaves to the server's own model."""
        scaled: np.ndarray = self.weights / self.weights.sum()
        return scaled

    @property
    def even_weights(self) -> np.ndarray:
        """1 / |S|, of a mean over the clients themselves: one that was drawn twice has trained once."""
        return np.full(len(self.clients), 1.0 / len(self.clients))


def sample_cohort(
    num_samples: np.ndarray,
    proportion: float,
    sample: str,
    aggregate: str,
    weighting: str,
    rng: np.random.Generator,
) -> Cohort:
    """Draws a round's clients and weighs them, with p_k = n_k / n over all N clients (FLGo's rules).

    A client drawn twice (md) trains once and counts twice. Where clients are drawn by p_k, `other` weighs the draws
    evenly, whatever the algorithm's own weights: the mean over all draws is then the sum of p_k times client k's model,
    and p_k is not counted once more (Li et al., On the Convergence of FedAvg on Non-IID Data, ICLR 2020, scheme I).

    Args:
        num_samples: n_k, training samples of every client, shape (N,).
        proportion: max(int(N * proportion), 1) clients are drawn.
        sample: uniform, without replacement; md, with replacement by p_k; full, everyone.
        aggregate: other (`weighting`), uniform (1 / K), weighted_com (p_k; the server's model keeps the rest), or
            weighted_scale (N / K p_k).
        weighting: the algorithm's own: samples (p_k over the cohort) or uniform.
    """
    num_clients = len(num_samples)
    size = count_drawn(num_clients, proportion)
    if sample == "full":
        drawn = np.arange(num_clients)
    elif sample == "md":
        drawn = rng.choice(num_clients, size=size, replace=True, p=num_samples / num_samples.sum())
    else:
        drawn = rng.choice(num_clients, size=size, replace=False)
    return weigh(drawn, num_samples, sample, aggregate, weighting)


def weigh(drawn: np.ndarray, num_samples: np.ndarray, sample: str, aggregate: str, weighting: str) -> Cohort:
    """A cohort of the clients that were drawn, and how much each counts; see `sample_cohort`.

    Args:
        drawn: ids, (number of draws,).
    """
    num_clients = len(num_samples)
    clients, counts = np.unique(drawn, return_counts=True)
    share = counts * num_samples[clients] / num_samples.sum()
    if aggregate == "other":
        aggregate = "weighted" if weighting == "samples" and sample != "md" else "uniform"
    if aggregate == "weighted":
        weights, model_factor = share / share.sum(), 1.0
    elif aggregate == "uniform":
        weights, model_factor = counts / counts.sum(), 1.0
    elif aggregate == "weighted_com":
        weights, model_factor = share, 1.0
    else:
        assert aggregate == "weighted_scale", aggregate
        weights = num_clients / counts.sum() * share
        model_factor = float(weights.sum())
    return Cohort(clients, weights, model_factor, len(clients) / num_clients, len(drawn))


def caveats(sample: str, aggregate: str) -> list[str]:
    """What a reader of the results should know of how clients are drawn and weighed together."""
    if sample != "md" or aggregate not in ("weighted_com", "weighted_scale"):
        return []
    return [
        f"`sample=md aggregate={aggregate}` counts data volume twice: clients are drawn by it and weighed by it, so "
        "that large clients count too much in the mean over all draws. With sample=md take aggregate=other or uniform, "
        "which weigh the draws evenly; or sample=uniform with this aggregate."
    ]


def count_drawn(num_clients: int, proportion: float) -> int:
    """How many clients a round draws."""
    # 0.29 * 100 is 28.999…: the added grain keeps what the user meant.
    return max(int(num_clients * proportion + 1e-9), 1)
