"""Several models evaluated at once are what each is alone."""

import pytest
import torch

from flgo_hydra.federated import evaluation
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.evaluation import evaluate_many, metrics_of
from flgo_hydra.federated.training import server_state


@pytest.mark.parametrize("chunk", [8192, 6])
def test_many_models_at_once(ragged, make_mlp, monkeypatch, chunk):
    monkeypatch.setitem(evaluation.CHUNK, "cpu", chunk)
    models = [make_mlp(seed) for seed in range(3)]
    many = evaluate_many(models[0], ragged, [server_state(model, FedAvg()) for model in models])
    for model, metrics in zip(models, many, strict=True):
        assert metrics == pytest.approx(metrics_of(model, ragged), abs=1e-14)
    assert len({metrics["test_loss"] for metrics in many}) == 3


def test_many_regressions_at_once(by_hand, make_line):
    """y = w x with w = 0 and 1: the mean squared error of (1, 1), (2, 3), (1, 2)."""
    models = [make_line(), make_line()]
    torch.nn.init.ones_(models[1].weight)
    found = evaluate_many(models[0], by_hand, [server_state(model, FedAvg()) for model in models])
    assert [one["test_loss"] for one in found] == pytest.approx([14 / 3, 2 / 3])
    assert "test_accuracy" not in found[0]
