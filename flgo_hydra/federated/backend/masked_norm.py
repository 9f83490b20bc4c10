"""Batch normalisation over the samples that count, of a batch that is filled up.

Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithm 1.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class MaskedBatchNorm(TorchFunctionMode):
    """While open, `torch.nn.functional.batch_norm` in training takes mean and variance over the weighted samples.

    Its input is (B, C, …), B samples of C channels; running statistics change in place, (C,).

    Args:
        weights: of each sample in its batch's mean, (B,); 0 of those that fill it up. All 0: nothing counts, and every
            sample is taken, so that what nobody reads stays as finite as the batch.
        least: samples of the smallest batch there is.
    Raises:
        ValueError: in the call, where that batch has one value per channel, which torch refuses too.
    """

    def __init__(self, weights: Tensor, least: int) -> None:
        super().__init__()
        share = (weights > 0).to(weights.dtype)
        self._count = share.sum()
        is_idle = (self._count == 0).to(weights.dtype)
        self._weights = (share + is_idle / len(weights)) / (self._count + is_idle)
        self._least = least

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return functional.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        per_sample = input[0, 0].numel()
        if self._least * per_sample == 1:
            raise ValueError("batch normalisation in training needs more than one value per channel")
        over = [0, *range(2, input.dim())]
        channel = (-1, *[1] * (input.dim() - 2))
        share = (self._weights / per_sample).view(-1, *[1] * (input.dim() - 1))
        mean = (input * share).sum(over)
        centered = input - mean.view(channel)
        variance = (centered * centered * share).sum(over)
        normed = centered * torch.rsqrt(variance + eps).view(channel)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                num = self._count * per_sample
                running_mean.mul_(1 - momentum).add_(momentum * mean)
                running_var.mul_(1 - momentum).add_(momentum * variance * (num / (num - 1)))
        if weight is not None:
            normed = normed * weight.view(channel)
        return normed if bias is None else normed + bias.view(channel)
