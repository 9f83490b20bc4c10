"""A function's kernels as a CUDA graph: one launch in place of dozens.

A step of a small model is bound by launches, 5 to 10 us each from Python, on a GPU that needs 2 us for most of them.
Captured once, they are launched together. The captured memory must stay where it is, and nothing may ask the GPU for
a number on the way.
"""

from collections.abc import Callable

import torch

_WARM_UP = 2
"""Calls before the capture, in which libraries choose their kernels and take their workspaces."""


class Graph:
    """The captured function; `replay` does what a call of it would.

    Args:
        function: works on tensors that stay where they are.
        restart: called before each call of `function`, to bring it where it can be called.
    Raises:
        RuntimeError: CUDA does not let it be captured.
    """

    def __init__(self, function: Callable[[], None], restart: Callable[[], None], device: torch.device) -> None:
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.no_grad(), torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                restart()
                function()
            restart()
        torch.cuda.current_stream(device).wait_stream(stream)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            function()
        self._graph = graph
        self.replay: Callable[[], None] = graph.replay
