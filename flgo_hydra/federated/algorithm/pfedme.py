"""pFedMe: clients train models of their own near the global one, which moves to them.

Dinh, Tran and Nguyen, Personalized Federated Learning with Moreau Envelopes, NeurIPS 2020, Algorithm 1.
https://arxiv.org/abs/2006.08848

Symbols: w a client's version of the global model, theta its own model, lambda = lam, eta = lr, K gradients for each
theta, beta the server's step.
"""

from collections.abc import Mapping
from typing import Any

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors
from flgo_hydra.federated.algorithm.local import LocalBatch


class PFedMe(Algorithm):
    """On each batch theta takes K gradient steps on f(theta) + lambda/2 ||theta - w||^2, then w follows
    lambda (w - theta).

    The paper asks for theta up to an accuracy. As in its authors' code, theta goes on from the step before, in each
    round from the server's model, by plain gradient steps of a size of their own, `inner_lr`. A client uses its last
    theta; one that has never taken part, the untrained model.

    Args:
        inner_steps: K, as text: points of a grid that differ in it are no numbers of one program.
    """

    weighting = "uniform"

    def __init__(self, inner_steps: str = "5") -> None:
        self._inner_steps = int(inner_steps)

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        lam = numbers["lam"]
        found = ["pFedMe with lam=0: the server's model never moves."] if lam == 0 else []
        found += ["pFedMe with beta=0: the server's model never moves."] if numbers["beta"] == 0 else []
        for name, lr in (("lr", option.lr), ("algorithm.inner_lr", numbers["inner_lr"])):
            if lr * lam >= 2:
                found.append(
                    f"pFedMe with {name} * lam = {lr * lam:g}: from 2 on, the pull of a model to another one throws it "
                    f"further to the other side. Lower {name}; the paper's are lr=0.005, inner_lr=0.09 and lam=15."
                )
        return found

    def init_client(self, params: Tensors) -> State:
        return {"own": params}

    def begin(self, client: Client, hyper: Hyper) -> State:
        return {"model": client.anchor, "own": client.anchor}

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        w, theta, lam = carry["model"], carry["own"], hyper["lam"]
        for _ in range(self._inner_steps):
            g = at.gradient(theta)
            theta = {n: p - hyper["inner_lr"] * (g.get(n, 0.0) + lam * (p - w[n])) for n, p in theta.items()}
        return {"model": at.descend("model", w, {n: lam * (p - theta[n]) for n, p in w.items()}), "own": theta}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        sent, _ = self.finish(carry["model"], client, num_steps, hyper)
        return sent, {"own": carry["own"]}

    def personal(self, params: Tensors, state: State) -> Tensors:
        return state["own"]

    def update_server(
        self, params: Tensors, server: State, message: State, participation: Any, hyper: Hyper
    ) -> tuple[Tensors, State]:
        """(1 - beta) w + beta mean(w_i)."""
        return {name: w + hyper["beta"] * message["update"][name] for name, w in params.items()}, server
