"""FedLC: a client's logits are calibrated by how many samples of each class it has, before the cross-entropy.

Zhang et al., Federated Learning with Label Distribution Skew via Logits Calibration, ICML 2022, section 4.2.
https://arxiv.org/abs/2209.00189

Symbols: f_c the logit of class c, n_c the client's samples of it. The margin between y and another class i is
tau (n_y^(-1/4) - n_i^(-1/4)). It is infinite for a class that the client has no sample of, which so does not compete.
The sum of the softmax is over all classes, y among them, so that the loss is a cross-entropy.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.labels import require_classes
from flgo_hydra.federated.algorithm.local import LocalBatch

ABSENT = 1e9
"""n_c^(-1/4) of a class without samples: times any tau of use its share of the softmax is exactly 0, and no number is
infinite, nor nan where tau is 0."""


class FedLC(Algorithm):
    """Clients minimise -log(e^(f_y - tau n_y^(-1/4)) / sum_c e^(f_c - tau n_c^(-1/4)))."""

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        return ["FedLC with tau=0 is FedAvg."] if numbers["tau"] == 0 else []

    def begin(self, client: Client, hyper: Hyper) -> State:
        require_classes(client, "FedLC")
        return super().begin(client, hyper)

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        n = client.facts["label_counts"]
        margin = hyper["tau"] * torch.where(n > 0, torch.clamp(n, min=1) ** -0.25, ABSENT)

        def losses(params: Tensors) -> Tensor:
            return at.loss_of(at.outputs(params) - margin)

        w = carry["model"]
        return {"model": at.descend("model", w, at.gradient(w, losses))}
