"""A model's weights in a file."""

import pytest
import torch

from flgo_hydra.federated.weights import dump_weights, load_weights


def test_what_is_written_is_read_back(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    other = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model[1].running_mean.fill_(7)  # a buffer
    tensors = model.state_dict()
    tensors["0.weight"] = tensors["0.weight"].t().contiguous().t()  # as channels-last weights lie in memory
    (tmp_path / "weights.safetensors").write_bytes(dump_weights(tensors))
    load_weights(other, str(tmp_path / "weights.safetensors"))
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_weights_of_another_model_are_refused_with_what_differs(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(dump_weights({"weight": torch.zeros(2, 4), "scale": torch.zeros(1)}))
    with pytest.raises(ValueError) as error:
        load_weights(torch.nn.Linear(3, 2), str(path))
    for words in ("weight (2, 4), not (2, 3)", "bias is missing", "scale is not in the model", str(path)):
        assert words in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"no safetensors at all"])
def test_what_is_no_such_file_is_named(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="initial_weights=.* cannot be read"):
        load_weights(torch.nn.Linear(3, 2), str(path))
