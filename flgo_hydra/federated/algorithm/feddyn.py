"""FedDyn: each client's objective is changed from round to round so that its minimum is where all of them agree.

Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021, Algorithm 1.
https://arxiv.org/abs/2111.04263

Symbols: theta the server's model, theta_k a client's, L_k its objective, g_k = grad L_k(theta_k) as its last visit has
left it (0 at first), h the mean of all clients' g_k, m clients of whom P take part.
"""

from collections.abc import Mapping
from typing import Any

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors, zeros_like


class FedDyn(Algorithm):
    """Clients minimise L_k(theta_k) - <g_k, theta_k> + alpha/2 ||theta_k - theta||^2.

    Not FedAvg as alpha goes to 0: the server adds the sum of all changes so far, -h / alpha, to the mean model.
    """

    weighting = "uniform"

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        what = f"aggregate={option.aggregate}" if option.aggregate.startswith("weighted") else ""
        what = what or ("sample=md" if option.sample == "md" else "")
        if not what:
            return []
        return [
            f"FedDyn with `{what}`: h must be the mean of all clients' g_k, which it is where those that take part "
            "count alike. Use sample=uniform (or full) and aggregate=other."
        ]

    def init_server(self, params: Tensors) -> State:
        return {"h": zeros_like(params)}

    def init_client(self, params: Tensors) -> State:
        return {"g": zeros_like(params)}

    def correct(self, grads: Tensors, params: Tensors, client: Client, hyper: Hyper) -> Tensors:
        alpha, g_k, theta = hyper["alpha"], client.state["g"], client.anchor
        return {name: grads.get(name, 0.0) - g_k[name] + alpha * (p - theta[name]) for name, p in params.items()}

    def finish(self, params: Tensors, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        """g_k <- g_k - alpha (theta_k - theta)."""
        sent, _ = super().finish(params, client, num_steps, hyper)
        kept = {name: g - hyper["alpha"] * sent["update"][name] for name, g in client.state["g"].items()}
        return sent, {"g": kept}

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        """h <- h - alpha P/m mean(theta_k - theta); theta <- mean(theta_k) - h / alpha."""
        alpha, change = hyper["alpha"], message["update"]
        h = {name: t - alpha * participation * change[name] for name, t in server["h"].items()}
        return {name: p + change[name] - h[name] / alpha for name, p in params.items()}, {"h": h}
