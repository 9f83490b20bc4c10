"""What a round costs each backend: a model of its seconds, from shapes and counts alone.

A stopwatch would see the load, the cores and the luck of the moment, and one seed of a learning rate would train side
by side and the next one not. Here a round is amounts of work (operations, multiplications, bytes: `profile.py`) times
seconds that are constants of a kind of device, whatever machine it is. What decides between the backends:

- an operation costs the same for one client and for many, so side by side small steps are cheaper;
- a convolution with weights of each client's own is slower than one after another;
- many clients' models do not fit a cache that one model fits;
- clients that differ are filled up, to the largest batch and to the most steps;
- a dense layer on the samples may be kept in its dual form, side by side only.

The constants were fitted by `scripts/benchmarks/choice.py --fit`, which also says how often the cheaper backend by this
model is the faster one. There are three sets of a CPU's, of machines at different times: which backend is faster
differs between them (wide models side by side: by 1.8 in one direction or the other), and the one is taken that is the
less slow at its worst time. Those of GPUs are guesses.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flgo_hydra.federated.backend.extent import Extent, dual_pays
from flgo_hydra.federated.backend.lane_schedule import MASKED, kinds_of
from flgo_hydra.federated.backend.profile import Amount, Profile
from flgo_hydra.federated.schedule import Order, batch_sizes
from flgo_hydra.federated.training import LocalWork


@dataclass(frozen=True)
class Workload:
    """What a run trains, whatever trains it."""

    profile: Profile
    shapes: Sequence[tuple[int, ...]]
    """of the trainable parameters"""
    itemsize: int
    num_inputs: int
    """numbers of a sample"""
    work: LocalWork
    extent: Extent
    cohort: Sequence[int]
    """samples of each client of a round, as they may be expected (`expected.py`)"""
    recorded: Collection[int]
    """batch sizes whose steps are recorded in the loop"""
    compiles: bool
    has_dual: bool
    """dense layers may be kept in their dual form"""

    @property
    def param_bytes(self) -> int:
        return self.itemsize * sum(math.prod(shape) for shape in self.shapes)

    def moved(self, batch: int, param_bytes: float) -> float:
        """Bytes of a step that its passes do not show: the batch is gathered, the new weights are written."""
        return 2 * param_bytes + 2 * self.itemsize * batch * self.num_inputs


Amounts = dict[str, float]
"""Work of a round by its kind; the seconds of each kind are in `SECONDS`."""


def loop_amounts(load: Workload) -> Amounts:
    """A round of clients one after another."""
    total: Amounts = {}
    steps: dict[int, int] = {}
    for n in load.cohort:
        for size in batch_sizes(n, *load.work.size(n)):
            steps[size] = steps.get(size, 0) + 1
    for size, count in steps.items():
        amount = load.profile.at(size)
        form = "loop" if size in load.recorded else "plain"
        _add(total, _of_step(form, amount, load.moved(size, load.param_bytes), 1), count)
    _add(total, {"loop_client": 1.0, "loop_client_bytes": load.param_bytes}, len(load.cohort))
    return total


def vmap_amounts(load: Workload, lanes: int) -> Amounts:
    """A round of clients side by side, `lanes` at once."""
    total: Amounts = {}
    longest_first = sorted(load.cohort, key=lambda n: -load.work.size(n)[1])
    dual = [shape for shape in load.shapes if _is_dual(load, shape)]
    n = load.extent.most_samples
    for begin in range(0, len(longest_first), lanes):
        chunk = longest_first[begin : begin + lanes]
        orders = [Order(np.empty(0), batch_sizes(size, *load.work.size(size))) for size in chunk]
        for kind in kinds_of(orders, load.extent.sizes):
            batch = load.extent.width if kind == MASKED else kind
            amount = load.profile.at(batch)
            for outputs, inputs in dual:
                weights = outputs * inputs
                saved = Amount(dense=2.0 * batch * weights, bytes=3.0 * load.itemsize * weights)
                read = load.itemsize * 2.0 * n * (3.0 * batch + outputs)
                rows = Amount(ops=2.0, dense=2.0 * n * batch * outputs, bytes=read)
                amount = amount.plus(saved, -1.0).plus(rows)
            own_bytes = load.param_bytes - load.itemsize * sum(a * b for a, b in dual)
            form = "vmap" if load.compiles else "plain_vmap"
            _add(total, _of_step(form, amount, load.moved(batch, own_bytes), lanes))
            if kind == MASKED:
                _add(total, {"vmap_masked": 1.0, "vmap_masked_row": float(lanes * batch)})
        begins = sum(2.0 * n * a * b + (a + n) * n * b for a, b in dual)
        moved = lanes * load.param_bytes
        _add(total, {"vmap_chunk": 1.0, "vmap_chunk_bytes": moved, "vmap_dense": lanes * begins})
    return total


def loop_setup(load: Workload) -> Amounts:
    """What recording costs, once."""
    sizes = {size for n in load.cohort for size in batch_sizes(n, *load.work.size(n))} & set(load.recorded)
    return {"loop_record": sum(load.profile.at(size).ops for size in sizes)}


def vmap_setup(load: Workload, lanes: int) -> Amounts:
    """The same, side by side: of each kind of step."""
    chunks = [load.cohort[begin : begin + lanes] for begin in range(0, len(load.cohort), lanes)]
    patterns = [[Order(np.empty(0), batch_sizes(n, *load.work.size(n))) for n in chunk] for chunk in chunks]
    kinds = {kind for orders in patterns for kind in kinds_of(orders, load.extent.sizes)}
    return {"vmap_record": load.profile.at(load.extent.width).ops * len(kinds)}


def _is_dual(load: Workload, shape: tuple[int, ...]) -> bool:
    is_layer = load.compiles and load.has_dual and len(shape) == 2 and shape[1] == load.num_inputs
    return is_layer and dual_pays(load.extent, *shape)


def _of_step(form: str, amount: Amount, moved: float, lanes: int) -> Amounts:
    return {
        f"{form}_step": 1.0,
        f"{form}_op": amount.ops,
        f"{form}_layer": amount.layers,
        f"{form}_conv_op": amount.convs,
        f"{form}_dense": lanes * max(amount.dense, 0.0),
        f"{form}_conv": lanes * amount.conv,
        f"{form}_bytes": lanes * max(amount.bytes + moved, 0.0),
    }


def _add(total: Amounts, amounts: Mapping[str, float], times: float = 1.0) -> None:
    for key, value in amounts.items():
        total[key] = total.get(key, 0.0) + times * value


def seconds_of(amounts: Mapping[str, float], constants: Mapping[str, float]) -> float:
    """Args: constants: seconds of one of each kind of work."""
    return sum(constants[key] * value for key, value in amounts.items())


_EVEN, _RAGGED = 0.9, 0.8
"""The loop is left for what takes at most this share of its time, since what lanes cost varies more from machine to
machine; for less where clients differ: side by side, a cohort's largest client makes the round, and how large it is is
luck."""


def faster(seconds: Sequence[Mapping[str, float]], cohort: Sequence[int]) -> str:
    """The backend that is never much slower than the better one.

    Args:
        seconds: of a round, by backend, on each kind of machine that there are constants of.
        cohort: samples of its clients, as they may be expected.
    """
    share = _RAGGED if max(cohort) - min(cohort) > 1 else _EVEN

    def worst(name: str) -> float:
        """As a share of the better backend's time."""
        times = [{**one, "vmap": one["vmap"] / share} for one in seconds]
        return max(one[name] / min(one.values()) for one in times)

    return "vmap" if worst("vmap") < worst("loop") else "loop"


_CPU_AT_REST = {
    "loop_step": 1.05e-06,
    "loop_op": 1.66e-06,
    "loop_layer": 1.31e-05,
    "loop_conv_op": 5.25e-05,
    "loop_dense": 1.28e-11,
    "loop_conv": 1.73e-11,
    "loop_bytes": 1.2e-11,
    "plain_step": 3.52e-05,
    "plain_op": 5.68e-06,
    "plain_layer": 2.04e-05,
    "plain_conv_op": 7.02e-05,
    "plain_dense": 1.26e-11,
    "plain_conv": 9.7e-12,
    "plain_bytes": 5.74e-11,
    "vmap_step": 0,
    "vmap_op": 1.15e-06,
    "vmap_layer": 6.39e-05,
    "vmap_conv_op": 7.28e-05,
    "vmap_dense": 1.11e-11,
    "vmap_conv": 2.58e-11,
    "vmap_bytes": 3.31e-11,
    "plain_vmap_step": 0.00031,
    "plain_vmap_op": 3.67e-05,
    "plain_vmap_layer": 0.000114,
    "plain_vmap_conv_op": 0,
    "plain_vmap_dense": 1.22e-12,
    "plain_vmap_conv": 4.42e-11,
    "plain_vmap_bytes": 1.31e-10,
    "loop_client": 0.000152,
    "loop_client_bytes": 4.28e-10,
    "loop_record": 0.000744,
    "vmap_chunk": 0.000795,
    "vmap_chunk_bytes": 5.58e-11,
    "vmap_masked": 0,
    "vmap_masked_row": 2.78e-07,
    "vmap_record": 0.00247,
}
_CPU_SHARED = {
    "loop_step": 5.8e-06,
    "loop_op": 1.83e-06,
    "loop_layer": 1.62e-05,
    "loop_conv_op": 6.83e-05,
    "loop_dense": 2.26e-11,
    "loop_conv": 2.92e-11,
    "loop_bytes": 1.41e-11,
    "plain_step": 8.43e-05,
    "plain_op": 7.97e-06,
    "plain_layer": 1.12e-05,
    "plain_conv_op": 8.21e-05,
    "plain_dense": 2.63e-11,
    "plain_conv": 3e-11,
    "plain_bytes": 4.3e-11,
    "vmap_step": 2.84e-05,
    "vmap_op": 1.14e-06,
    "vmap_layer": 6.96e-05,
    "vmap_conv_op": 0.000111,
    "vmap_dense": 1.93e-11,
    "vmap_conv": 3.22e-11,
    "vmap_bytes": 3.71e-11,
    "plain_vmap_step": 0.000456,
    "plain_vmap_op": 3.78e-05,
    "plain_vmap_layer": 0.000135,
    "plain_vmap_conv_op": 6.83e-06,
    "plain_vmap_dense": 3.61e-11,
    "plain_vmap_conv": 4.92e-11,
    "plain_vmap_bytes": 1.41e-10,
    "loop_client": 0.000233,
    "loop_client_bytes": 2.33e-10,
    "loop_record": 0.00111,
    "vmap_chunk": 0.000908,
    "vmap_chunk_bytes": 1.18e-10,
    "vmap_masked": 2.56e-06,
    "vmap_masked_row": 3.51e-07,
    "vmap_record": 0.00305,
}
_CPU_CROWDED = {
    "loop_step": 1.98e-05,
    "loop_op": 1.49e-06,
    "loop_layer": 3.47e-05,
    "loop_conv_op": 5.87e-05,
    "loop_dense": 2.4e-11,
    "loop_conv": 3.11e-11,
    "loop_bytes": 1.91e-11,
    "plain_step": 8.98e-05,
    "plain_op": 8.68e-06,
    "plain_layer": 1.48e-05,
    "plain_conv_op": 8.06e-05,
    "plain_dense": 2.05e-11,
    "plain_conv": 3.76e-11,
    "plain_bytes": 3.9e-11,
    "vmap_step": 1.13e-05,
    "vmap_op": 2.2e-06,
    "vmap_layer": 0.00012,
    "vmap_conv_op": 0.000107,
    "vmap_dense": 1.85e-11,
    "vmap_conv": 3.37e-11,
    "vmap_bytes": 4.85e-11,
    "plain_vmap_step": 0.000364,
    "plain_vmap_op": 5.08e-05,
    "plain_vmap_layer": 0.00012,
    "plain_vmap_conv_op": 8.64e-05,
    "plain_vmap_dense": 4.15e-11,
    "plain_vmap_conv": 5.74e-11,
    "plain_vmap_bytes": 1.65e-10,
    "loop_client": 0.00031,
    "loop_client_bytes": 2.14e-10,
    "loop_record": 0.0016,
    "vmap_chunk": 0.00247,
    "vmap_chunk_bytes": 1.27e-10,
    "vmap_masked": 0,
    "vmap_masked_row": 3.52e-07,
    "vmap_record": 0.00444,
}
# A launch takes about 10 us whatever it computes, plain autograd three times as many; products and bytes are two orders
# of magnitude cheaper than on a core of a CPU.
_PER_OP = {"loop": 1e-5, "plain": 3e-5, "vmap": 1e-5, "plain_vmap": 1e-4}
_GPU = {
    **{f"{form}_{kind}": seconds for form, seconds in _PER_OP.items() for kind in ("step", "op", "layer", "conv_op")},
    **{f"{form}_{kind}": 3e-13 for form in _PER_OP for kind in ("dense", "conv", "bytes")},
    **{"vmap_conv": 1e-12, "plain_vmap_conv": 1e-12},
    **{"loop_client": 1e-3, "loop_client_bytes": 3e-12, "vmap_chunk": 2e-3, "vmap_chunk_bytes": 3e-12},
    **{"vmap_masked": 2e-4, "vmap_masked_row": 1e-10, "loop_record": 2e-3, "vmap_record": 3e-3},
}
SECONDS: dict[str, Sequence[dict[str, float]]] = {
    "cpu": (_CPU_AT_REST, _CPU_SHARED, _CPU_CROWDED),
    "cuda": (_GPU,),
    "mps": (_GPU,),
}
"""By kind of device: seconds of one of each kind of work. Of the CPU three times: on a machine whose memory nobody else
uses, on one whose neighbours do, where all takes half as long again and large batches up to three times, and on one
whose neighbours leave it little of the caches, where many clients' large models cost most."""
