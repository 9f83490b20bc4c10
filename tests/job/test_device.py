"""Devices by name, and threads by the config."""

import pytest
import torch

from flgo_hydra.job.device import count_threads, resolve_device
from flgo_hydra.launch.reporter import THREADS


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="device=cuda:2.*torch sees 2 GPUs"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize(
    "overrides, environment, expected",
    [([], {}, 1), ([], {"OMP_NUM_THREADS": "8"}, 1), ([], {THREADS: "4"}, 4), (["num_threads=3"], {THREADS: "4"}, 3)],
)
def test_threads_follow_from_the_config(monkeypatch, make_conf, model, overrides, environment, expected):
    """Whatever the machine has: torch would take its cores."""
    monkeypatch.delenv(THREADS, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert count_threads(make_conf(f"model={model}", *overrides)) == expected
