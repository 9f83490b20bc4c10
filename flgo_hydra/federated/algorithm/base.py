"""What an algorithm is: FedAvg with some of its parts replaced.

McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017.
https://arxiv.org/abs/1602.05629

An algorithm is a few pure functions over tensors. It never loops over clients, nor touches a device, a file or a
config; it keeps nothing in `self`. Its hyper-parameters are values that come with each call: under `torch.func.vmap`
a call may stand for one client of one point of a grid, with its own learning rate and its own `mu`. So write tensor
arithmetic without `.item()`, `if tensor` or in-place changes.

In the order of a round, for each client k of the cohort:
    `measure_before`  what is measured on all of its samples with the server's model, if anything,
    `correct`         what the client adds to each local gradient,
    `measure_after`   what is measured on all of its samples after its last local step, if anything,
    `finish`          what it sends then, and what it keeps for the next time,
and once on the server:
    `combine`         the weighted mean of what was sent, or another rule over the messages of the cohort,
    `update_server`   what the server makes of it.

A method that trains more than one model, or takes its gradients elsewhere than at the model's own parameters, runs a
program on each client instead of `correct`:
    `begin`           the models (and whatever else) that the client carries through its steps,
    `step`            one local step of them; it takes gradients as often and where it likes (`local.py`),
    `end`             as `finish`, of all that was carried.
And one whose clients use a model of their own says which: `personal`.

Tensors of a model are a dict by parameter name; a `State` is a dict of such dicts.

A parameter that the loss of a batch does not depend on (a head that this batch has no use for) is not among the
gradients that `correct` is given, and whatever `correct` does not return stays as it is in that step: no momentum, no
weight decay, and its norm is not clipped, as `torch.optim` does where `grad` is None. So `for name, g in grads.items()`
leaves it alone. A term of the objective itself acts on all parameters, where the gradient of the loss is 0: FedProx and
SCAFFOLD take `grads.get(name, 0.0)`, as adding the term to the loss does in PyTorch.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.local import Batch, LocalBatch
from flgo_hydra.federated.algorithm.tensors import State as State
from flgo_hydra.federated.algorithm.tensors import Tensors as Tensors

Hyper = Mapping[str, Any]
"""The algorithm's numbers from its YAML, and `lr` of this round: floats, or tensors without dimensions. Nothing else is
in it: an algorithm's own `momentum` has nothing to do with the optimizer's."""


class Client(NamedTuple):
    """What a client knows when it starts its local steps."""

    anchor: Tensors
    """the server's model it starts from (w_t)"""
    server: State
    """what the server keeps (and sends along)"""
    state: State
    """what this client kept when it last took part; what `init_client` says at first"""
    facts: Tensors = {}
    """of its training samples: `num_samples`, (), for classification `label_counts`, (num_classes,), and what was
    measured of them"""


class Algorithm:
    """FedAvg; others replace some of its parts."""

    weighting: str = "samples"
    """the algorithm's own weights of a cohort (`aggregate=other`): samples (n_k) or uniform; under `sample=md`, where
    volume has decided who was drawn, both mean even weights of the draws"""
    even: tuple[str, ...] = ()
    """entries of the message whose mean is an even one over the clients that took part, whatever the aggregate"""

    private: frozenset[str] = frozenset()
    """parameters and buffers that stay with the clients: the server's never change, and `update` has none of them"""
    fixed_buffers: frozenset[str] = frozenset()
    """buffers, such as batch statistics, that are the server's alone: what clients make of them is dropped; of all that
    stand nowhere here, the mean of what they make of them is the server's next"""

    def bind(self, model: nn.Module) -> None:
        """Called once, before anything else, with the run's untrained model: what the algorithm must know of its
        structure (which parameters are a head's, or of normalisation layers) it may keep in `self` now, as names.

        Raises:
            Refused: the model lacks what the algorithm needs.
        """

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        """What a reader should know of results with these options, a sentence each: laws of the algorithm that they
        break, why, and what to use; or which other method it then is. They are logged and stand in result.json and in a
        sweep's summary.

        Args:
            numbers: the algorithm's, from its YAML.
        """
        return []

    def init_server(self, params: Tensors) -> State:
        """What the server keeps from round to round beside the model."""
        return {}

    def more_facts(self, num_clients: int) -> Tensors:
        """What else is known of each client from the start: by name, (num_clients, …), to be among its `facts`."""
        return {}

    def init_client(self, params: Tensors) -> State:
        """What each client keeps from round to round, at first.

        Args:
            params: the untrained model's.
        """
        return {}

    def loss(self, outputs: Tensor, targets: Tensor, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Loss of each sample, shape (batch,), whose mean is the local objective.

        Args:
            outputs: the model's, shape (batch, num_outputs).
            criterion: the task's loss of each sample: cross-entropy, or squared error for regression.
        """
        return criterion(outputs, targets)

    def measure_before(self, at: Batch, client: Client, hyper: Hyper) -> Tensors:
        """What a client measures before its local steps: the mean over all its training samples is then among its
        `facts`, by the same names, in `begin`, `correct`, `step`, `finish` and `end`.

        It is called for one batch of them after another, plainly and for one client, with the model in evaluation mode.
        The server's model is `client.anchor`. For example `{"loss": at.mean(at.losses(client.anchor))}`.

        Returns:
            means over the batch's samples, by name; what is a sum over samples is such a mean times `num_samples`.
        """
        return {}

    def measure_after(self, carry: State, at: Batch, client: Client, hyper: Hyper) -> Tensors:
        """The same after its last local step, for `finish` and `end`.

        Args:
            carry: what the steps have come to; of an algorithm without a program, its model by the name `model`.
        """
        return {}

    def correct(self, grads: Tensors, params: Tensors, client: Client, hyper: Hyper) -> Tensors:
        """The direction of a local step, from the gradient of the local objective at `params`.

        Args:
            grads: of the parameters that the loss of this batch depends on.
        Returns:
            the direction of the parameters that move.
        """
        return grads

    def begin(self, client: Client, hyper: Hyper) -> State:
        """What a client carries through its local steps, at first: by default one model, the server's.

        Returns:
            tensors by name and by a name for them all; `step` returns others of the same names and shapes.
        """
        return {"model": client.anchor}

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        """One local step, from what is carried to what is carried next.

        Called under `torch.vmap`, too, where each tensor is that of one client. What it returns must not hang on the
        numbers of a tensor otherwise than by tensor operations (`torch.where`).

        Args:
            carry: of `begin`, or of the step before.
            at: the step's samples, gradients of losses on them, and the optimizer.
        """
        model = carry["model"]
        direction = self.correct(at.gradient(model), model, client, hyper)
        return {"model": at.descend("model", model, direction)}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        """What a client sends and what it keeps, after its last step; see `finish`."""
        return self.finish(carry["model"], client, num_steps, hyper)

    def personal(self, params: Tensors, state: State) -> Tensors | None:
        """The model that a client would use itself, which is evaluated on its own held-out samples.

        Args:
            params: the server's model.
            state: what the client keeps.
        Returns:
            all parameters of the model; None: it uses the server's, and nothing more is evaluated.
        """
        return None

    def finish(self, params: Tensors, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        """What a client sends and what it keeps, after `num_steps` local steps ended at `params`.

        Returns:
            the message, whose entries are averaged over the cohort, and the client's new state, with the entries of
            `init_client`. `update`, the change of the model, is weighed as `aggregate` says, with weights that need not
            sum to 1 (weighted_com leaves the rest to the server's own model). Every other entry is a mean, by the same
            weights scaled to sum to 1, or an even one if it is named in `even`.
        """
        return {"update": {name: params[name] - start for name, start in client.anchor.items()}}, client.state

    def combine(self, messages: State, weights: Mapping[str, Tensor], hyper: Hyper) -> State:
        """What the server makes of a cohort's messages. Where this is replaced, all of them are kept until the end of a
        round; by default each is added to a weighted sum and forgotten.

        Args:
            messages: what the clients sent, each tensor with a first dimension of the cohort's size.
            weights: of the clients, (size,), by entry of the message, as `finish` says.
        Returns:
            the entries that `update_server` takes.
        """
        return {
            entry: {name: torch.tensordot(weights[entry].to(t.dtype), t, 1) for name, t in tensors.items()}
            for entry, tensors in messages.items()
        }

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        """The server's next model and state. By default parameters without an update stay as they are.

        Args:
            message: the weighted means over the cohort of what its clients sent, as `finish` says.
            participation: the share of all clients that took part, |S| / N.
        """
        update = message["update"]
        return {name: w + update[name] if name in update else w for name, w in params.items()}, server


def runs_program(algorithm: Algorithm) -> bool:
    """Whether clients do more than correct the gradient of one model."""
    own = type(algorithm)
    return any(getattr(own, name) is not getattr(Algorithm, name) for name in ("begin", "step", "end"))


def takes_all_messages(algorithm: Algorithm) -> bool:
    """Whether the server asks for more than a weighted sum."""
    return type(algorithm).combine is not Algorithm.combine


def zeros_like(params: Tensors) -> Tensors:
    return {name: torch.zeros_like(tensor) for name, tensor in params.items()}
