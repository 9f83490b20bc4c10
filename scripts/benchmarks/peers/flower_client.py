"""Flower's client of the reference workload: a module of its own, which each Ray actor imports once."""

import functools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import torch  # noqa: E402
import workload as w  # noqa: E402
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from torch.nn import functional  # noqa: E402

app = ClientApp()


@functools.cache
def setup():
    torch.set_num_threads(int(os.environ["FLGO_HYDRA_THREADS"]))
    x, y = map(torch.from_numpy, w.arrays()[:2])
    return x, y, w.torch_model(os.environ["FLGO_HYDRA_MODEL"])


@app.train()
def train(message: Message, context: Context):
    x, y, net = setup()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    k = int(context.node_config["partition-id"])
    x, y = (part[k * w.PER_CLIENT : (k + 1) * w.PER_CLIENT] for part in (x, y))
    optimizer = torch.optim.SGD(net.parameters(), lr=w.LR)
    for _ in range(w.EPOCHS):
        for rows in torch.randperm(w.PER_CLIENT).split(w.BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    metrics = MetricRecord({"num-examples": w.PER_CLIENT})
    return Message(content=RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)
