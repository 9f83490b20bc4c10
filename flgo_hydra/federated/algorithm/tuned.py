"""Methods whose clients use the server's model after tuning it on their own samples: what these share.

Tuning takes gradients, so it is a part of a client's visit: the model that it has tuned in its last one is its own.
Where all take part in each round (sample=full), it is tuned from the server's model of one round before.
"""

import torch

from flgo_hydra.federated.algorithm.base import Algorithm, Client, State, Tensors


class Tuned(Algorithm):
    """A client's own model is the one that it tuned last; who has never taken part uses the server's as it is."""

    def init_client(self, params: Tensors) -> State:
        return {"own": params, "is": {"tuned": next(iter(params.values())).new_zeros(())}}

    def personal(self, params: Tensors, state: State) -> Tensors:
        is_tuned = state["is"]["tuned"] > 0
        return {name: torch.where(is_tuned, state["own"][name], p) for name, p in params.items()}


def tuned(own: Tensors, client: Client) -> State:
    """What a client keeps that has tuned a model."""
    return {"own": own, "is": {"tuned": torch.ones_like(client.state["is"]["tuned"])}}
