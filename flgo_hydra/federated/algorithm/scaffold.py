"""SCAFFOLD: control variates correct the drift of local steps.

Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020, Algorithm 1 with
option II. https://arxiv.org/abs/1910.06378

Symbols: x the server's model, y_i a client's, c and c_i their control variates, K local steps, eta_l = lr, eta_g = eta.
"""

from typing import Any

from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors, zeros_like


class Scaffold(Algorithm):
    """Local steps follow g - c_i + c; model and c move by the cohort's even mean."""

    weighting = "uniform"

    def init_server(self, params: Tensors) -> State:
        return {"control": zeros_like(params)}

    def init_client(self, params: Tensors) -> State:
        return {"control": zeros_like(params)}

    def correct(self, grads: Tensors, params: Tensors, client: Client, hyper: Hyper) -> Tensors:
        c, c_i = client.server["control"], client.state["control"]
        return {name: g - c_i[name] + c[name] for name, g in grads.items()}

    def finish(self, params: Tensors, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        """Delta y = y_i - x; c_i+ = c_i - c + (x - y_i) / (K eta_l); Delta c = c_i+ - c_i."""
        c, c_i = client.server["control"], client.state["control"]
        update = {name: params[name] - x for name, x in client.anchor.items()}
        scale = 1.0 / (num_steps * hyper["lr"])
        change = {name: -c[name] - scale * update[name] for name in update}
        kept = {name: c_i[name] + change[name] for name in change}
        return {"update": update, "control": change}, {"control": kept}

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        """x + eta_g mean(Delta y); c + |S|/N mean(Delta c)."""
        x = {name: w + hyper["eta"] * message["update"][name] for name, w in params.items()}
        c = {name: w + participation * message["control"][name] for name, w in server["control"].items()}
        return x, {"control": c}
