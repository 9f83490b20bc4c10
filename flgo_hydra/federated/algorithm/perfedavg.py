"""Per-FedAvg: a model that is good after one gradient step on a client's own samples.

Fallah, Mokhtari and Ozdaglar, Personalized Federated Learning with Theoretical Guarantees: A Model-Agnostic
Meta-Learning Approach, NeurIPS 2020, Algorithm 1 and the approximations FO and HF of section 5.
https://arxiv.org/abs/2002.07948

Symbols: w a client's model, f its loss, alpha the step of adaptation, beta = lr the one of learning.
"""

from collections.abc import Mapping
from typing import Any

import torch

from flgo_hydra.config.option import OptionConf
from flgo_hydra.federated.algorithm.base import Algorithm, Client, Hyper, State, Tensors, zeros_like
from flgo_hydra.federated.algorithm.local import Batch, LocalBatch, Losses

_FULL = "full gradient of "


class PerFedAvg(Algorithm):
    """A local step follows g = grad f(w - alpha grad f(w; D); D'), less alpha times the Hessian at w on D'' times g.

    The paper draws three batches for a step, D, D' and D''. Here they are parts of the step's batch, its samples dealt
    out in turn, to two parts where there is no D''; a batch of fewer samples than parts is each of them.

    A client uses the server's model after one gradient step on all of its samples. That gradient is the one at the
    model from which it began when it last took part; one that never has uses the server's model.

    Args:
        hessian_free: the Hessian times g is taken as a difference of gradients, of width `delta` (HF); else it is left
            out (FO).
    """

    def __init__(self, hessian_free: bool = True) -> None:
        self._hessian_free = hessian_free

    def caveats(self, option: OptionConf, numbers: Mapping[str, Any]) -> list[str]:
        if numbers["alpha"]:
            return []
        part = "third" if self._hessian_free else "half"
        return [f"Per-FedAvg with alpha=0 is FedAvg, each step on a {part} of its batch."]

    def init_client(self, params: Tensors) -> State:
        return {"adaptation": zeros_like(params)}

    def measure_before(self, at: Batch, client: Client, hyper: Hyper) -> Tensors:
        g = at.gradient(client.anchor)
        return {_FULL + name: g[name] if name in g else torch.zeros_like(p) for name, p in client.anchor.items()}

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        w, alpha = carry["model"], hyper["alpha"]
        parts = 3 if self._hessian_free else 2
        adapted = _moved(w, at.gradient(w, _on_part(at, 0, parts)), -alpha)
        direction = at.gradient(adapted, _on_part(at, 1, parts))
        if self._hessian_free:
            ends = [
                at.gradient(_moved(w, direction, sign * hyper["delta"]), _on_part(at, 2, parts)) for sign in (1, -1)
            ]
            scale = alpha / (2 * hyper["delta"])
            direction = {name: g - scale * (ends[0][name] - ends[1][name]) for name, g in direction.items()}
        return {"model": at.descend("model", w, direction)}

    def end(self, carry: State, client: Client, num_steps: Any, hyper: Hyper) -> tuple[State, State]:
        sent, _ = self.finish(carry["model"], client, num_steps, hyper)
        return sent, {"adaptation": {name: hyper["alpha"] * client.facts[_FULL + name] for name in client.anchor}}

    def personal(self, params: Tensors, state: State) -> Tensors:
        return {name: w - state["adaptation"][name] for name, w in params.items()}


def _moved(params: Tensors, direction: Tensors, scale: Any) -> Tensors:
    return {name: p + scale * direction[name] if name in direction else p for name, p in params.items()}


def _on_part(at: Batch, number: int, parts: int) -> Losses:
    """Losses whose mean over the batch is the one over every `parts`-th of its samples, from this one on."""
    ones = torch.ones(len(at.x), dtype=at.x.dtype if at.x.is_floating_point() else None, device=at.x.device)
    present = ones if at.weights is None else (at.weights > 0).to(ones.dtype)
    chosen = (torch.arange(len(at.x), device=at.x.device) % parts == number).to(ones.dtype)
    chosen = torch.where(present.sum() >= parts, chosen, ones)
    # The least is of batches in which no sample counts, whose steps are not taken.
    counts = chosen / torch.clamp(at.mean(chosen), min=1e-9)
    return lambda params: at.losses(params) * counts
