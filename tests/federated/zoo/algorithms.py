"""Algorithms as users write them, each with what is odd about it, and what a run has to make of it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from flgo_hydra.federated.algorithm.base import Algorithm, zeros_like

from . import samples
from .runs import Case

EXACT = "exact"
ALL = frozenset({"recorded", "vmap", "fused"})


@dataclass(frozen=True)
class Entry:
    """An algorithm of the zoo."""

    case: Case
    why: str
    expect: str = EXACT
    forms: frozenset[str] = frozenset()


ALGORITHMS: dict[str, Entry] = {}
VARIANTS: list[dict[str, Any]] = [{}, {"momentum": 0.5, "weight_decay": 0.01}, {"clip_grad": 1.0}]


def mlp(input_shape, num_outputs):
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, num_outputs))


def zoo(
    why: str,
    numbers: dict[str, Any] | None = None,
    expect: str = EXACT,
    forms: frozenset[str] = frozenset(),
    build: Callable[..., nn.Module] = mlp,
    source: Callable[..., Any] = samples.vectors,
    before: Callable[[], None] | None = None,
    is_one_model: bool = False,
    **options: Any,
) -> Callable[[type[Algorithm]], type[Algorithm]]:
    """Puts an algorithm into the zoo."""

    def put(kind: type[Algorithm]) -> type[Algorithm]:
        name = kind.__name__
        assert name not in ALGORITHMS
        chosen = options or VARIANTS[len(ALGORITHMS) % len(VARIANTS)]
        case = Case(name, build, source, "ragged", kind, numbers or {}, chosen, is_one_model, before)
        ALGORITHMS[name] = Entry(case, why, expect, forms)
        return kind

    return put


def norm_of(tensors):
    return torch.sqrt(sum(t.square().sum() for t in tensors.values()))


# Ordinary ones.


@zoo("a proximal term", {"mu": 0.3}, forms=ALL)
class Prox(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: g + hyper["mu"] * (params[n] - client.anchor[n]) for n, g in grads.items()}


@zoo("control variates, with a whole number among the parameters of YAML", {"eta": 1}, forms=ALL, clip_grad=0.0)
class ControlVariates(Algorithm):
    weighting = "uniform"

    def init_server(self, params):
        return {"c": zeros_like(params)}

    def init_client(self, params):
        return {"c": zeros_like(params)}

    def correct(self, grads, params, client, hyper):
        return {n: g - client.state["c"][n] + client.server["c"][n] for n, g in grads.items()}

    def finish(self, params, client, num_steps, hyper):
        update = {n: params[n] - w for n, w in client.anchor.items()}
        change = {n: -client.server["c"][n] - u / (num_steps * hyper["lr"]) for n, u in update.items()}
        kept = {n: client.state["c"][n] + d for n, d in change.items()}
        return {"update": update, "c": change}, {"c": kept}

    def update_server(self, params, server, message, participation, hyper):
        x = {n: w + hyper["eta"] * message["update"][n] for n, w in params.items()}
        return x, {"c": {n: c + participation * message["c"][n] for n, c in server["c"].items()}}


@zoo("label smoothing, and a penalty on the outputs", {"penalty": 0.01})
class SmoothLoss(Algorithm):
    def loss(self, outputs, targets, criterion):
        smooth = -outputs.log_softmax(-1).mean(-1)
        return 0.9 * criterion(outputs, targets) + 0.1 * smooth + 0.01 * outputs.square().sum(-1)


@zoo("a loss without the criterion: focal")
class FocalLoss(Algorithm):
    def loss(self, outputs, targets, criterion):
        logs = outputs.log_softmax(-1)
        p = logs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return -((1 - p.exp()) ** 2) * p


@zoo("a loss of the batch in place of each sample's")
class MeanLoss(Algorithm):
    def loss(self, outputs, targets, criterion):
        return criterion(outputs, targets).mean()


@zoo("a loss that mixes the samples of a batch: the worst half counts")
class WorstHalf(Algorithm):
    def loss(self, outputs, targets, criterion):
        losses = criterion(outputs, targets)
        return losses * (losses >= losses.median())


@zoo("a loss that weighs by how often a class occurs in the batch")
class BalancedLoss(Algorithm):
    def loss(self, outputs, targets, criterion):
        counts = torch.bincount(targets, minlength=outputs.shape[-1])
        return criterion(outputs, targets) / counts[targets]


@zoo("a loss with random label noise")
class NoisyLoss(Algorithm):
    def loss(self, outputs, targets, criterion):
        keep = torch.rand(targets.shape) > 0.2
        return criterion(outputs, torch.where(keep, targets, torch.zeros_like(targets)))


@zoo("a gradient's sign", lr=0.01)
class SignSteps(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: g.sign() for n, g in grads.items()}


@zoo("directions of norm one", {"radius": 2})
class NormalisedSteps(Algorithm):
    def correct(self, grads, params, client, hyper):
        norm = norm_of(grads)
        return {n: hyper["radius"] * g / (norm + 1e-6) for n, g in grads.items()}


@zoo("sharpness: a correction with an if on a tensor")
class IfInCorrect(Algorithm):
    def correct(self, grads, params, client, hyper):
        if norm_of(grads) > 0.5:
            return {n: 0.5 * g for n, g in grads.items()}
        return grads


@zoo("a rare if: the norm read by float()")
class RareIfInCorrect(Algorithm):
    def correct(self, grads, params, client, hyper):
        scale = 0.1 if float(norm_of(grads)) > 1.5 else 1.0
        return {n: scale * g for n, g in grads.items()}


@zoo("an if on a hyper-parameter", {"mu": 0.2, "beta": 0.0})
class IfOnNumber(Algorithm):
    def correct(self, grads, params, client, hyper):
        if hyper["beta"] > 0:
            return grads
        return {n: g + hyper["mu"] * (params[n] - client.anchor[n]) for n, g in grads.items()}


@zoo("a power and max() of a hyper-parameter, in Python", {"power": 2, "floor": 0.01})
class PythonArithmetic(Algorithm):
    def correct(self, grads, params, client, hyper):
        mu = max(hyper["floor"], 0.1 ** int(hyper["power"]))
        return {n: g + mu * params[n] for n, g in grads.items()}


@zoo("noise on the gradient: local differential privacy", {"sigma": 0.01})
class NoisySteps(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: g + hyper["sigma"] * torch.randn_like(g) for n, g in grads.items()}


@zoo("gradients changed in place")
class InPlaceGrads(Algorithm):
    def correct(self, grads, params, client, hyper):
        for n, g in grads.items():
            g.add_(params[n], alpha=0.01)
        return grads


@zoo("gradients replaced in the dict that was given, in another order")
class ReplacedGrads(Algorithm):
    def correct(self, grads, params, client, hyper):
        for n in list(grads):
            grads[n] = grads.pop(n) * 0.5
        return dict(reversed(list(grads.items())))


@zoo("parameters changed in place by `correct`: decay by hand")
class InPlaceParams(Algorithm):
    def correct(self, grads, params, client, hyper):
        for p in params.values():
            p.mul_(0.999)
        return grads


@zoo("the last layer only: `correct` leaves the others out")
class SomeGrads(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: g for n, g in grads.items() if n.startswith("2.")}


@zoo("the first layer frozen by a gradient of zero", momentum=0.5)
class ZeroGrads(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: g if n.startswith("2.") else torch.zeros_like(g) for n, g in grads.items()}


@zoo("torch.where in place of if")
class WhereInCorrect(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: torch.where(g.abs() > 0.01, g, torch.zeros_like(g)) for n, g in grads.items()}


# What is sent.


@zoo("an update clipped by an if")
class IfInFinish(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        update = {n: params[n] - w for n, w in client.anchor.items()}
        norm = norm_of(update)
        if norm > 0.3:
            update = {n: u * (0.3 / norm) for n, u in update.items()}
        return {"update": update}, client.state


@zoo("random noise on what is sent", {"sigma": 0.01})
class NoisyFinish(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        return {"update": {n: u + hyper["sigma"] * torch.randn_like(u) for n, u in sent["update"].items()}}, kept


@zoo("a random mask from numpy on what is sent")
class NumpyFinish(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        import numpy as np

        sent, kept = super().finish(params, client, num_steps, hyper)
        return {"update": {n: u * float(np.random.rand() > 0.3) for n, u in sent["update"].items()}}, kept


@zoo("an update rounded to a grid")
class RoundedUpdate(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        return {"update": {n: (u * 1024).round() / 1024 for n, u in sent["update"].items()}}, kept


@zoo("the largest tenth of an update, the rest kept for the next time")
class TopK(Algorithm):
    def init_client(self, params):
        return {"rest": zeros_like(params)}

    def finish(self, params, client, num_steps, hyper):
        update, rest = {}, {}
        for n, w in client.anchor.items():
            u = params[n] - w + client.state["rest"][n]
            k = max(1, u.numel() // 10)
            least = u.abs().flatten().topk(k).values[-1]
            update[n] = torch.where(u.abs() >= least, u, torch.zeros_like(u))
            rest[n] = u - update[n]
        return {"update": update}, {"rest": rest}


@zoo("the number of steps in the message, as a whole number")
class SendsInt(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        return {**sent, "steps": {"steps": num_steps}}, kept

    def update_server(self, params, server, message, participation, hyper):
        steps = message["steps"]["steps"]
        return {n: w + message["update"][n] * 4 / steps for n, w in params.items()}, server


@zoo("normalised averaging: the number of steps divides", forms=ALL, clip_grad=0.0)
class FedNova(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        update = {n: (params[n] - w) / num_steps for n, w in client.anchor.items()}
        first = next(iter(update.values()))
        return {"update": update, "more": {"tau": torch.zeros_like(first).sum() + num_steps}}, client.state

    def update_server(self, params, server, message, participation, hyper):
        tau = message["more"]["tau"]
        return {n: w + tau * message["update"][n] for n, w in params.items()}, server


@zoo("a branch by the number of steps, in Python")
class IfOnSteps(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        scale = 0.5 if num_steps > 4 else 1.0
        return {"update": {n: scale * (params[n] - w) for n, w in client.anchor.items()}}, client.state


@zoo("several messages, of other shapes, one of integers")
class SeveralMessages(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        signs = {n: u.sign().to(torch.int64) for n, u in sent["update"].items()}
        norms = {n: u.norm() for n, u in sent["update"].items()}
        return {**sent, "signs": signs, "norms": norms}, kept

    def update_server(self, params, server, message, participation, hyper):
        def step(n):
            return message["update"][n] * message["signs"][n].abs() / (1 + message["norms"][n])

        return {n: w + step(n) for n, w in params.items()}, server


@zoo("the anchor written over, to save memory", expect="must not change what a client is given")
class WritesOnAnchor(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        update = {}
        for n, w in client.anchor.items():
            update[n] = w.neg_().add_(params[n])
        return {"update": update}, client.state


@zoo("the kept state changed in place", expect="must not change what a client is given")
class WritesOnState(Algorithm):
    def init_client(self, params):
        return {"sum": zeros_like(params)}

    def finish(self, params, client, num_steps, hyper):
        sent, _ = super().finish(params, client, num_steps, hyper)
        for n, u in sent["update"].items():
            client.state["sum"][n].mul_(0.5).add_(u)
        return {"update": {n: t.clone() for n, t in client.state["sum"].items()}}, client.state


@zoo("the server's state changed in place by a client", expect="must not change what a client is given")
class WritesOnServer(Algorithm):
    def init_server(self, params):
        return {"m": {n: torch.ones_like(p) for n, p in params.items()}}

    def correct(self, grads, params, client, hyper):
        return {n: g * client.server["m"][n].mul_(0.99) for n, g in grads.items()}


@zoo("an integer counter of visits in a client's state")
class CountsVisits(Algorithm):
    def init_client(self, params):
        return {"visits": {"n": torch.zeros((), dtype=torch.int64)}}

    def finish(self, params, client, num_steps, hyper):
        sent, _ = super().finish(params, client, num_steps, hyper)
        n = client.state["visits"]["n"] + 1
        return {"update": {key: u / n for key, u in sent["update"].items()}}, {"visits": {"n": n}}


@zoo("a client's state in half precision")
class HalfState(Algorithm):
    def init_client(self, params):
        return {"last": {n: torch.zeros_like(p, dtype=torch.float16) for n, p in params.items()}}

    def finish(self, params, client, num_steps, hyper):
        sent, _ = super().finish(params, client, num_steps, hyper)
        mixed = {n: u + 0.5 * client.state["last"][n].to(u.dtype) for n, u in sent["update"].items()}
        return {"update": mixed}, {"last": {n: u.half() for n, u in sent["update"].items()}}


@zoo("messages with other keys from client to client", expect="same entries from every client")
class OtherKeys(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        if num_steps > 4:
            sent["more"] = sent["update"]
        return sent, kept


@zoo("an update of wrong shape", expect="trainable parameters and their shapes")
class WrongShape(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        return {"update": {n: (params[n] - w).sum() for n, w in client.anchor.items()}}, client.state


@zoo("no update at all", expect="must have an entry `update`")
class NoUpdate(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        return {"delta": {n: params[n] - w for n, w in client.anchor.items()}}, client.state


@zoo("the parameters themselves are sent, as its server wants them")
class SendsParams(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        return {"update": {n: p.detach() for n, p in params.items()}}, client.state

    def update_server(self, params, server, message, participation, hyper):
        return message["update"], server


@zoo("state that `init_client` did not name", expect="entries and shapes of `init_client`")
class ForgottenState(Algorithm):
    def finish(self, params, client, num_steps, hyper):
        sent, _ = super().finish(params, client, num_steps, hyper)
        return sent, {"last": sent["update"]}


# The server.


@zoo("momentum on the server", {"beta": 0.9}, forms=ALL, clip_grad=0.0)
class ServerMomentum(Algorithm):
    def init_server(self, params):
        return {"v": zeros_like(params)}

    def update_server(self, params, server, message, participation, hyper):
        v = {n: hyper["beta"] * v + message["update"][n] for n, v in server["v"].items()}
        return {n: w + v[n] for n, w in params.items()}, {"v": v}


@zoo("Adam on the server, in place, with a count of rounds", {"eta": 0.1, "tau": 0.001})
class ServerAdam(Algorithm):
    def init_server(self, params):
        return {"m": zeros_like(params), "v": zeros_like(params), "t": {"t": torch.zeros((), dtype=torch.int64)}}

    def update_server(self, params, server, message, participation, hyper):
        server["t"]["t"] += 1
        for n, u in message["update"].items():
            server["m"][n].mul_(0.9).add_(0.1 * u)
            server["v"][n].mul_(0.99).add_(0.01 * u * u)
        step = {n: m / (server["v"][n].sqrt() + hyper["tau"]) for n, m in server["m"].items()}
        return {n: w + hyper["eta"] / server["t"]["t"] * step[n] for n, w in params.items()}, server


@zoo("an if on the server")
class IfOnServer(Algorithm):
    def update_server(self, params, server, message, participation, hyper):
        scale = 0.5 if norm_of(message["update"]) > 0.2 else 1.0
        return {n: w + scale * message["update"][n] for n, w in params.items()}, server


@zoo("noise on the server")
class NoisyServer(Algorithm):
    def update_server(self, params, server, message, participation, hyper):
        return {n: w + message["update"][n] + 0.01 * torch.randn_like(w) for n, w in params.items()}, server


@zoo("the model changed in place by the server")
class InPlaceServer(Algorithm):
    def update_server(self, params, server, message, participation, hyper):
        for n, w in params.items():
            w += 0.9 * message["update"][n]
        return params, server


@zoo("a random start of the server's state")
class RandomStart(Algorithm):
    def init_server(self, params):
        return {"direction": {n: torch.randn_like(p) for n, p in params.items()}}

    def update_server(self, params, server, message, participation, hyper):
        d = server["direction"]
        return {n: w + message["update"][n] + 0.01 * participation * d[n] for n, w in params.items()}, server


# Python's own, and names.


@zoo("rounds counted in self, and used")
class CountsRounds(Algorithm):
    rounds = 0

    def update_server(self, params, server, message, participation, hyper):
        self.rounds += 1
        return {n: w + message["update"][n] / self.rounds for n, w in params.items()}, server


@zoo("steps counted in self, and used")
class CountsSteps(Algorithm):
    steps = 0

    def correct(self, grads, params, client, hyper):
        self.steps += 1
        return {n: g / (1 + 0.01 * self.steps) for n, g in grads.items()}


@zoo("tensors kept in self from client to client")
class KeepsTensors(Algorithm):
    last = None

    def finish(self, params, client, num_steps, hyper):
        sent, kept = super().finish(params, client, num_steps, hyper)
        update, last = sent["update"], self.last
        self.last = {n: u.clone() for n, u in update.items()}
        return {"update": update if last is None else {n: 0.5 * (u + last[n]) for n, u in update.items()}}, kept


@zoo("a number of its own named as an option: momentum", {"momentum": 0.7}, clip_grad=0.0)
class OwnMomentum(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: g * hyper["momentum"] for n, g in grads.items()}


@zoo("a number of its own named lr", {"lr": 0.7}, expect="algorithm.lr", clip_grad=0.0)
class OwnLr(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: g * hyper["lr"] for n, g in grads.items()}


@zoo("numbers named weight_decay and clip_grad", {"weight_decay": 0.7, "clip_grad": 2}, momentum=0.5)
class OwnDecay(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: g * hyper["weight_decay"] / hyper["clip_grad"] for n, g in grads.items()}


@zoo("the constructor takes a text, a list and a truth", {"kind": "half", "layers": ["2.weight"], "is_on": True})
class Constructed(Algorithm):
    def __init__(self, kind, layers, is_on):
        self.kind, self.layers, self.is_on = kind, list(layers), is_on

    def correct(self, grads, params, client, hyper):
        scale = 0.5 if self.kind == "half" and self.is_on else 1.0
        return {n: scale * g if n in self.layers else g for n, g in grads.items()}


@zoo("the learning rate in every hook", {"mu": 1})
class UsesLr(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: g + hyper["mu"] * hyper["lr"] * params[n] for n, g in grads.items()}

    def finish(self, params, client, num_steps, hyper):
        update = {n: (params[n] - w) / hyper["lr"] for n, w in client.anchor.items()}
        return {"update": update}, client.state

    def update_server(self, params, server, message, participation, hyper):
        return {n: w + hyper["lr"] * message["update"][n] for n, w in params.items()}, server


@zoo("a table by the learning rate")
class LooksUp(Algorithm):
    def correct(self, grads, params, client, hyper):
        scale = {0.1: 0.5, 0.05: 0.25, 0.03: 0.75}.get(hyper["lr"], 1.0)
        return {n: scale * g for n, g in grads.items()}


@zoo("rounds counted by an iterator")
class Schedules(Algorithm):
    def __init__(self):
        self.scales = iter([1.0] + [0.3] * 10_000)

    def update_server(self, params, server, message, participation, hyper):
        scale = next(self.scales)
        return {n: w + scale * message["update"][n] for n, w in params.items()}, server


@zoo("a whole number that counts a loop, and one that is looked up", {"times": 2, "kind": 1}, clip_grad=0.0)
class WholeNumbers(Algorithm):
    def correct(self, grads, params, client, hyper):
        scale = {0: 1.0, 1: 0.5}[hyper["kind"]]
        for _ in range(hyper["times"]):
            grads = {n: scale * g for n, g in grads.items()}
        return grads


@zoo("the learning rate as a text")
class ReadsText(Algorithm):
    def correct(self, grads, params, client, hyper):
        scale = {"0.1": 0.5, "0.05": 0.25, "0.03": 0.75}.get(str(hyper["lr"]), 1.0)
        return {n: scale * g for n, g in grads.items()}


@zoo("the learning rate in JSON")
class WritesJson(Algorithm):
    def correct(self, grads, params, client, hyper):
        text = json.dumps(hyper["lr"], default=str)
        scale = {"0.1": 0.5, "0.05": 0.25, "0.03": 0.75}.get(text, 1.0)
        return {n: scale * g for n, g in grads.items()}


@zoo("the learning rate compared by numpy")
class AsksNumpy(Algorithm):
    def correct(self, grads, params, client, hyper):
        scale = 0.5 if np.isclose(hyper["lr"], 0.1) else 0.25
        return {n: scale * g for n, g in grads.items()}


@zoo("the learning rate's double as a key")
class DerivedKey(Algorithm):
    def correct(self, grads, params, client, hyper):
        scale = {0.2: 0.1, 0.06: 0.5, 0.1: 0.3}.get(2 * hyper["lr"], 1.0)
        return {n: scale * g for n, g in grads.items()}


@zoo("a learning rate that is compared, where it is a number of Python's")
class Compares(Algorithm):
    def correct(self, grads, params, client, hyper):
        lr = hyper["lr"]
        scale = 0.25 if isinstance(lr, float) and lr > 0.02 else 1.0
        return {n: scale * g for n, g in grads.items()}


def _is_large(number):
    return type(number) is float and number > 0.02


@zoo("the same, elsewhere, by its type")
class ComparesType(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: (0.25 if _is_large(hyper["lr"]) else 1.0) * g for n, g in grads.items()}


@zoo("a learning rate that is rounded down, where it has a method for that")
class RoundsDown(Algorithm):
    def correct(self, grads, params, client, hyper):
        try:
            scale = 1.0 + hyper["lr"].as_integer_ratio()[0] % 2
        except AttributeError:
            scale = 1.0
        return {n: 0.1 * scale * g for n, g in grads.items()}


@zoo("a flag that the server sets when updates are large", clip_grad=0.0)
class LateAtServer(Algorithm):
    is_late = False

    def correct(self, grads, params, client, hyper):
        return {n: (0.25 if self.is_late else 1.0) * g for n, g in grads.items()}

    def update_server(self, params, server, message, participation, hyper):
        if float(norm_of(message["update"])) > 0.1:
            self.is_late = True
        return super().update_server(params, server, message, participation, hyper)


_LATE = []


@zoo("the same in a global", clip_grad=0.0, before=lambda: _LATE.clear())
class LateGlobal(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: (0.25 if _LATE else 1.0) * g for n, g in grads.items()}

    def update_server(self, params, server, message, participation, hyper):
        if float(norm_of(message["update"])) > 0.1:
            _LATE.append(1)
        return super().update_server(params, server, message, participation, hyper)


class Shrinks(nn.Module):
    """A flag that an evaluation sets when the loss has become other than at first."""

    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.layers = mlp(input_shape, num_outputs)
        self.is_late = False
        self.first = float(self.layers[0].weight.detach().abs().sum())

    def forward(self, x):
        if not self.training and float(self.layers[0].weight.detach().abs().sum()) > self.first + 0.05:
            self.is_late = True
        return self.layers(x) * (0.25 if self.is_late else 1.0)


@zoo("a flag that an evaluation sets", build=Shrinks, is_one_model=True, clip_grad=0.0)
class LateInEvaluation(Algorithm):
    pass


@zoo("a mask that is drawn when the server is made")
class DrawsMask(Algorithm):
    def init_server(self, params):
        self.mask = {n: torch.rand_like(p) > 0.5 for n, p in params.items()}
        return {}

    def correct(self, grads, params, client, hyper):
        return {n: g * self.mask[n] for n, g in grads.items()}


@zoo("gradients that are changed in place, and not returned", expect="`correct` of ReturnsNothing must return")
class ReturnsNothing(Algorithm):
    def correct(self, grads, params, client, hyper):
        for g in grads.values():
            g.mul_(0.5)


@zoo("a direction of another shape", expect="`correct` of OtherShape must return")
class OtherShape(Algorithm):
    def correct(self, grads, params, client, hyper):
        return {n: g.flatten() for n, g in grads.items()}
