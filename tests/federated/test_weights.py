"""A model's weights in a file."""

import os

import pytest
import torch

from flgo_hydra.federated.weights import by_state_dict, dump_weights, load_weights, names_of


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


class Tied(torch.nn.Module):
    """A tied weight, a layer under two names, a frozen parameter, and buffers of both kinds."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.out.weight = self.embed.weight
        self.again = torch.nn.Sequential(self.embed, torch.nn.BatchNorm1d(3))
        self.frozen = torch.nn.Parameter(torch.rand(2), requires_grad=False)
        self.register_buffer("kept", torch.rand(2))
        self.register_buffer("scratch", torch.rand(2), persistent=False)


def as_the_server_has_it(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def test_a_file_has_the_names_of_the_state_dict(tmp_path):
    from safetensors.torch import load_file

    model, strict, other = Tied(), Tied(), Tied()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(dump_weights(by_state_dict(as_the_server_has_it(model), names_of(model))))
    strict.load_state_dict(load_file(path), strict=True)
    load_weights(other, str(path))
    expected = model.state_dict()
    assert load_file(path).keys() == expected.keys() and "again.0.bias" in expected and "scratch" not in expected
    for one in (strict, other):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in one.state_dict().items())
        assert one.out.weight is one.embed.weight and one.again[0] is one.embed


def test_files_that_were_written_by_other_names_are_read_still(tmp_path):
    model, other = Tied(), Tied()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(dump_weights(as_the_server_has_it(model)))
    load_weights(other, str(path))
    now = as_the_server_has_it(other)
    assert all(torch.equal(tensor, now[name]) for name, tensor in as_the_server_has_it(model).items())


def test_one_parameter_has_one_value(tmp_path):
    model = Tied()
    tensors = {**model.state_dict(), "out.weight": torch.zeros(3, 3)}
    (tmp_path / "weights.safetensors").write_bytes(dump_weights(tensors))
    with pytest.raises(ValueError, match="out.weight and embed.weight are one parameter"):
        load_weights(model, str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path.name),
        lambda path: (path.touch(), os.truncate(path, 2**40)),
        lambda path: path.write_bytes((2**62).to_bytes(8, "little") + b"{}"),
    ],
)
def test_what_is_in_a_files_place_is_named_without_a_wait(tmp_path, make):
    make(tmp_path / "w")
    with pytest.raises(ValueError, match="initial_weights=.* cannot be read"):
        load_weights(torch.nn.Linear(3, 2), str(tmp_path / "w"))
