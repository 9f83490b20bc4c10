"""Partitions: which client each training sample belongs to.

A partition is a function `(labels, num_clients, rng, ...) -> client_of`: for each of the n samples the number of the
one client that holds it, so no sample can be lost or dealt twice. A user's own is given, of `labels`, `num_clients`,
`rng`, `client` (the source's client ids, or None) and `min_samples`, what its signature takes, and its parameters from
the config: `task/partition=custom task.partition._target_=my_module.my_split +task.partition.width=3`.

`assign` calls one and then sees to it that nobody goes without: samples move one at a time, at random, from whichever
client is the largest until every client has `min_samples`. A partition that takes `client` keeps the ids it is given:
there nothing is moved.

Nothing here loops over samples: 60,000 of them over 1,000 clients take some tens of milliseconds.
"""

import heapq
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flgo_hydra import reference
from flgo_hydra.federated.data.samples import whole_array

Ints = NDArray[np.int64]
# n samples, N clients, K classes


def iid(labels: NDArray[Any], num_clients: int, rng: np.random.Generator) -> Ints:
    """Deals shuffled samples in turn: sizes differ by at most one."""
    return rng.permutation(np.arange(len(labels)) % num_clients)


def quantity(labels: NDArray[Any], num_clients: int, rng: np.random.Generator, sigma: float) -> Ints:
    """Gives clients log-normal sizes: in proportion to exp(sigma * N(0, 1)), with random samples.

    Args:
        sigma: standard deviation of the logarithm of a size, >= 0; 0 gives sizes that differ by at most one.
    """
    log_share = sigma * rng.standard_normal(num_clients)
    share = np.exp(log_share - log_share.max())
    sizes = _round(share[None] / share.sum(), np.array([len(labels)]))[0]
    return rng.permutation(np.repeat(np.arange(num_clients), sizes))


def dirichlet(
    labels: NDArray[Any], num_clients: int, rng: np.random.Generator, alpha: float, balanced: bool = False
) -> Ints:
    """Gives clients class mixes that follow Dirichlet distributions; a small alpha is skewed, a large one iid.

    balanced=False: every class is divided over the clients by shares ~ Dir(alpha, ..., alpha), so sizes vary too.
    Yurochkin et al. 2019, https://arxiv.org/abs/1905.12022; Li et al. 2022 (NIID-Bench), https://arxiv.org/abs/2102.02079

    balanced=True: sizes differ by at most one, and every client draws its own mix ~ Dir(alpha * p), then its samples
    by that mix from the classes' pools without replacement. p are the classes' frequencies, so alpha is spread over
    the K classes: with equally frequent ones it is K times what it is for balanced=False.
    Hsu et al. 2019, https://arxiv.org/abs/1909.06335

    Clients draw one after another, in random order. p are the frequencies among the samples that nobody holds yet:
    those of the data for the first client, and near to them for most. Where a class runs out within a client, the rest
    of its samples is drawn by its mix over the other classes; where that is 0 for all of them, by their frequencies.
    The last clients take what is left. (With p of the data throughout they would be left with whatever chance took too
    little of, and a large alpha would be 1.6 times as uneven as iid.)

    Args:
        alpha: concentration, > 0.
    """
    kind, counts = _classes(labels, "dirichlet")
    if not balanced:
        return _deal(kind, _round(rng.dirichlet(np.full(num_clients, alpha), size=len(counts)), counts), rng)
    sizes = np.bincount(np.arange(len(kind)) % num_clients, minlength=num_clients)
    left = counts.copy()
    table = np.zeros((len(counts), num_clients), np.int64)
    for client in rng.permutation(num_clients):  # what one draws the next ones cannot
        held = np.flatnonzero(left)
        mix = np.zeros(len(counts))
        mix[held] = _mix(alpha * left[held] / left.sum(), rng)
        while (missing := int(sizes[client] - table[:, client].sum())) > 0:
            weights = np.where(left > 0, mix, 0.0)
            weights = weights if weights.sum() > 0 else left.astype(np.float64)
            drawn = np.minimum(rng.multinomial(missing, weights / weights.sum()), left)
            table[:, client] += drawn
            left -= drawn
    return _deal(kind, table, rng)


def _mix(alphas: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draws from Dir(alphas); where those are so small that numbers underflow, its limit: a single class."""
    mix = rng.dirichlet(np.maximum(alphas, np.finfo(np.float64).tiny))
    if not np.isfinite(mix).all() or mix.sum() == 0:
        mix = np.zeros(len(alphas))
        mix[rng.choice(len(alphas), p=alphas / alphas.sum())] = 1.0
    return mix


def shards(labels: NDArray[Any], num_clients: int, rng: np.random.Generator, shards_per_client: int) -> Ints:
    """Sorts samples by label, cuts them into shards of equal size (within one) and deals these at random.

    McMahan et al. 2017, https://arxiv.org/abs/1602.05629
    """
    kind, _ = _classes(labels, "shards")
    n, num_shards = len(kind), num_clients * shards_per_client
    if n < num_shards:
        raise ValueError(
            f"`task.num_clients * task.partition.shards_per_client <= training samples` must hold, but got "
            f"{num_clients} * {shards_per_client} = {num_shards} shards for {n} samples."
        )
    owner = rng.permutation(np.arange(num_shards) % num_clients)
    client_of = np.empty(n, np.int64)
    client_of[_shuffled_within(kind, rng)] = np.repeat(owner, np.diff(np.arange(num_shards + 1) * n // num_shards))
    return client_of


def classes(labels: NDArray[Any], num_clients: int, rng: np.random.Generator, classes_per_client: int) -> Ints:
    """Gives every client `classes_per_client` classes, and divides each class evenly among its holders.

    Clients choose one after another, each the classes with the fewest holders so far, ties at random. A class with
    fewer samples than holders goes to some of them.
    """
    kind, counts = _classes(labels, "classes")
    k, num_classes = classes_per_client, len(counts)
    if k > num_classes:
        raise ValueError(f"`task.partition.classes_per_client <= classes` must hold, but got {k} of {num_classes}.")
    if num_clients * k < num_classes:
        raise ValueError(
            f"`task.num_clients * task.partition.classes_per_client >= classes` must hold, or some class has no "
            f"holder, but got {num_clients} * {k} < {num_classes}."
        )
    num_holders = np.zeros(num_classes, np.int64)
    held = np.empty((num_clients, k), np.int64)
    for client in range(num_clients):  # one choice depends on those before it
        held[client] = np.lexsort((rng.random(num_classes), num_holders))[:k]
        num_holders[held[client]] += 1
    holder = _shuffled_within(held.ravel(), rng) // k  # clients, class after class
    order = _shuffled_within(kind, rng)
    rank = np.arange(len(kind)) - _starts(counts)[kind[order]]
    client_of = np.empty(len(kind), np.int64)
    client_of[order] = holder[_starts(num_holders)[kind[order]] + rank % num_holders[kind[order]]]
    return client_of


def given(labels: NDArray[Any], num_clients: int | None, client: NDArray[Any] | None) -> Ints:
    """Keeps the client ids that come with the data (`client`), renumbered 0, 1, ... in sorted order."""
    if client is None:
        raise ValueError(
            "Partition given needs the samples' client ids, but this source returns no `client`. "
            "Choose another `task/partition`, or add `client`, an id a training sample, to the data."
        )
    ids, client_of = np.unique(client, return_inverse=True)
    if num_clients is not None and num_clients != len(ids):
        raise ValueError(
            f"`task.num_clients` must be the number of client ids of the training samples, {len(ids)}, or null, "
            f"but got {num_clients}."
        )
    return client_of.astype(np.int64)


def takes_ids(partition: Callable[..., Any]) -> bool:
    """Returns whether a partition goes by the source's client ids: it may count clients, and nothing is moved."""
    return "client" in inspect.signature(partition).parameters


def require_num_clients(partition: Callable[..., Any], num_clients: int | None) -> None:
    """Raises ValueError when clients are to be counted from ids that the partition does not look at."""
    if num_clients is None and not takes_ids(partition):
        name = getattr(partition, "__name__", str(partition))
        raise ValueError(
            f"Partition {name} needs `task.num_clients`, but got null. Set it, or choose task/partition=given "
            "for data that come with client ids."
        )


def assign(
    partition: Callable[..., Any],
    params: Mapping[str, Any],
    labels: NDArray[Any],
    num_clients: int | None,
    rng: np.random.Generator,
    client: NDArray[Any] | None = None,
    min_samples: int = 1,
) -> Ints:
    """Calls a partition, checks what it returns and moves samples to clients with fewer than `min_samples`.

    Args:
        labels: the training samples' labels, shape (n,), or targets of a regression, shape (n, outputs).
        client: the source's client ids, shape (n,).
    Returns:
        client_of, shape (n,), numbers in 0..N-1, each of which occurs.
    """
    require_num_clients(partition, num_clients)
    n = len(labels)
    keeps_ids = takes_ids(partition)
    if num_clients is not None and not keeps_ids and num_clients * min_samples > n:
        raise ValueError(
            f"`task.num_clients * task.partition.min_samples <= training samples` must hold, but got "
            f"{num_clients} * {min_samples} = {num_clients * min_samples} > {n}. Lower one of them."
        )
    offered = {
        "labels": labels, "num_clients": num_clients, "rng": rng, "client": client, "min_samples": min_samples
    }  # fmt: skip
    name = getattr(partition, "__name__", str(partition))
    client_of = whole_array(
        reference.call(partition, params, offered, "task.partition"), f"What partition {name} returns"
    )
    if client_of.shape != (n,) or client_of.dtype.kind not in "iu":
        raise ValueError(
            f"Partition {name} must return {n} integers, a client a training sample, "
            f"but got shape {client_of.shape} of {client_of.dtype}."
        )
    top = int(client_of.max()) + 1 if num_clients is None else num_clients
    if client_of.min() < 0 or client_of.max() >= top:
        raise ValueError(
            f"Partition {name} must return clients in 0..{top - 1}, but got {client_of.min()}..{client_of.max()}."
        )
    client_of = client_of.astype(np.int64)
    sizes = np.bincount(client_of, minlength=top)
    if keeps_ids:
        if sizes.min() == 0:
            raise ValueError(f"Partition {name} must give every client a sample, but client {sizes.argmin()} has none.")
        return client_of
    return _resize(client_of, _fill(sizes, min_samples), rng)


def _classes(labels: NDArray[Any], name: str) -> tuple[Ints, Ints]:
    """Returns each sample's class, renumbered 0..K-1 over the classes that occur, and the classes' counts."""
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"Partition {name} goes by class labels, but this task's targets are {labels.dtype} of shape "
            f"{labels.shape} (a regression). Choose task/partition=iid, quantity or given."
        )
    _, kind, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return kind.astype(np.int64), counts.astype(np.int64)


def _starts(counts: Ints) -> Ints:
    """Returns where each group begins when groups of these sizes lie one after another."""
    return np.cumsum(counts) - counts


def _shuffled_within(group: Ints, rng: np.random.Generator) -> Ints:
    """Returns indices that put items group after group, in random order within a group."""
    return np.lexsort((rng.random(len(group)), group))


def _round(shares: NDArray[np.float64], counts: Ints) -> Ints:
    """Returns whole numbers near `shares * counts` that sum to `counts` exactly, by rounding cumulative sums.

    Args:
        shares: shape (K, N), rows that sum to 1.
        counts: shape (K,).
    """
    ends = np.minimum(np.rint(np.cumsum(shares, axis=1) * counts[:, None]).astype(np.int64), counts[:, None])
    ends[:, -1] = counts
    return np.diff(ends, axis=1, prepend=0)


def _deal(kind: Ints, table: Ints, rng: np.random.Generator) -> Ints:
    """Returns client_of such that client i holds table[c, i] random samples of each class c."""
    client_of = np.empty(len(kind), np.int64)
    owners = np.tile(np.arange(table.shape[1]), len(table))
    client_of[_shuffled_within(kind, rng)] = np.repeat(owners, table.ravel())
    return client_of


def _fill(sizes: Ints, least: int) -> Ints:
    """Returns the sizes after samples went, one at a time, from the largest client to those with fewer than `least`."""
    num_moves = int(np.maximum(least - sizes, 0).sum())
    filled = np.maximum(sizes, least)
    donors = [(-int(size), client) for client, size in enumerate(sizes) if size > least] if num_moves else []
    heapq.heapify(donors)
    for _ in range(num_moves):
        size, client = donors[0]
        filled[client] -= 1
        heapq.heapreplace(donors, (size + 1, client))
    return filled


def _resize(client_of: Ints, sizes: Ints, rng: np.random.Generator) -> Ints:
    """Moves as few samples as needed, chosen at random, for the clients to have exactly these sizes."""
    before = np.bincount(client_of, minlength=len(sizes))
    if (before == sizes).all():
        return client_of
    order = _shuffled_within(client_of, rng)
    owner = client_of[order]
    rank = np.arange(len(order)) - _starts(before)[owner]
    moved = rng.permutation(order[rank >= sizes[owner]])
    client_of = client_of.copy()
    client_of[moved] = np.repeat(np.arange(len(sizes)), np.maximum(sizes - before, 0))
    return client_of
