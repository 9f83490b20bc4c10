"""Methods whose clients keep a part of the model, which never travels: what these share."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.refused import Refused
from flgo_hydra.objective import OF_SERVER


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

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        """What is private stays untrained on the server."""
        if option.monitor not in OF_SERVER:
            return []
        return [
            f"`monitor={option.monitor}` is of the server's model, where {type(self).__name__} leaves untrained what "
            "the clients keep. Follow monitor=personal_valid_loss (with task.local_test=0.5 every method has it)."
        ]

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


def all_of(model: nn.Module) -> list[str]:
    """Names of the trained parameters and of the buffers."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    return [*trained, *(name for name, _ in model.named_buffers())]


def head_of(model: nn.Module, name: str | None) -> list[str]:
    """The trained parameters and the buffers of a module, by default of the last linear layer.

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
    return [n for n in all_of(model) if n.startswith(f"{head}.")]
