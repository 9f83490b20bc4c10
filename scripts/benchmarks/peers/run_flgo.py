"""FLGo: its FedAvg on the reference workload, from a benchmark made of a file, as its users make theirs.

A round ends when its logger has evaluated it. The logger here is one of its own kind that evaluates the test images
only: FLGo's usual ones evaluate each client's validation part besides, which is most of such a round's time.
"""

import os
import sys
import tempfile
from importlib import import_module
from importlib.metadata import version

import workload as w

given = w.arguments()
sys.argv = sys.argv[:1]  # FLGo parses it too

import flgo  # noqa: E402
import flgo.algorithm.fedavg as fedavg  # noqa: E402
from flgo.benchmark.partition import BasicPartitioner  # noqa: E402
from flgo.experiment.logger import BasicLogger  # noqa: E402

CONFIG = f"""
import flgo.benchmark.toolkits.cv.classification as toolkit
import torch
import workload as w

x_train, y_train, x_test, y_test = w.arrays()

class Digits(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y, self.classes = torch.from_numpy(x), y.tolist(), list(range(10))

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return self.x[i], self.y[i]

train_data, test_data = Digits(x_train, y_train), Digits(x_test, y_test)

def get_model(*args, **kwargs):
    return w.torch_model({given.model!r})

# torch's Subset asks its subclasses for this one since 2.0; FLGo's lacks it.
toolkit.FromDatasetPipe.TaskDataset.__getitems__ = lambda self, indices: [self[i] for i in indices]
"""


class InOrder(BasicPartitioner):
    """The reference workload's clients: each the next PER_CLIENT samples."""

    num_clients = w.NUM_CLIENTS

    def __call__(self, data):
        return [list(range(k * w.PER_CLIENT, (k + 1) * w.PER_CLIENT)) for k in range(w.NUM_CLIENTS)]


class Laps(BasicLogger):
    watch = None

    def log_once(self, *args, **kwargs):
        self.output["test_accuracy"].append(self.coordinator.test()["accuracy"])
        if self.watch is None:  # before training
            self.watch = w.Stopwatch()
        else:
            self.watch.lap()


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    sys.path.append(folder)  # where FLGo puts the benchmark, a package
    with open("config.py", "w") as file:
        file.write(CONFIG)
    flgo.gen_benchmark_from_file("reference", "config.py", data_type="cv", task_type="classification")
    flgo.gen_task_by_(import_module("reference"), InOrder(), "task", seed=0)
    option = {
        **{"proportion": w.COHORT / w.NUM_CLIENTS, "batch_size": w.BATCH, "num_epochs": w.EPOCHS},
        **{"learning_rate": w.LR, "num_rounds": given.rounds, "train_holdout": 0.0, "test_batch_size": 1000},
        **{"gpu": [], "torch_num_threads": given.threads, "no_log_console": True, "no_tqdm": True},
    }
    runner = flgo.init("task", fedavg, option, Logger=Laps)
    runner.run()
    logger = runner.gv.logger
    os.chdir("/")
logger.watch.tell(version("flgo"), logger.output["test_accuracy"][-1])
