"""pfl-research: its simulation backend on the reference workload. (It does not reshuffle between local epochs.)"""

import logging
import os
from importlib.metadata import version

os.environ.setdefault("PFL_PYTORCH_DEVICE", "cpu")
logging.disable(logging.CRITICAL)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import workload as w  # noqa: E402
from pfl.aggregate.simulate import SimulatedBackend  # noqa: E402
from pfl.aggregate.weighting import WeightByUser  # noqa: E402
from pfl.algorithm.base import NNAlgorithmParams  # noqa: E402
from pfl.algorithm.federated_averaging import FederatedAveraging  # noqa: E402
from pfl.callback.base import TrainingProcessCallback  # noqa: E402
from pfl.callback.central_evaluation import CentralEvaluationCallback  # noqa: E402
from pfl.data.dataset import Dataset  # noqa: E402
from pfl.data.federated_dataset import FederatedDataset  # noqa: E402
from pfl.data.sampling import get_user_sampler  # noqa: E402
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams  # noqa: E402
from pfl.metrics import Metrics, Weighted  # noqa: E402
from pfl.model.pytorch import PyTorchModel  # noqa: E402
from torch.nn import functional  # noqa: E402

given = w.arguments()
torch.set_num_threads(given.threads)
x_train, y_train, x_test, y_test = map(torch.from_numpy, w.arrays())
np.random.seed(1)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = w.torch_model(given.model)

    def loss(self, x, y, eval=False):
        return functional.cross_entropy(self.net(x), y)

    @torch.no_grad()
    def metrics(self, x, y, eval=False):
        outputs = self.net(x)
        loss = functional.cross_entropy(outputs, y, reduction="sum").item()
        return {"loss": Weighted(loss, len(y)), "accuracy": Weighted((outputs.argmax(1) == y).sum().item(), len(y))}


class Laps(TrainingProcessCallback):
    accuracy = float("nan")

    def on_train_begin(self, *, model):
        self.watch = w.Stopwatch()
        return Metrics()

    def after_central_iteration(self, metrics, model, *, central_iteration):
        self.watch.lap()
        for name, value in metrics.to_simple_dict().items():
            if "Central val" in str(name) and "accuracy" in str(name):
                self.accuracy = value
        return False, Metrics()


def client(k):
    rows = slice(int(k) * w.PER_CLIENT, (int(k) + 1) * w.PER_CLIENT)
    return Dataset(raw_data=(x_train[rows], y_train[rows]), user_id=str(k))


net, laps = Net(), Laps()
clients = FederatedDataset(client, get_user_sampler("minimize_reuse", list(range(w.NUM_CLIENTS))))
whole = NNEvalHyperParams(local_batch_size=None)
FederatedAveraging().run(
    algorithm_params=NNAlgorithmParams(
        central_num_iterations=given.rounds, evaluation_frequency=10**9, train_cohort_size=w.COHORT, val_cohort_size=0
    ),
    backend=SimulatedBackend(training_data=clients, val_data=clients, postprocessors=[WeightByUser()]),
    model=PyTorchModel(
        model=net, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(net.parameters(), 1.0)
    ),
    model_train_params=NNTrainHyperParams(
        local_learning_rate=w.LR, local_num_epochs=w.EPOCHS, local_batch_size=w.BATCH
    ),
    model_eval_params=whole,
    callbacks=[CentralEvaluationCallback(Dataset(raw_data=(x_test, y_test)), whole), laps],
)
laps.watch.tell(version("pfl"), laps.accuracy)
