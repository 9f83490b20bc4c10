"""What an algorithm is: FedAvg with some of its steps replaced.

McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.
https://arxiv.org/abs/1602.05629

An algorithm is a few pure functions over tensors. It never loops over clients, nor touches a device, a file or a
config; it keeps nothing in `self`. Its hyper-parameters are values that come with each call: under `torch.func.vmap`
a call may stand for one client of one point of a grid, with its own learning rate and its own `mu`. So write tensor
arithmetic without `.item()`, `if tensor` or in-place changes.

In the order of a round, for each client k of the cohort:
    `correct`        what the client adds to each local gradient,
    `finish`         what it sends after its last local step, and what it keeps for the next time,
and once on the server:
    `update_server`  what the server makes of the weighted mean of what was sent.

Tensors of a model are a dict by parameter name; a `State` is a dict of such dicts.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
State = dict[str, Tensors]
Hyper = Mapping[str, Any]
"""The algorithm's numbers from its YAML, and `lr` of this round: floats, or tensors without dimensions."""


class Client(NamedTuple):
    """What a client knows when it starts its local steps."""

    anchor: Tensors
    """the server's model it starts from (w_t)"""
    server: State
    """what the server keeps (and sends along)"""
    state: State
    """what this client kept when it last took part; zeros at first"""


class Algorithm:
    """FedAvg; others replace some of its steps."""

    weighting: str = "samples"
    """the algorithm's own weights of a cohort (`aggregate=other`): samples (n_k) or uniform"""

    def init_server(self, params: Tensors) -> State:
        """What the server keeps from round to round beside the model."""
        return {}

    def init_client(self, params: Tensors) -> State:
        """What each client keeps from round to round, at first. Only its shapes and dtypes are used: all zeros."""
        return {}

    def loss(self, outputs: Tensor, targets: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Loss of each sample, shape (batch,), whose mean is the local objective.

        Args:
            outputs: the model's, shape (batch, num_outputs).
            criterion: the task's loss of each sample: cross-entropy, or squared error for regression.
        """
        return criterion(outputs, targets)

    def correct(self, grads: Tensors, params: Tensors, client: Client, hyper: Hyper) -> Tensors:
        """The direction of a local step, from the gradient of the local objective at `params`."""
        return grads

    def finish(self, params: Tensors, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        """What a client sends and what it keeps, after `num_steps` local steps ended at `params`.

        Returns:
            the message, whose entries are averaged over the cohort (`update`, the change of the model, among them),
            and the client's new state, with the entries of `init_client`.
        """
        return {"update": {name: params[name] - start for name, start in client.anchor.items()}}, client.state

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        """The server's next model and state.

        Args:
            message: the weighted mean over the cohort of what its clients sent.
            participation: the share of all clients that took part, |S| / N.
        """
        return {name: w + message["update"][name] for name, w in params.items()}, server


def zeros_like(params: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in params.items()}
