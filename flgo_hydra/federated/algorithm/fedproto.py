"""FedProto: what travels is the mean of what each class looks like; models are the clients' own.

Tan et al., FedProto: Federated Prototype Learning across Heterogeneous Clients, AAAI 2022, equations 6 to 8 and
Algorithm 1. https://arxiv.org/abs/2105.00243

Symbols: z the input of the model's head, C_i^(j) client i's mean of z over its samples of class j (a prototype), C^(j)
the server's, lambda = lam. Here C classes, d features, B samples.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.linear_head import LinearHead
from flgo_hydra.federated.algorithm.local import Batch, LocalBatch


class FedProto(Algorithm):
    """Clients minimise F_k + lambda sum_j ||C_i^(j) - C^(j)||^2, over the classes of the batch that have a C^(j), with
    the batch's own means for C_i^(j). After its steps a client sends those of all its samples. (The distance is squared
    since a plain one has no direction at 0, where it is for a class that one client alone has.)

    C^(j) is the mean over the samples of the round's clients; where none has class j, it stays. Equation 6 as printed
    divides by the number of clients once more, which makes no mean. The server's own model is never trained, and
    `valid_loss` is its: follow `monitor=personal_valid_loss`. A client is evaluated by its own model, head and all.

    Args:
        head: the linear layer whose inputs are z; None: the last one.
        distance: classes, as above; or samples, as the authors' code: the mean of (z - C^(y))^2 over samples and
            features.
    """

    even = ("prototypes",)

    def __init__(self, head: str | None = None, distance: str = "classes") -> None:
        self._head, self._is_of_samples = LinearHead(head), distance == "samples"

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        said = "FedProto with lam=0: the clients' own models are of local training alone."
        return [said] if numbers["lam"] == 0 else []

    def bind(self, model: nn.Module) -> None:
        self._head.find(model)
        trained = (name for name, p in model.named_parameters() if p.requires_grad)
        self.private = frozenset((*trained, *(name for name, _ in model.named_buffers())))

    def init_server(self, params: Tensors) -> State:
        weight = params[f"{self._head.module}.weight"]
        return {"prototypes": {"mean": torch.zeros_like(weight), "is_known": weight.new_zeros(len(weight))}}

    def init_client(self, params: Tensors) -> State:
        return {"own": params}

    def begin(self, client: Client, hyper: Hyper) -> State:
        self._head.counts(client)  # refuses a task without classes
        return {"own": client.state["own"]}

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        known, mean = client.server["prototypes"]["is_known"], client.server["prototypes"]["mean"]
        of_class = _one_hot(at.y, mean)

        def losses(params: Tensors) -> Tensor:
            z, outputs = at.features(params, self._head.module)
            if self._is_of_samples:
                away = (z - of_class @ mean).square().mean(1) * (of_class @ known)
                found: Tensor = at.loss_of(outputs) + hyper["lam"] * away
                return found
            shares = at.mean(of_class)  # (C,)
            sums = at.mean(of_class.unsqueeze(2) * z.unsqueeze(1))  # (C, d)
            is_here = (shares > 0) & (known > 0)
            away = (sums / torch.where(is_here, shares, 1.0).unsqueeze(1) - mean).square().sum(1)
            pull: Tensor = hyper["lam"] * torch.where(is_here, away, 0.0).sum()
            return at.mean(at.loss_of(outputs)) + pull

        own = carry["own"]
        return {"own": at.descend("own", own, at.gradient(own, losses))}

    def measure_after(self, carry: State, at: Batch, client: Client, hyper: Hyper) -> Tensors:
        z, _ = at.features(carry["own"], self._head.module)
        of_class = _one_hot(at.y, client.server["prototypes"]["mean"])
        return {"sums of classes": at.mean(of_class.unsqueeze(2) * z.unsqueeze(1))}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        counts = self._head.counts(client)
        sums = client.facts["sums of classes"] * client.facts["num_samples"]
        return {"prototypes": {"sums": sums, "counts": counts}}, {"own": carry["own"]}

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        before, counts = server["prototypes"], message["prototypes"]["counts"]
        mean = message["prototypes"]["sums"] / torch.where(counts > 0, counts, 1.0).unsqueeze(1)
        mean = torch.where((counts > 0).unsqueeze(1), mean, before["mean"])
        return params, {"prototypes": {"mean": mean, "is_known": torch.where(counts > 0, 1.0, before["is_known"])}}

    def personal(self, params: Tensors, state: State) -> Tensors:
        return state["own"]


def _one_hot(y: Tensor, mean: Tensor) -> Tensor:
    """(B, C). `torch.nn.functional.one_hot` reads numbers from tensors, which no recorded step can."""
    return (y.unsqueeze(1) == torch.arange(len(mean), device=y.device)).to(mean.dtype)
