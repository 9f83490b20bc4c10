"""Methods whose clients keep a part of the model, which never travels.

Arivazhagan et al., Federated Learning with Personalization Layers (FedPer), 2019. https://arxiv.org/abs/1912.00818
Collins et al., Exploiting Shared Representations for Personalized Federated Learning (FedRep), ICML 2021.
https://arxiv.org/abs/2102.07078
Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021.
https://arxiv.org/abs/2102.07623
Liang et al., Think Locally, Act Globally: Federated Learning with Local and Global Representations (LG-FedAvg), 2020.
https://arxiv.org/abs/2001.01523
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import nn

from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.local import LocalBatch
from flgo_hydra.federated.refused import Refused

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)


class Partly(Algorithm):
    """FedAvg of a part of the model; the rest is each client's own, at first the untrained model's."""

    @abstractmethod
    def kept(self, model: nn.Module) -> Iterable[str]:
        """Names of the parameters and buffers that stay with the clients.

        Raises:
            Refused: the model has none.
        """

    def bind(self, model: nn.Module) -> None:
        self.private = frozenset(self.kept(model))

    def init_client(self, params: Tensors) -> State:
        return {"own": {name: params[name] for name in params if name in self.private}}

    def begin(self, client: Client, hyper: Hyper) -> State:
        return {"model": {**client.anchor, **client.state["own"]}}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        model = carry["model"]
        update = {name: model[name] - w for name, w in client.anchor.items() if name not in self.private}
        return {"update": update}, {"own": {name: model[name] for name in client.state["own"]}}

    def personal(self, params: Tensors, state: State) -> Tensors:
        return {**params, **state["own"]}


class FedPer(Partly):
    """Each client has a head of its own.

    Args:
        head: the module's name in the model; None: the last linear layer.
    """

    def __init__(self, head: str | None = None) -> None:
        self._head = head

    def kept(self, model: nn.Module) -> list[str]:
        return head_of(model, self._head)


class FedRep(FedPer):
    """FedPer in two phases: the first steps of a round train the head alone, the rest the body alone.

    Its number `head_share` is the head's share of the steps (rounded down, at least one).
    """

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        w = carry["model"]
        is_heads = at.is_among_first(hyper["head_share"])
        grads = at.gradient(w)
        ends = [
            at.descend("head", w, {name: g for name, g in grads.items() if name in self.private}, is_heads),
            at.descend("body", w, {name: g for name, g in grads.items() if name not in self.private}, ~is_heads),
        ]
        return {"model": {name: ends[name not in self.private][name] for name in w}}


class LGFedAvg(FedPer):
    """The opposite of FedPer: representations are each client's own, and the head is global."""

    def kept(self, model: nn.Module) -> list[str]:
        head = head_of(model, self._head)
        return [name for name, p in model.named_parameters() if p.requires_grad and name not in head]


class FedBN(Partly):
    """Normalisation layers are each client's own, by their type: scales, shifts and batch statistics."""

    def kept(self, model: nn.Module) -> list[str]:
        found = state_of(model, NORMS)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        if trained.isdisjoint(found):
            raise Refused("FedBN keeps the normalisation layers with the clients, but the model has none to train.")
        return found


def state_of(model: nn.Module, types: tuple[type[nn.Module], ...]) -> list[str]:
    """Names of the trained parameters and of the buffers of modules of these types."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, types)
        for name in (
            *(name for name, p in module.named_parameters(recurse=False) if p.requires_grad),
            *(name for name, _ in module.named_buffers(recurse=False)),
        )
    ]


def head_of(model: nn.Module, name: str | None) -> list[str]:
    """The trained parameters of a module, by default of the last linear layer.

    Raises:
        Refused: there is no such module, it trains nothing, or it is all of the model.
    """
    modules = dict(model.named_modules())
    head = name or next((n for n, module in reversed(modules.items()) if isinstance(module, nn.Linear)), "")
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    found = [n for n in trained if head and n.startswith(f"{head}.")]
    if not found or len(found) == len(trained):
        known = ", ".join(f"`{n}`" for n in modules if n) or "no named ones"
        what = f"`algorithm.head={name}`" if name else "the last linear layer"
        why = "which is all that it trains" if found else "which it has not, or does not train"
        raise Refused(f"The head is {what} of the model, {why}. Its modules are {known}.")
    return found
