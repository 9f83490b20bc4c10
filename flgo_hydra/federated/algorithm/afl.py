"""AFL: agnostic federated learning, for the worst mixture of the clients: its weights ascend as the model descends.

Mohri et al., Agnostic Federated Learning, ICML 2019, STOCHASTIC-AFL (section 4). https://arxiv.org/abs/1902.00146

Symbols: lambda the clients' weights on the simplex, even at first; F_k(w) the loss on all of client k's training
samples; gamma the step size of lambda (gamma_lambda). In the paper a round is one step of w, and its result the mean
over rounds. Here clients take as many steps as the options say, and the result is the last w.

All clients take part in each round. A client keeps its own lambda_k: the Euclidean projection onto the simplex is
lambda_k = max(v_k - theta, 0), and theta, which the server finds, comes with the next model.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.local import Batch
from flgo_hydra.federated.refused import Refused


class AFL(Algorithm):
    """w + sum_k lambda_k (w_k - w); then v_k = lambda_k + gamma F_k(w), which is projected."""

    weighting = "uniform"

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        if option.sample != "full" and not (option.sample == "uniform" and option.proportion == 1):
            raise Refused("AFL's weights are over all clients, who take part in each round: it needs `sample=full`.")
        return ["AFL with gamma=0 is FedAvg with aggregate=uniform."] if numbers["gamma"] == 0 else []

    def init_server(self, params: Tensors) -> State:
        return {"lambda": {"theta": _zero(params)}}

    def init_client(self, params: Tensors) -> State:
        return {"lambda": {"v": _zero(params), "loss": _zero(params)}}

    def measure_before(self, at: Batch, client: Client, hyper: Hyper) -> Tensors:
        return {"loss": at.mean(at.losses(client.anchor))}

    def finish(self, params: Tensors, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        sent, _ = super().finish(params, client, num_steps, hyper)
        last = client.state["lambda"]
        v = torch.clamp(last["v"] - client.server["lambda"]["theta"], min=0) + hyper["gamma"] * last["loss"]
        return {**sent, "lambda": {"v": v}}, {"lambda": {"v": v, "loss": client.facts["loss"]}}

    def combine(self, messages: State, weights: Mapping[str, Tensor], hyper: Hyper) -> State:
        v = messages["lambda"]["v"]
        theta = threshold(v)
        own = torch.clamp(v - theta, min=0)
        update = {name: torch.tensordot(own.to(u.dtype), u, 1) for name, u in messages["update"].items()}
        return {"update": update, "lambda": {"theta": theta}}

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        x, _ = super().update_server(params, server, message, participation, hyper)
        return x, {"lambda": message["lambda"]}


def threshold(v: Tensor) -> Tensor:
    """theta such that max(v - theta, 0) is the point of the simplex nearest to v (Duchi et al., ICML 2008)."""
    falling = v.sort(descending=True).values
    mean = (falling.cumsum(0) - 1) / torch.arange(1, len(v) + 1, device=v.device, dtype=v.dtype)
    return mean[(falling > mean).sum() - 1]


def _zero(params: Tensors) -> Tensor:
    return next(iter(params.values())).new_zeros(())
