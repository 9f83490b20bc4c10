"""MOON: what a client's model makes of a sample stays near what the server's makes, and far from its last own one's.

Li et al., Model-Contrastive Federated Learning, CVPR 2021, equation 3 and Algorithm 1.
https://arxiv.org/abs/2103.16257

Symbols: z, z_glob, z_prev the representations of the client's, the server's and the client's previous model; tau the
temperature, mu the weight of the contrastive loss. In the paper z is what a projection head makes of a sample; here it
is the input of the model's last linear layer, or of the module that `module` names.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.local import LocalBatch


class Moon(Algorithm):
    """To a sample's loss comes -mu log(e^(s_glob / tau) / (e^(s_glob / tau) + e^(s_prev / tau))), s the cosine with z.

    A client's first previous model is the untrained one.

    Args:
        module: whose inputs are the representation; None: the last linear layer's.
    """

    def __init__(self, module: str | None = None) -> None:
        self._module = module

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        return ["MOON with mu=0 is FedAvg."] if numbers["mu"] == 0 else []

    def init_client(self, params: Tensors) -> State:
        return {"previous": params}

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        def representation(params: Tensors) -> tuple[Tensor, Tensor]:
            z, outputs = at.features(params, self._module)
            return z.flatten(1), outputs

        with torch.no_grad():
            z_glob, z_prev = (representation(params)[0] for params in (client.anchor, client.state["previous"]))

        def losses(params: Tensors) -> Tensor:
            z, outputs = representation(params)
            nearer = cosine_similarity(z, z_prev) - cosine_similarity(z, z_glob)
            contrast: Tensor = at.loss_of(outputs) + hyper["mu"] * softplus(nearer / hyper["tau"])
            return contrast

        w = carry["model"]
        return {"model": at.descend("model", w, at.gradient(w, losses))}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        sent, _ = self.finish(carry["model"], client, num_steps, hyper)
        return sent, {"previous": carry["model"]}
