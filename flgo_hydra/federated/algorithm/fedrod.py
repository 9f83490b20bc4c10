"""FedRoD: a generic predictor of balanced loss, and on top of it a head of each client's own.

Chen and Chao, On Bridging Generic and Personalized Federated Learning for Image Classification, ICLR 2022, Algorithm 1
with a linear head (not the one that a hypernetwork makes). https://arxiv.org/abs/2107.00778

Symbols: z what the body makes of a sample, h_G the generic head, h_P a client's own, n_c its samples of class c.
"""

from typing import Any

import torch
from torch import Tensor, nn

from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.linear_head import LinearHead
from flgo_hydra.federated.algorithm.local import LocalBatch

_NEVER = -1e4
"""Of a class that a client does not have, in place of log 0: e to it is 0, and times 0 it is, too."""


class FedRoD(Algorithm):
    """Body and h_G minimise the balanced softmax, -log(n_y e^(g_y) / sum_c n_c e^(g_c)); the server averages them. h_P
    minimises the task's loss of h_G(z) + h_P(z), in which it alone moves.

    A client uses that sum, of the server's body and h_G. As the heads are linear, it is one head of the summed weights.
    h_P begins at 0, of which the paper says nothing.

    Args:
        head: the linear layer's name in the model; None: the last one.
    """

    def __init__(self, head: str | None = None) -> None:
        self._head = LinearHead(head)

    def bind(self, model: nn.Module) -> None:
        self._head.find(model)

    def init_client(self, params: Tensors) -> State:
        return {"own": {name: torch.zeros_like(params[name]) for name in self._head.names}}

    def begin(self, client: Client, hyper: Hyper) -> State:
        return {"model": client.anchor, "own": client.state["own"]}

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        w, own = carry["model"], carry["own"]
        counts = self._head.counts(client)
        prior = torch.where(counts > 0, torch.log(torch.clamp(counts, min=1.0)), _NEVER)

        def balanced(params: Tensors) -> Tensor:
            return at.loss_of(at.outputs(params) + prior)

        with torch.no_grad():
            z, generic = at.features(w, self._head.module)

        def of_sum(params: Tensors) -> Tensor:
            return at.loss_of(generic + self._head(params, z))

        next_w = at.descend("model", w, at.gradient(w, balanced))
        return {"model": next_w, "own": at.descend("own", own, at.gradient(own, of_sum))}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        sent, _ = self.finish(carry["model"], client, num_steps, hyper)
        return sent, {"own": carry["own"]}

    def personal(self, params: Tensors, state: State) -> Tensors:
        return {**params, **{name: params[name] + p for name, p in state["own"].items()}}
