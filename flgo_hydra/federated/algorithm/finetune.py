"""FedAvg with fine-tuning: clients use the server's model after training it on their own samples.

Wang et al., Federated Evaluation of On-device Personalization, 2019. https://arxiv.org/abs/1910.10252

FedAvg's local steps are the fine-tuning: w_t after a visit's steps is both what is averaged and the client's own model.
"""

from typing import Any

from flgo_hydra.federated.algorithm.base import Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.tuned import Tuned, tuned


class Finetune(Tuned):
    """The server's model is FedAvg's. A client's own is what its last visit made of it."""

    def finish(self, params: Tensors, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        sent, _ = super().finish(params, client, num_steps, hyper)
        return sent, tuned(params, client)
