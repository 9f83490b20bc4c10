"""FedRep: a shared representation under heads of the clients' own, trained one after the other.

Collins et al., Exploiting Shared Representations for Personalized Federated Learning, ICML 2021, Algorithm 1.
https://arxiv.org/abs/2102.07078

Symbols: phi the representation, which travels; h_i client i's head. In a visit tau_h steps train h_i under the phi that
has come, then the others train phi under the new h_i. The paper takes 10 epochs for h_i and 1 for phi: head_share =
10/11 of num_epochs=11.
"""

from flgo_hydra.federated.algorithm.base import Client, Hyper, State
from flgo_hydra.federated.algorithm.fedper import FedPer
from flgo_hydra.federated.algorithm.local import LocalBatch


class FedRep(FedPer):
    """FedPer in two phases: tau_h is the share `head_share` of a visit's steps, rounded down, at least one."""

    def step(self, carry: State, at: LocalBatch, client: Client, hyper: Hyper) -> State:
        w = carry["model"]
        is_heads = at.is_among_first(hyper["head_share"])
        grads = at.gradient(w)
        ends = [
            at.descend("head", w, {name: g for name, g in grads.items() if name in self.private}, is_heads),
            at.descend("body", w, {name: g for name, g in grads.items() if name not in self.private}, ~is_heads),
        ]
        return {"model": {name: ends[name not in self.private][name] for name in w}}
