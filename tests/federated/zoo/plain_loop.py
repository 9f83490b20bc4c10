"""Federated averaging as anybody would write it in PyTorch, to compare ours with: no backend, no step of ours in it.

McMahan et al. 2017, https://arxiv.org/abs/1602.05629, Algorithm 1: each client of a round copies the server's model,
takes local steps by `torch.optim` on the gradients of `backward()`, and sends its change. What is ours are inputs: the
initial model, the clients of each round, the order of their batches, the seed of what a model draws, and the
algorithm's hooks, called client by client with tensors of their own.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from flgo_hydra.federated.algorithm.base import Client
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.randomness import Purpose, numpy_generator, seed_all, torch_seed
from flgo_hydra.federated.training import LocalWork


@dataclass
class End:
    """What a run has come to, ours or the plain one."""

    params: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    state: dict[str, dict[str, torch.Tensor]]
    """what the algorithm keeps on the server"""
    kept: dict[int, dict[str, dict[str, torch.Tensor]]]
    """what the clients keep, by client"""
    losses: list[tuple[float, float]]
    """on the validation and test samples, from round 0 on"""
    model: nn.Module
    note: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrays:
    """A task's samples as tensors. Client k holds the training samples offsets[k] to offsets[k + 1]."""

    x: torch.Tensor
    y: torch.Tensor
    offsets: np.ndarray
    x_valid: torch.Tensor
    y_valid: torch.Tensor
    valid_weights: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor

    @property
    def is_classification(self) -> bool:
        return not self.y.is_floating_point()

    def criterion(self, outputs, targets):
        """The loss of each sample."""
        if self.is_classification:
            return functional.cross_entropy(outputs, targets, reduction="none")
        assert outputs.shape == targets.shape
        return (outputs - targets).square().mean(dim=-1)


def train(
    model: nn.Module,
    arrays: Arrays,
    algorithm: Any,
    numbers: dict[str, Any],
    conf: Any,
    num_rounds: int,
    is_one_model: bool = False,
) -> End:
    """Trains `num_rounds` rounds, and evaluates after each and before the first.

    Args:
        model: as it is before the first round; it is left so, unless `is_one_model`.
        conf: has the options by their names.
        is_one_model: all clients train in `model` itself, one after another, and so does the server evaluate: what a
            model keeps in Python goes from one to the next. Else each has a deep copy.
    """
    params = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    buffers = {name: b.detach().clone() for name, b in _buffers(model).items()}
    state = copy.deepcopy(algorithm.init_server({name: p.clone() for name, p in params.items()}))
    first = algorithm.init_client({name: p.clone() for name, p in params.items()})
    first = {key: {name: torch.zeros_like(t) for name, t in tensors.items()} for key, tensors in first.items()}
    kept = {k: copy.deepcopy(first) for k in range(len(arrays.offsets) - 1)}
    work = LocalWork(conf.batch_size, conf.num_epochs, conf.num_steps, conf.seed)
    sizes = np.diff(arrays.offsets)

    def working() -> nn.Module:
        mine = model if is_one_model else copy.deepcopy(model)
        with torch.no_grad():
            own = {**dict(mine.named_parameters()), **dict(mine.named_buffers())}
            for name, t in {**params, **buffers}.items():
                own[name].copy_(t)
        return mine

    def seed(purpose: Purpose, r: int, client: int = 0) -> None:
        seed_all(torch_seed(conf.seed, purpose, r, client))

    seed(Purpose.EVALUATION, 0)
    losses = [_evaluate(working(), arrays)]
    for r in range(1, num_rounds + 1):
        rng = numpy_generator(conf.seed, Purpose.COHORT, r)
        cohort = sample_cohort(sizes, conf.proportion, conf.sample, conf.aggregate, algorithm.weighting, rng)
        assert cohort.model_factor == 1.0
        hyper = {**numbers, "lr": conf.lr}
        orders = work.orders(arrays.offsets, cohort.clients, r)
        message: dict[str, dict[str, torch.Tensor]] = {}
        mean: dict[str, torch.Tensor] = {}
        changed: set[str] = set()
        share = cohort.weights / cohort.weights.sum()
        for k, order, weight, of_buffers in zip(cohort.clients.tolist(), orders, cohort.weights, share, strict=True):
            local = working()
            local.train()
            # Copies: a client that writes on what it was given writes on its own.
            client = Client(*copy.deepcopy((params, state, kept[k])))
            seed(Purpose.LOCAL_NOISE, r, k)
            _local_steps(local, arrays, order.batches(), algorithm, client, hyper, conf)
            with torch.no_grad():
                own = {name: p.detach() for name, p in local.named_parameters() if name in params}
                sent, keeps = algorithm.finish(own, client, len(order), hyper)
                kept[k] = {key: {n: keeps[key][n].clone() for n in tensors} for key, tensors in first.items()}
                for key, tensors in sent.items():
                    _add(message.setdefault(key, {}), tensors, weight)
                _add(mean, _buffers(local), of_buffers)
                changed |= {name for name, b in _buffers(local).items() if not torch.equal(b, buffers[name])}
        with torch.no_grad():
            seed(Purpose.SERVER, r)
            params, state = algorithm.update_server(params, state, message, cohort.participation, hyper)
            # What no client has changed, such as frozen parameters, stays as it is to the last bit.
            for name in changed:
                kind = buffers[name].dtype
                buffers[name] = mean[name] if kind.is_floating_point else mean[name].round().to(kind)
        seed(Purpose.EVALUATION, r)
        losses.append(_evaluate(working(), arrays))
    return End(params, buffers, state, kept, losses, working())


def _local_steps(model, arrays, batches, algorithm, client, hyper, conf) -> None:
    own = {name: p for name, p in model.named_parameters() if name in client.anchor}
    optimizer = make_optimizer(list(own.values()), conf)
    for rows in batches:
        x, y = arrays.x[torch.from_numpy(rows)], arrays.y[torch.from_numpy(rows)]
        optimizer.zero_grad(set_to_none=True)
        algorithm.loss(model(x), y, arrays.criterion).mean().backward()
        with torch.no_grad():
            # A hook sees every parameter; the optimizer then leaves those alone that the batch gave no gradient, or
            # that the hook leaves out.
            has_grad = {name for name, p in own.items() if p.grad is not None}
            grads = {n: torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for n, p in own.items()}
            found = algorithm.correct(grads, {n: p.detach() for n, p in own.items()}, client, hyper)
            for name, p in own.items():
                p.grad = found[name].clone() if name in has_grad and name in found else None
        if conf.clip_grad > 0:
            nn.utils.clip_grad_norm_(list(own.values()), conf.clip_grad)
        optimizer.step()


def make_optimizer(params: list[nn.Parameter], conf: Any) -> torch.optim.Optimizer:
    """torch's own, under the names of our options."""
    shared = {"lr": conf.lr, "weight_decay": conf.weight_decay}
    momentum = conf.momentum
    if conf.optimizer in ("momentum", "nesterov"):
        momentum = momentum or 0.9
    if conf.optimizer in ("sgd", "momentum", "nesterov"):
        return torch.optim.SGD(params, momentum=momentum, nesterov=conf.optimizer == "nesterov", **shared)
    if conf.optimizer == "rmsprop":
        return torch.optim.RMSprop(params, momentum=momentum, **shared)
    kinds = {"adam": "Adam", "adamw": "AdamW", "adagrad": "Adagrad", "adadelta": "Adadelta"}
    return getattr(torch.optim, kinds[conf.optimizer])(params, **shared)


@torch.no_grad()
def _evaluate(model: nn.Module, arrays: Arrays) -> tuple[float, float]:
    model.eval()
    valid = arrays.criterion(model(arrays.x_valid.clone()), arrays.y_valid).double() @ arrays.valid_weights
    test = arrays.criterion(model(arrays.x_test.clone()), arrays.y_test).double().mean()
    return float(valid), float(test)


def _add(sums: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], weight: float) -> None:
    for name, t in tensors.items():
        t = torch.as_tensor(t)
        part = (t if t.is_floating_point() else t.double()) * float(weight)
        sums[name] = sums[name] + part if name in sums else part


def _buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """All that is sent beside what is trained: running statistics and the like, and frozen parameters."""
    return {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad} | dict(model.named_buffers())
