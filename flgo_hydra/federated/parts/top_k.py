"""Only the largest changes are sent; the rest is remembered and added the next time.

Stich et al., Sparsified SGD with Memory, NeurIPS 2018 (https://arxiv.org/abs/1809.07599), Algorithm 1, with a client's
update in the place of a gradient step.
"""

import math

import torch
from torch import Tensor

from flgo_hydra.federated.algorithm.base import Client, Tensors
from flgo_hydra.federated.parts.base import Numbers, Transport


class TopK(Transport):
    """Each tensor's largest numbers by size; at least one. Its number: `share` of them."""

    numbers = {"share": (0.0, 1.0)}

    def first(self, params: Tensors) -> Tensors:
        return {name: torch.zeros_like(p) for name, p in params.items()}

    def send(self, update: Tensors, kept: Tensors, client: Client, hyper: Numbers) -> tuple[Tensors, Tensors]:
        wanted = {name: u + kept[name] for name, u in update.items()}
        sent = {name: _largest(t, hyper["share"]) for name, t in wanted.items()}
        return sent, {name: t - sent[name] for name, t in wanted.items()}


def _largest(t: Tensor, share: float) -> Tensor:
    k = min(t.numel(), max(1, math.ceil(share * t.numel())))
    flat = t.flatten()
    at = flat.abs().topk(k).indices
    return torch.zeros_like(flat).scatter(0, at, flat.gather(0, at)).view_as(t)
