"""Time of a FedAvg round: our backends beside a plain PyTorch loop, and other simulators where they are installed.

The workload (`peers/workload.py`): mnist5k in 100 IID clients of 40, cohort 10, batch 10, 5 local epochs, lr 0.1; after
each round the model is evaluated on 1,000 test images.

    python scripts/benchmarks/round_time.py [--model mlp|cnn] [--threads 1] [--rounds 30] [--repeats 3] [--peers FOLDER]

The plain loop and ours take their rounds in turn in one process; a peer (pfl-research, Flower, FedJAX, FLGo) runs in
its own environment, which `peers/make_venvs.sh FOLDER` makes, between two such blocks. A ratio compares with the plain
loop of the same repeat, so that a machine whose speed drifts is the same for both; the table gives medians over the
repeats.

The plain loop is what one writes by hand: an nn.Module, autograd, torch.optim.SGD, tensors that are loaded once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import workload as w
from machine import machine, versions
from plain import train_round

from flgo_hydra.config.option import EngineConf
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.backend import choice
from flgo_hydra.federated.backend.choice import build_backend
from flgo_hydra.federated.clients.client_state import ClientStates
from flgo_hydra.federated.cohort import sample_cohort
from flgo_hydra.federated.data.on_device import Data, HeldOut
from flgo_hydra.federated.evaluation import evaluate
from flgo_hydra.federated.model import arrange_for_cpu
from flgo_hydra.federated.optimizer import build_optimizer
from flgo_hydra.federated.randomness import Purpose, numpy_generator
from flgo_hydra.federated.training import LocalStep, LocalWork, server_state

PEERS = ("pfl", "flower", "fedjax", "flgo")
ENGINES = {
    "loop, uncompiled": EngineConf("loop", "off"),
    "loop": EngineConf("loop"),
    "vmap": EngineConf("vmap"),
    "auto": EngineConf("auto"),
}
ONE_LANE = "vmap, one client at a time, no dual form"
"""What the loop would be as lanes with H = 1."""
Round = Callable[[int], float]


def reference_data() -> Data:
    x_train, y_train, x_test, y_test = map(torch.from_numpy, w.arrays())
    test = HeldOut(x_test, y_test, torch.full((len(y_test),), 1 / len(y_test), dtype=torch.float64))
    offsets = list(range(0, len(y_train) + 1, w.PER_CLIENT))
    return Data(x_train, y_train, offsets, test, test, is_classification=True)


def our_round(name: str, engine: EngineConf, data: Data, rounds: int) -> Round:
    """Our round, as `rounds.rounds` has it done; returns the test accuracy."""
    model = w.torch_model(name)
    arrange_for_cpu(model)
    algorithm = FedAvg()
    step, work = LocalStep(algorithm, build_optimizer("sgd")), LocalWork(w.BATCH, w.EPOCHS, None, seed=0)
    visits = rounds * w.COHORT / w.NUM_CLIENTS
    backend = build_backend(engine, model, data, step, work, w.COHORT, visits)
    server = server_state(model, algorithm)
    clients = ClientStates(algorithm.init_client(server.params), w.NUM_CLIENTS)
    sizes = np.diff(data.offsets)

    def run(round_num: int) -> float:
        nonlocal server
        rng = numpy_generator(0, Purpose.COHORT, round_num)
        cohort = sample_cohort(sizes, w.COHORT / w.NUM_CLIENTS, "uniform", "other", "samples", rng)
        server = backend.train(server, clients, cohort, {"lr": w.LR}, round_num)
        _, accuracy = evaluate(backend.load(server), data, data.test).tolist()
        return accuracy

    return run


def plain_round(name: str, data: Data) -> Round:
    """The loop one writes by hand; returns the test accuracy."""
    model = w.torch_model(name)
    server = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    rng = np.random.default_rng(0)

    def held_out(x: Tensor, y: Tensor) -> tuple[float, float]:
        outputs = model(x)
        return functional.cross_entropy(outputs, y).item(), (outputs.argmax(1) == y).float().mean().item()

    def run(round_num: int) -> float:
        nonlocal server
        cohort = rng.choice(w.NUM_CLIENTS, w.COHORT, replace=False).tolist()
        server = train_round(model, server, [data.client(k) for k in cohort])
        model.load_state_dict(server)
        with torch.no_grad():
            return held_out(data.test.x, data.test.y)[1]

    return run


def block(
    name: str, data: Data, rounds: int, engines: dict[str, EngineConf], has_one_lane: bool = False
) -> dict[str, tuple[float, float]]:
    """Median seconds of a round and the last accuracy of the plain loop and of ours, rounds taken in turn."""
    variants: dict[str, Round] = {"plain PyTorch loop": plain_round(name, data)}
    variants |= {f"flgo_hydra {key}": our_round(name, engine, data, rounds) for key, engine in engines.items()}
    if has_one_lane:
        with mock.patch.object(choice, "count_lanes", lambda *_: 1):
            variants[f"flgo_hydra {ONE_LANE}"] = our_round(name, EngineConf("vmap", dual="off"), data, rounds)
    seconds: dict[str, list[float]] = {key: [] for key in variants}
    accuracy: dict[str, float] = {}
    for round_num in range(1, rounds + 1):
        for key, run in variants.items():
            begin = time.perf_counter()
            accuracy[key] = run(round_num)
            seconds[key].append(time.perf_counter() - begin)
    warm_up = min(5, rounds // 3)
    return {key: (statistics.median(seconds[key][warm_up:]), accuracy[key]) for key in variants}


def peer(name: str, folder: Path, given: argparse.Namespace) -> dict[str, object] | str:
    """What the peer told of itself, or why it did not run."""
    python = folder / name / "bin" / "python"
    if not python.exists():
        return "not installed"
    script = Path(__file__).parent / "peers" / f"run_{name}.py"
    command = [str(python), str(script), "--model", given.model, "--rounds", str(given.rounds)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    done = subprocess.run(
        [*command, "--threads", str(given.threads)], capture_output=True, text=True, env=environment, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        return (done.stderr.strip().splitlines() or ["it told nothing"])[-1][:100]
    found: dict[str, object] = json.loads(lines[-1].removeprefix("RESULT "))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--one-lane", action="store_true", help=f"also: {ONE_LANE}")
    parser.add_argument("--peers", type=Path, help="folder with an environment for each peer")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    where = machine()
    rows: dict[str, list[tuple[float, float, float]]] = {}
    missing = {} if given.peers else dict.fromkeys(PEERS, "no --peers given")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLGO_HYDRA_WORKLOAD"] = f"{folder}/mnist5k.npz"
        w.make_arrays(os.environ["FLGO_HYDRA_WORKLOAD"])
        data = reference_data()
        for _ in range(given.repeats):
            found = block(given.model, data, given.rounds, {key: ENGINES[key] for key in given.engines}, given.one_lane)
            plain = found["plain PyTorch loop"][0]
            for key, (seconds, accuracy) in found.items():
                rows.setdefault(key, []).append((seconds, seconds / plain, accuracy))
            for name in PEERS if given.peers else ():
                told = peer(name, given.peers, given)
                if isinstance(told, str):
                    missing[name] = told
                    continue
                seconds, accuracy = float(told["seconds"]), float(told["accuracy"])  # type: ignore[arg-type]
                rows.setdefault(f"{name} {told['version']}", []).append((seconds, seconds / plain, accuracy))
    print(f"{given.model}, {given.threads} thread(s), {given.repeats} repeats of {given.rounds} rounds")
    print(f"{where}\n{versions('torch', 'numpy')}")
    print(f"{'':28}{'ms/round':>10}{'of plain':>10}{'from':>7}{'to':>6}{'accuracy':>10}")
    for key, values in rows.items():
        seconds, ratio, accuracy = (statistics.median(column) for column in zip(*values, strict=True))
        ratios = [value[1] for value in values]
        spread = f"{min(ratios):>7.2f}{max(ratios):>6.2f}"
        print(f"{key:28}{seconds * 1e3:>10.1f}{ratio:>10.2f}{spread}{accuracy:>10.3f}")
    for name, why in missing.items():
        print(f"{name}: {why}")


if __name__ == "__main__":
    main()
