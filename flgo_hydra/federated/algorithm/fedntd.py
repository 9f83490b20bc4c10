"""FedNTD: not-true distillation keeps what the server's model knows of the classes that a sample is not of.

Lee et al., Preservation of the Global Knowledge by Not-True Distillation in Federated Learning, NeurIPS 2022,
section 4. https://arxiv.org/abs/2106.03097

Symbols: q~(c), c != y, the softmax of logits / tau over all classes but the true one, of the client's model (l) and of
the server's (g). The authors' code multiplies the second term by tau^2, which is 1 for the paper's tau; here it is not.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.labels import require_classes
from flgo_hydra.federated.algorithm.local import LocalBatch

FAR = 1e6
"""How far the true class's logit is put below the others: its share is exactly 0, and no number is infinite."""


class FedNTD(Algorithm):
    """To a sample's loss comes beta sum_(c != y) q~_g(c) log(q~_g(c) / q~_l(c)). With two classes it is always 0."""

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        return ["FedNTD with beta=0 is FedAvg."] if numbers["beta"] == 0 else []

    def begin(self, client: Client, hyper: Hyper) -> State:
        require_classes(client, "FedNTD")
        return super().begin(client, hyper)

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        def log_q(outputs: Tensor) -> Tensor:
            is_true = torch.arange(outputs.shape[1], device=outputs.device) == at.y.unsqueeze(1)
            found: Tensor = log_softmax(torch.where(is_true, -FAR, outputs / hyper["tau"]), dim=1)
            return found

        with torch.no_grad():
            log_q_g = log_q(at.outputs(client.anchor))

        def losses(params: Tensors) -> Tensor:
            outputs = at.outputs(params)
            divergence = (log_q_g.exp() * (log_q_g - log_q(outputs))).sum(dim=1)
            both: Tensor = at.loss_of(outputs) + hyper["beta"] * divergence
            return both

        w = carry["model"]
        return {"model": at.descend("model", w, at.gradient(w, losses))}
