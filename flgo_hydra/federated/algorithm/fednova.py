"""FedNova: clients that take more steps, or longer ones, do not count more for it.

Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, NeurIPS 2020,
sections 4 and 5. https://arxiv.org/abs/2007.07481

Symbols: x the server's model, Delta_i a client's change, p_i its weight, lr ||a_i||_1 how far its steps would have come
along a gradient that is 1 everywhere, d_i = Delta_i / ||a_i||_1, tau_eff = sum_i p_i ||a_i||_1, mu of the proximal
form.
"""

from collections.abc import Mapping
from typing import Any

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.fedprox import FedProx
from flgo_hydra.federated.algorithm.local import LocalBatch


class FedNova(FedProx):
    """x <- x + tau_eff sum_i p_i d_i.

    ||a_i||_1 is not taken from a formula: a number starts at 0 and descends beside the model, with the same optimizer,
    along a gradient of -1 and pulled back by mu. So it is the paper's with plain SGD (the number of steps), with
    momentum, with mu, and with all of them; weight decay counts as mu does. lr cancels out.
    """

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        found = []
        if option.optimizer not in ("sgd", "momentum", "nesterov"):
            found.append(
                f"FedNova with optimizer={option.optimizer}: the paper weighs the gradients of SGD's steps; here a "
                "client's change is divided by how far this optimizer comes along a constant gradient."
            )
        if option.clip_grad and numbers["mu"]:
            found.append("FedNova with mu and clip_grad: the proximal term is clipped too, which its a_i do not know.")
        if option.aggregate == "weighted_scale":
            found.append(
                "FedNova with aggregate=weighted_scale: what the weights lack of 1, times the server's model, is "
                "multiplied by tau_eff, so training may diverge. Use aggregate=other or uniform."
            )
        return found

    def begin(self, client: Client, hyper: Hyper) -> State:
        first = next(iter(client.anchor.values()))
        return {"model": client.anchor, "steps": {"a": first.new_zeros(())}}

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        x, a = carry["model"], carry["steps"]["a"]
        direction = self.correct(at.gradient(x), x, client, hyper)
        ones = {"a": hyper["mu"] * a - 1.0}
        return {"model": at.descend("model", x, direction), "steps": at.descend("steps", {"a": a}, ones)}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        a = carry["steps"]["a"]
        d = {name: (p - client.anchor[name]) / a for name, p in carry["model"].items()}
        return {"update": d, "steps": {"a": a}}, client.state

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        tau_eff, d = message["steps"]["a"], message["update"]
        return {name: x + tau_eff * d[name] for name, x in params.items()}, server
