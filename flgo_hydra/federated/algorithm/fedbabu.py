"""FedBABU: federated training of the body under a head that stays as it was; clients fine-tune both for themselves.

Oh et al., FedBABU: Toward Enhanced Representation for Federated Image Classification, ICLR 2022, Algorithm 1 and
section 5. https://arxiv.org/abs/2106.06042

Symbols: theta_ext the body (extractor), theta_cls the head (classifier), which stays what it was initialised to. The
paper fine-tunes the final model; here a client fine-tunes a copy of the one it has come for, body and head, beside
training the body: on the same batches, for as many epochs.
"""

from typing import Any

from torch import nn

from flgo_hydra.federated.algorithm.base import Client, Hyper, State
from flgo_hydra.federated.algorithm.local import LocalBatch
from flgo_hydra.federated.algorithm.private import head_of
from flgo_hydra.federated.algorithm.tuned import Tuned, tuned


class FedBABU(Tuned):
    """FedAvg of theta_ext; a client's own model is the server's, fine-tuned in the client's last visit.

    Args:
        head: the module's name in the model; None: the last linear layer.
    """

    def __init__(self, head: str | None = None) -> None:
        self._head = head

    def bind(self, model: nn.Module) -> None:
        self._cls = frozenset(head_of(model, self._head))

    def begin(self, client: Client, hyper: Hyper) -> State:
        return {"model": client.anchor, "own": client.anchor}

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        w, v = carry["model"], carry["own"]
        of_body = {name: g for name, g in at.gradient(w).items() if name not in self._cls}
        return {"model": at.descend("model", w, of_body), "own": at.descend("own", v, at.gradient(v))}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        sent, _ = self.finish(carry["model"], client, num_steps, hyper)
        return sent, tuned(carry["own"], client)
