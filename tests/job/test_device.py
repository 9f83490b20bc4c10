"""Devices by name, and threads by the size of a step."""

import pytest
import torch

from flgo_hydra import compose
from flgo_hydra.federated.model import build_model
from flgo_hydra.job import device
from flgo_hydra.job.device import count_threads, resolve_device


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="device=cuda:2.*torch sees 2 GPUs"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    "overrides, num_threads",
    [
        (["model=mlp", "batch_size=10"], 1),
        (["model=mlp", "batch_size=10", "num_threads=3"], 3),
        (["model=cnn", "batch_size=10"], 8),
        (["model=mlp", "batch_size=1000"], 8),
    ],
)
def test_small_steps_get_one_thread(monkeypatch, make_conf, overrides, num_threads):
    monkeypatch.setattr(device, "_allowed_threads", 8)
    conf = make_conf(*overrides)
    shape = (1, 28, 28)
    model = build_model(compose.parameters(conf.model), shape, 10, 0, torch.float32)
    assert count_threads(conf, model, shape, torch.float32) == num_threads
