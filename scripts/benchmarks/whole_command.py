"""A whole run from the shell to the prompt: our command beside a process with a plain PyTorch loop.

The reference workload (`peers/workload.py`): mnist5k in 100 IID clients, cohort 10, batch 10, 5 local epochs, lr 0.1,
evaluated each round. The plain process is this script with `--plain`: it imports torch, loads the images, trains and
prints. Ours splits a validation part off each client and evaluates it too, and writes its records. Wall times of runs
in turn, one thread each, after one of each that is not counted.

    python scripts/benchmarks/whole_command.py [--model mlp|cnn] [--rounds 50] [--repeats 3]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import machine, versions

ROOT = Path(__file__).resolve().parents[2]
WORK = ["task=mnist5k", "task.num_clients=100", "proportion=0.1", "batch_size=10", "num_epochs=5", "lr=0.1"]
MODELS = {"mlp": ["model=mlp", "model.hidden=[200]"], "cnn": ["model=cnn"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        plain(given)
        return
    where = machine()
    ours = ["-m", "flgo_hydra", *WORK, *MODELS[given.model], f"num_rounds={given.rounds}", "num_threads=1"]
    commands = {
        "plain PyTorch loop": [__file__, "--plain", "--model", given.model, "--rounds", str(given.rounds)],
        "python -m flgo_hydra": [*ours, "task.cache_dir=cache", "hydra.run.dir=TURN"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        env["FLGO_HYDRA_WORKLOAD"] = f"{folder}/workload.npz"
        subprocess.run([sys.executable, "-c", MAKE, str(Path(__file__).parent / "peers")], env=env, check=True)
        for turn in range(given.repeats + 1):
            for name, command in commands.items():
                command = [sys.executable, *(part.replace("TURN", f"run-{turn}") for part in command)]
                begin = time.perf_counter()
                subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
                if turn > 0:
                    seconds[name].append(time.perf_counter() - begin)
    print(f"{given.model}, {given.rounds} rounds, one thread, {given.repeats} runs in turn")
    print(where)
    print(versions("torch", "hydra-core"), end="\n\n")
    print("| from the shell to the prompt | wall, s (range) | of the plain loop's |\n|---|---|---|")
    reference = statistics.median(seconds["plain PyTorch loop"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.2f} ({min(values):.2f} to {max(values):.2f}) | {median / reference:.2f} |")


MAKE = """
import os, sys
sys.path.insert(0, sys.argv[1])
import workload
workload.make_arrays(os.environ["FLGO_HYDRA_WORKLOAD"])
"""


def plain(given: argparse.Namespace) -> None:
    """What one writes by hand, in a process of its own."""
    sys.path.insert(0, str(Path(__file__).parent / "peers"))
    import torch
    import workload as w
    from plain import train_round

    torch.set_num_threads(1)
    x_train, y_train, x_test, y_test = map(torch.from_numpy, w.arrays())
    model = w.torch_model(given.model)
    server = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for _ in range(given.rounds):
        cohort = torch.randperm(w.NUM_CLIENTS)[: w.COHORT].tolist()
        own = [slice(k * w.PER_CLIENT, (k + 1) * w.PER_CLIENT) for k in cohort]
        server = train_round(model, server, [(x_train[at], y_train[at]) for at in own])
        model.load_state_dict(server)
        with torch.no_grad():
            accuracy = (model(x_test).argmax(1) == y_test).float().mean().item()
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
