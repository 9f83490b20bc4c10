"""What a device could do, and what a round asks of it at least (for `gpu.py`).

The bound of a round is the longer of two times: its floating-point operations (torch's counter on the plain loop's
step, and the evaluation's forward passes) at the rate of a large matrix product, and the bytes of the clients'
parameters, each read and written once a step, at the rate of a large copy. Products are in the precision that torch
uses by default; convolutions may use TF32 by default, products not. A bound of this kind ignores activations, launches,
and caches: parameters that stay in the L2 cache move faster than it says. The dual form computes less than is counted.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpu_workload import Workload, seconds_of
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Device:
    """Rates a second that were measured."""

    flops: float
    """of float32 matrix products as torch computes them by default"""
    tf32_flops: float | None
    """of the same in TF32; None off CUDA"""
    bytes: float
    """read and written by a copy"""
    launch_s: float
    """of an operation on one number, called from Python"""
    graph_node_s: float | None
    """of the same in a CUDA graph"""

    @property
    def conv_flops(self) -> float:
        return self.tf32_flops if self.tf32_flops and torch.backends.cudnn.allow_tf32 else self.flops

    def __str__(self) -> str:
        parts = [f"float32 products {self.flops / 1e12:.2f} TFLOP/s"]
        if self.tf32_flops is not None:
            in_use = "used" if torch.backends.cudnn.allow_tf32 else "not used"
            parts.append(f"TF32 {self.tf32_flops / 1e12:.1f} ({in_use} in convolutions)")
        parts.append(f"copy {self.bytes / 1e9:.0f} GB/s read and written")
        parts.append(f"a launch from Python {1e6 * self.launch_s:.1f} us")
        if self.graph_node_s is not None:
            parts.append(f"a kernel in a graph {1e6 * self.graph_node_s:.1f} us")
        return ", ".join(parts)


def measure_device(device: torch.device, is_quick: bool) -> Device:
    n, num_bytes = (8192, 2**30) if device.type == "cuda" and not is_quick else (512, 2**24)
    a, b = torch.randn(2, n, n, device=device)
    c, source = torch.empty_like(a), torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    one = torch.zeros(1, device=device)

    def rate(call: Callable[[], object], amount: float) -> float:
        call()
        return amount / statistics.median(seconds_of(call, device) for _ in range(5))

    def launches() -> None:
        for _ in range(1000):
            one.add_(1)

    flops = rate(lambda: torch.mm(a, b, out=c), 2 * n**3)
    tf32_flops = graph_node_s = None
    if device.type == "cuda":
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        tf32_flops = rate(lambda: torch.mm(a, b, out=c), 2 * n**3)
        torch.backends.cuda.matmul.allow_tf32 = before
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launches()
        graph_node_s = 1 / rate(graph.replay, 1000)
    return Device(
        flops,
        tf32_flops,
        rate(lambda: target.copy_(source), 2 * source.nbytes),
        1 / rate(launches, 1000),
        graph_node_s,
    )


@dataclass(frozen=True)
class Demand:
    """What a round asks for."""

    step_flops: float
    """of a local step of one client"""
    step_bytes: float
    products: float
    """operations of a round in matrix products"""
    convolutions: float
    bytes: float

    def bound_s(self, device: Device) -> float:
        return max(self.products / device.flops + self.convolutions / device.conv_flops, self.bytes / device.bytes)

    def is_compute_bound(self, device: Device) -> bool:
        return self.bound_s(device) > self.bytes / device.bytes


def demand_of(workload: Workload) -> Demand:
    model, data, size = workload.model(), workload.data, workload.size
    x, y = data.client(0)

    def step() -> None:
        functional.cross_entropy(model(x[: size.batch]), y[: size.batch]).backward()

    def evaluation() -> None:
        with torch.no_grad():
            model(data.test.x[:1])

    of_step, of_sample = _count(step), _count(evaluation)
    steps, evaluated = size.steps, len(data.valid.x) + len(data.test.x)
    step_bytes = 2 * sum(p.nbytes for p in model.parameters())
    products, convolutions = (steps * one + evaluated * other for one, other in zip(of_step, of_sample, strict=True))
    return Demand(sum(of_step), step_bytes, products, convolutions, steps * step_bytes)


def _count(call: Callable[[], object]) -> tuple[float, float]:
    """Floating-point operations in matrix products and in convolutions."""
    with FlopCounterMode(display=False) as counter:
        call()
    by_kind = {False: 0.0, True: 0.0}
    for op, count in counter.get_flop_counts().get("Global", {}).items():
        by_kind["convolution" in str(op)] += count
    return by_kind[False], by_kind[True]
