"""Ditto: each client trains a model of its own beside the global one, and near it.

Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021, Algorithm 1.
https://arxiv.org/abs/2012.04221

Symbols: w_t the server's model, v_k a client's own, F_k its objective, lambda = lam.
"""

from collections.abc import Mapping
from typing import Any

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.local import LocalBatch


class Ditto(Algorithm):
    """The global model is FedAvg's. A client's own minimises F_k(v) + lambda/2 ||v - w_t||^2 on the same batches.

    A client that has never taken part uses the untrained model.
    """

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        return ["Ditto with lam=0: the clients' own models are of local training alone."] if numbers["lam"] == 0 else []

    def init_client(self, params: Tensors) -> State:
        return {"own": params}

    def begin(self, client: Client, hyper: Hyper) -> State:
        return {"model": client.anchor, "own": client.state["own"]}

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        w, v = carry["model"], carry["own"]
        g = at.gradient(v)
        pulled = {name: g.get(name, 0.0) + hyper["lam"] * (p - client.anchor[name]) for name, p in v.items()}
        return {"model": at.descend("model", w, at.gradient(w)), "own": at.descend("own", v, pulled)}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        sent, _ = self.finish(carry["model"], client, num_steps, hyper)
        return sent, {"own": carry["own"]}

    def personal(self, params: Tensors, state: State) -> Tensors:
        return state["own"]
