import numpy as np
import pytest
import torch

from flgo_hydra.federated.data.on_device import valid_weights
from flgo_hydra.federated.evaluation import evaluate


@pytest.mark.parametrize(
    "train_sizes, valid_sizes, weights",
    [
        ([3, 1], [1, 1], [0.75, 0.25]),
        ([3, 1], [2, 1], [0.375, 0.375, 0.25]),
        ([5, 3, 1], [0, 1, 1], [0.75, 0.25]),  # a client without validation samples is in neither sum
    ],
)
def test_a_clients_mean_weighs_its_training_samples(train_sizes, valid_sizes, weights):
    assert valid_weights(np.array(train_sizes), np.array(valid_sizes)) == pytest.approx(weights)


def test_valid_loss_is_the_weighted_mean_of_the_clients_means(ragged, make_mlp, make_ragged_task):
    task, model = make_ragged_task(), make_mlp()
    loss, accuracy = evaluate(model, ragged, ragged.valid).tolist()
    totals = np.zeros(3)
    for k in range(task.num_clients):
        begin, end = task.valid_offsets[k], task.valid_offsets[k + 1]
        if begin == end:
            continue
        x = torch.from_numpy(task.x_valid[begin:end]).double()
        y = torch.from_numpy(task.y_valid[begin:end])
        outputs = model(x)
        n_k = task.train_sizes[k]
        mean_loss = torch.nn.functional.cross_entropy(outputs, y).item()
        totals += [n_k * mean_loss, n_k * (outputs.argmax(1) == y).double().mean().item(), n_k]
    assert loss == pytest.approx(totals[0] / totals[2], abs=1e-12)
    assert accuracy == pytest.approx(totals[1] / totals[2], abs=1e-12)


def test_evaluation_in_chunks_equals_one_batch(ragged, make_mlp, monkeypatch):
    model = make_mlp()
    whole = evaluate(model, ragged, ragged.test).tolist()
    monkeypatch.setitem(__import__("flgo_hydra.federated.evaluation", fromlist=["CHUNK"]).CHUNK, "cpu", 3)
    assert evaluate(model, ragged, ragged.test).tolist() == pytest.approx(whole, abs=1e-12)


def test_regression_has_a_squared_error_and_no_accuracy(by_hand, make_line):
    loss, accuracy = evaluate(make_line(), by_hand, by_hand.test).tolist()
    assert loss == pytest.approx((1 + 9 + 4) / 3)
    assert np.isnan(accuracy)
