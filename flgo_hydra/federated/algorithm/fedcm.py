"""FedCM: each local step is mixed with the direction in which all clients went in the last round.

Xu et al., FedCM: Federated Learning with Client-level Momentum, 2021, Algorithm 2. https://arxiv.org/abs/2106.10874

Symbols: x the server's model, x_i a client's, Delta the last round's mean direction (0 at first), K local steps,
eta_l = lr. eta is the server's step in units of the clients' mean change: the paper's eta_g is eta eta_l K.
"""

from collections.abc import Mapping
from typing import Any

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors, zeros_like


class FedCM(Algorithm):
    """Local steps follow alpha g + (1 - alpha) Delta.

    Where clients take different numbers of steps, Delta is the mean over all steps: K is their mean number.
    """

    weighting = "uniform"

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        step = "" if numbers["eta"] == 1 else f" with a server step of {numbers['eta']:g}"
        found = [f"FedCM with alpha=1 is FedAvg of even weights{step}."] if numbers["alpha"] == 1 else []
        return [*found, *not_plain_sgd("FedCM", option)]

    def init_server(self, params: Tensors) -> State:
        return {"direction": zeros_like(params)}

    def correct(self, grads: Tensors, params: Tensors, client: Client, hyper: Hyper) -> Tensors:
        return mixed(grads, client, hyper["alpha"])

    def finish(self, params: Tensors, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        sent, kept = super().finish(params, client, num_steps, hyper)
        return {**sent, "steps": {"number": num_steps}}, kept

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        """Delta <- -mean(x_i - x) / (eta_l K); x <- x + eta mean(x_i - x)."""
        length, change = hyper["lr"] * message["steps"]["number"], message["update"]
        direction = {name: -u / length.to(u.dtype) for name, u in change.items()}
        return {name: x + hyper["eta"] * change[name] for name, x in params.items()}, {"direction": direction}


def mixed(grads: Tensors, client: Client, share: Any) -> Tensors:
    """`share` of the gradient, and the rest of the server's direction."""
    return {
        name: share * grads.get(name, 0.0) + (1 - share) * delta for name, delta in client.server["direction"].items()
    }


def not_plain_sgd(method: str, option: OptionConf) -> list[str]:
    """What is to be said where a client's change is not lr times the sum of its directions."""
    if option.optimizer == "sgd" and not option.momentum:
        return []
    what = f"optimizer={option.optimizer}" + (f" momentum={option.momentum}" if option.momentum else "")
    return [
        f"{method} with `{what}`: it takes (x - x_i) / (K lr) for a client's mean direction, which holds after plain "
        "SGD steps only, so training may diverge. Use optimizer=sgd momentum=0."
    ]
