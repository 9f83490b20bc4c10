"""A function's kernels as a CUDA graph: one launch in place of dozens.

A step of a small model is bound by launches, 5 to 10 us each from Python, on a GPU that needs 2 us for most of them.
Captured once, they are launched together. The captured memory must stay where it is, and nothing may ask the GPU for
a number on the way.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

_WARM_UP = 2
"""Calls before the capture, in which libraries choose their kernels and take their workspaces."""
_TOLERANCE = 1e-3


class Graph:
    """The captured function; `replay` does what a call of it would.

    Args:
        function: works on tensors that stay where they are.
        restart: brings everything that `function` reads back to where it was at first.
        results: what `function` changes; compared after a call and after a replay.
    Raises:
        RuntimeError: CUDA does not let it be captured, or a replay does something else.
    """

    def __init__(
        self,
        function: Callable[[], None],
        restart: Callable[[], None],
        results: Callable[[], Sequence[Tensor]],
        device: torch.device,
    ) -> None:
        with torch.no_grad(), torch.cuda.device(device):
            before = torch.cuda.current_stream()
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(before)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    restart()
                    function()
                sizes = _sizes_of(results())
                restart()
            before.wait_stream(stream)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            try:
                # Others threads may ask the driver for numbers meanwhile: a worker reports its memory.
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    function()
            finally:
                torch.cuda.set_stream(before)  # where torch leaves its own when the capture fails
            graph.replay()
            replayed = _sizes_of(results())
            if not bool(((sizes - replayed).abs() <= _TOLERANCE * sizes.abs() + 1e-30).all()):
                raise RuntimeError("a replay does something else")
        self._graph = graph
        self.replay: Callable[[], None] = graph.replay


def _sizes_of(tensors: Sequence[Tensor]) -> Tensor:
    """A number for each tensor that a wrong replay would hardly meet."""
    return torch.stack([t.abs().sum(dtype=torch.float64) for t in tensors])


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """Inside, convolutions on a GPU compute in float32 and not in TF32: to compare what two forms of a step compute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has two ways to say it, and would like the other one
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.backends.cudnn.allow_tf32 = before
