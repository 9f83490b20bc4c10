"""How good `engine.backend=auto` chooses: the cost model's choice beside the times of both backends.

    python scripts/benchmarks/choice.py            # the whole table, some minutes on one core
    python scripts/benchmarks/choice.py --quick    # a part of it
    python scripts/benchmarks/choice.py --random 150   # as many cases that no constant was fitted to
    python scripts/benchmarks/choice.py --fit      # and constants for `flgo_hydra/federated/backend/cost.py`

A case is a model, how many samples its clients have and how differently, a cohort, a batch size and local epochs. Both
backends train the same few rounds of it, in turn, on one thread; a round counts with the least processor time of its
repeats, which what else the machine does hardly touches. Printed are milliseconds a round as measured and as modelled,
the choice, and what it takes beside the better backend. Below: the share of cases in which that is at most 1.1, and
the worst. Exits with 1 where that share is under 90 %, or the worst over 1.5.
"""

import argparse
import dataclasses
import json
import math
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from machine import machine, versions
from torch import nn

from flgo_hydra.config.option import EngineConf
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend import cost
from flgo_hydra.federated.backend.choice import ChosenBackend, build_backend
from flgo_hydra.federated.backend.expected import expected_sizes
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import Cohort, sample_cohort
from flgo_hydra.federated.data.on_device import Data, HeldOut
from flgo_hydra.federated.model import arrange_for_cpu, cnn, logistic, mlp, resnet
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

NUM_CLIENTS, NUM_CLASSES = 60, 10
NUM_FITTED = 150
"""random cases that constants are fitted to, beside the table's"""
CLIENTS = 20
"""trained in a case's rounds, at least: what one small cohort takes is luck"""
SPREADS = {"even": 0.0, "by one": 0.0, "uneven": 0.5, "wild": 1.0}
"""sigma of log-normal sizes"""
NEAR_BEST, WORST, WANTED = 1.1, 1.5, 0.9


def normed(shape: tuple[int, ...], num_classes: int) -> nn.Module:
    wide = math.prod(shape)
    parts = [nn.Flatten(), nn.Linear(wide, 64), nn.BatchNorm1d(64), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, num_classes))


MODELS: dict[str, tuple[tuple[int, ...], Callable[[tuple[int, ...], int], nn.Module]]] = {
    "logistic": ((1, 28, 28), logistic),
    "mlp small": ((1, 8, 8), lambda shape, k: mlp(shape, k, [32])),
    "mlp digits": ((1, 8, 8), lambda shape, k: mlp(shape, k, [200])),
    "mlp 200": ((1, 28, 28), lambda shape, k: mlp(shape, k, [200])),
    "mlp wide": ((1, 28, 28), lambda shape, k: mlp(shape, k, [1000])),
    "mlp deep": ((60,), lambda shape, k: mlp(shape, k, [128] * 5)),
    "mlp normed": ((1, 28, 28), normed),
    "cnn small": ((1, 8, 8), lambda shape, k: cnn(shape, k, [8, 16], 32)),
    "cnn": ((1, 28, 28), lambda shape, k: cnn(shape, k, [32, 64], 512)),
    "resnet small": ((1, 8, 8), lambda shape, k: resnet(shape, k, [8, 16], 1, 4)),
    "resnet": ((3, 32, 32), lambda shape, k: resnet(shape, k, [16, 32, 64], 1, 8)),
}
LARGE = ("mlp wide", "cnn", "resnet")


@dataclasses.dataclass(frozen=True)
class Case:
    model: str
    samples: int = 40
    """of a client, on average"""
    spread: str = "even"
    cohort: int = 10
    batch: int = 10
    epochs: int = 3
    compiles: bool = True

    def __str__(self) -> str:
        whole = "all" if self.batch == -1 else str(self.batch)
        numbers = f"{self.cohort:>7}{self.samples:>8} {self.spread:7}{whole:>6}{self.epochs:>7}"
        return f"{self.model:13}{numbers}{'' if self.compiles else ' plain':6}"


def cases(is_quick: bool) -> list[Case]:
    found = []
    for model in MODELS:
        if model in LARGE:
            base = Case(model, samples=20, cohort=4, epochs=1)
            others = [
                {"cohort": 2},
                {"cohort": 10},
                {"spread": "wild"},
                {"batch": 4},
                {"batch": 20},
                {"epochs": 4, "samples": 8},
            ]
        else:
            base = Case(model)
            others = [
                *({"cohort": 2}, {"cohort": 30}, {"batch": 4}, {"batch": 40, "samples": 80}, {"epochs": 1}),
                *({"spread": "by one"}, {"spread": "by one", "samples": 64, "batch": 64, "cohort": 4, "epochs": 5}),
                *({"spread": "uneven"}, {"spread": "wild"}, {"batch": -1}, {"batch": -1, "spread": "wild"}),
                *({"samples": 43}, {"samples": 300, "batch": 64, "epochs": 1}),
                {"samples": 300, "batch": 32, "epochs": 1, "spread": "wild"},
                *({"compiles": False}, {"compiles": False, "batch": 40, "spread": "uneven"}),
            ]
        few = others[:: 3 if model in LARGE else 4] if is_quick else others
        found += [base, *(dataclasses.replace(base, **one) for one in few)]
    return found


def random_cases(num: int, seed: int) -> list[Case]:
    """Cases drawn from a wider range than the table's."""
    rng = random.Random(seed)
    found = []
    for _ in range(num):
        model = rng.choice(list(MODELS))
        is_large = model in LARGE
        found.append(
            Case(
                model,
                samples=rng.choice((8, 12, 20)) if is_large else rng.choice((10, 25, 40, 64, 100, 200)),
                spread=rng.choice(list(SPREADS)),
                cohort=rng.choice((2, 4, 8)) if is_large else rng.choice((2, 3, 5, 10, 20, 40)),
                batch=rng.choice((4, 8, 16)) if is_large else rng.choice((4, 8, 16, 32, 64, -1)),
                epochs=rng.choice((1, 2)) if is_large else rng.choice((1, 2, 5)),
                compiles=rng.random() < 0.9,
            )
        )
    return found


def data_of(case: Case) -> Data:
    rng = np.random.default_rng(len(str(case)) + case.samples)
    shares = np.exp(SPREADS[case.spread] * rng.standard_normal(NUM_CLIENTS))
    # Batch normalisation refuses a single sample.
    sizes = np.maximum(2, np.rint(case.samples * shares / shares.mean())).astype(int)
    if case.spread == "by one":
        sizes += np.arange(NUM_CLIENTS) % 2
    if case.model == "mlp normed":
        sizes += (sizes % max(case.batch, 1) == 1).astype(int)
    shape = MODELS[case.model][0]
    x = torch.from_numpy(rng.random((int(sizes.sum()), *shape)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, NUM_CLASSES, len(x)))
    held = HeldOut(x[:8], y[:8], torch.full((8,), 1 / 8, dtype=torch.float64))
    return Data(x, y, np.cumsum([0, *sizes]).tolist(), held, held, is_classification=True)


@dataclasses.dataclass
class Found:
    case: Case
    seconds: dict[str, float]
    """of a round, by backend"""
    setup_s: dict[str, float]
    """what came once"""
    amounts: dict[str, cost.Amounts]
    setup: dict[str, cost.Amounts]
    choice: str
    cohort: list[int]
    """samples of the clients that the model saw"""

    def modelled(self, name: str, constants: dict[str, float]) -> float:
        return cost.seconds_of(self.amounts[name], constants)

    @property
    def ratio(self) -> float:
        return self.seconds[self.choice] / min(self.seconds.values())


def measure(case: Case, repeats: int) -> Found | None:
    data = data_of(case)
    rounds = max(2, -(-CLIENTS // case.cohort))
    sizes = np.diff(data.offsets)
    cohorts = []
    for number in range(rounds):
        rng = np.random.default_rng([7, number])
        cohorts.append(sample_cohort(sizes, case.cohort / NUM_CLIENTS, "uniform", "other", "samples", rng))

    chosen = build(case, data, "auto")
    backends = {name: build(case, data, name) for name in ("loop", "vmap")}
    train = {name: trainer(backend, sizes) for name, backend in backends.items()}
    times = [
        least_in_turn({name: partial(call, cohort, n) for name, call in train.items()}, repeats)
        for n, cohort in enumerate(cohorts)
    ]
    seconds = {name: sum(time[name][1] for time in times) for name in backends}
    setup = {name: sum(time[name][0] - time[name][1] for time in times) for name in backends}
    for name, backend in backends.items():
        if backend.note["backend"] != name:
            print(f"{case} left out: {backend.note}", flush=True)
            return None
    per_round = {name: value / rounds for name, value in seconds.items()}
    expected = expected_sizes(sizes, case.cohort)
    return Found(case, per_round, setup, chosen.amounts, chosen.setup, chosen.choice, expected)


def build(case: Case, data: Data, name: str) -> ChosenBackend:
    torch.manual_seed(0)
    shape, make = MODELS[case.model]
    model = make(shape, NUM_CLASSES)
    arrange_for_cpu(model)
    step = LocalStep(FedAvg(), build_optimizer("sgd"))
    work = LocalWork(case.batch, case.epochs, None, seed=0)
    engine = EngineConf(name, "auto" if case.compiles else "off")
    return build_backend(engine, model, data, step, work, case.cohort, math.inf)


def trainer(backend: ChosenBackend, sizes: np.ndarray) -> Callable[[Cohort, int], None]:
    model = backend.loop.model
    server = server_state(model, FedAvg())
    clients = ClientStates({}, len(sizes))

    def train(cohort: Cohort, number: int) -> None:
        backend.train(server, clients, cohort, {"lr": 0.05}, number + 1)

    return train


def least_in_turn(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, tuple[float, float]]:
    """Seconds of each one's first call, which prepares what is new in it, and the least of the others.

    In turn: a machine whose neighbours come and go is slow for seconds, and shall be so for all.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + repeats):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            times[name].append(time.process_time() - begin)
    return {name: (own[0], min(own[1:])) for name, own in times.items()}


def fit(found: list[Found], before: dict[str, float]) -> dict[str, float]:
    """Constants, none negative, with the least relative errors over all times.

    By coordinate descent: the number of constants is small.
    """
    rows = [(one.amounts[name], seconds) for one in found for name, seconds in one.seconds.items()]
    names = sorted({name for amounts, _ in rows for name in amounts})
    a = np.array([[amounts.get(name, 0.0) / seconds for name in names] for amounts, seconds in rows])
    scale = np.maximum(np.linalg.norm(a, axis=0), 1e-300)
    a = a / scale
    x = np.array([before.get(name, 0.0) for name in names]) * scale
    weights = np.ones(len(rows))
    for _ in range(20):  # a few outliers shall not decide: least absolute errors, by reweighting
        w = a * weights[:, None]
        gram, target = w.T @ a, w.T @ np.ones(len(rows))
        for _ in range(3000):
            for i in range(len(names)):
                x[i] = max(0.0, x[i] + (target[i] - gram[i] @ x) / max(gram[i, i], 1e-12))
        weights = 1.0 / np.maximum(np.abs(a @ x - 1.0), 0.03)
    after = dict(zip(names, x / scale, strict=True))
    for name in ("loop", "vmap"):
        kind = f"{name}_record"
        each = [one.setup_s[name] / one.setup[name][kind] for one in found if one.setup[name].get(kind)]
        after[kind] = float(np.median(each))
    return before | {name: float(f"{value:.3g}") for name, value in after.items()}


def report(found: list[Found], constants: dict[str, float]) -> tuple[float, float]:
    head = f"{'model':13}{'cohort':>7}{'samples':>8} {'sizes':7}{'batch':>6}{'epochs':>7}{'':6}"
    print(f"{head}{'loop ms':>9}{'model':>8}{'vmap ms':>9}{'model':>8}  {'choice':6}{'of best':>8}")
    for one in found:
        numbers = [1e3 * v for n in ("loop", "vmap") for v in (one.seconds[n], one.modelled(n, constants))]
        times = "".join(f"{value:>{width}.2f}" for value, width in zip(numbers, (9, 8, 9, 8), strict=True))
        mark = "" if one.ratio <= NEAR_BEST else " *" if one.ratio <= WORST else " **"
        print(f"{one.case}{times}  {one.choice:6}{one.ratio:>8.2f}{mark}")
    share = sum(one.ratio <= NEAR_BEST for one in found) / len(found)
    worst = max(one.ratio for one in found)
    print(f"{len(found)} cases: {100 * share:.0f} % within {NEAR_BEST} of the better backend, the worst {worst:.2f}")
    return share, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--random", type=int, metavar="N", help="so many random cases in place of the table's")
    parser.add_argument("--seed", type=int, default=1, help="of the random cases")
    parser.add_argument("--fit", action="store_true", help="to the table's cases and random ones of seed 0")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", type=Path, help="keep what was measured, to fit it together with others")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}\n{versions('torch', 'numpy')}", flush=True)
    constants = dict(cost.SECONDS["cpu"][0])
    found = []
    chosen = random_cases(given.random, given.seed) if given.random else cases(given.quick)
    for case in chosen + random_cases(NUM_FITTED, 0) if given.fit else chosen:
        if case.model in given.models:
            one = measure(case, given.repeats)
            found += [one] if one is not None else []
            if given.save:
                given.save.write_text(json.dumps([dataclasses.asdict(one) for one in found]))
    if given.fit:
        constants = fit(found, constants)
        for one in found:
            times = {name: one.modelled(name, constants) for name in one.seconds}
            one.choice = cost.faster([times], one.cohort)
    share, worst = report(found, constants)
    if given.fit:
        print(json.dumps(constants, indent=4))
    sys.exit(0 if share >= WANTED and worst <= WORST else 1)


if __name__ == "__main__":
    main()
