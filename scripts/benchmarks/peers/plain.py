"""The loop one writes by hand: an nn.Module, autograd, torch.optim.SGD, tensors that are loaded once."""

import torch
import workload as w
from torch.nn import functional


def train_round(model, server, clients, epochs=w.EPOCHS, batch=w.BATCH):
    """A FedAvg round: returns the mean of what the clients make of the server's `state_dict`.

    Args:
        clients: (x, y) of the cohort's clients, all with as many samples.
    """
    mean = {key: torch.zeros_like(tensor) for key, tensor in server.items()}
    for x, y in clients:
        model.load_state_dict(server)
        optimizer = torch.optim.SGD(model.parameters(), lr=w.LR)
        for _ in range(epochs):
            for rows in torch.randperm(len(x), device=x.device).split(batch):
                optimizer.zero_grad()
                functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
        for key, tensor in model.state_dict().items():
            mean[key] += tensor / len(clients)
    return mean
