"""SCAFFOLD: control variates correct the drift of local steps.

Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020, Algorithm 1 with
option II. https://arxiv.org/abs/1910.06378

Symbols: x the server's model, y_i a client's, c and c_i their control variates, K local steps, eta_l = lr, eta_g = eta.
"""

from collections.abc import Mapping
from typing import Any

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors, zeros_like


class Scaffold(Algorithm):
    """Local steps follow g - c_i + c; model and c move by the cohort's even mean.

    Another aggregate weighs the models; the mean of Delta c stays even, so that c stays the mean of all clients' c_i.
    """

    weighting = "uniform"
    even = ("control",)

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        """Option II takes (x - y_i) / (K eta_l) for the mean gradient, which it is after plain SGD steps only."""
        if option.optimizer != "sgd" or option.momentum:
            what = f"optimizer={option.optimizer}" + (f" momentum={option.momentum}" if option.momentum else "")
            happens = "training may diverge"
        elif option.clip_grad:
            what, happens = f"clip_grad={option.clip_grad}", "the control variates are biased"
        else:
            return []
        return [
            f"SCAFFOLD with `{what}`: its control variates take (x - y_i) / (K lr) for a client's mean gradient "
            f"(option II of the paper), which holds after plain SGD steps only, so {happens}. Use optimizer=sgd "
            "momentum=0 clip_grad=0."
        ]

    def init_server(self, params: Tensors) -> State:
        return {"control": zeros_like(params)}

    def init_client(self, params: Tensors) -> State:
        return {"control": zeros_like(params)}

    def correct(self, grads: Tensors, params: Tensors, client: Client, hyper: Hyper) -> Tensors:
        c, c_i = client.server["control"], client.state["control"]
        return {name: grads.get(name, 0.0) - c_i[name] + c[name] for name in params}

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
