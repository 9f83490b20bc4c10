"""Models of torch's own layers are known as such; whatever of somebody else's computes in them is seen."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from flgo_hydra.federated.backend.only_torch import runs_only_torch


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


@pytest.mark.parametrize(
    "model",
    [
        plain(),
        nn.Linear(4, 3),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten()),
        nn.Sequential(nn.Embedding(5, 3), nn.LSTM(3, 4)),
        nn.TransformerEncoderLayer(8, 2),
        nn.ModuleDict({"a": nn.GRU(3, 3), "b": nn.ModuleList([nn.GELU()])}),
    ],
    ids=lambda model: type(model).__name__,
)
def test_torchs_own(model):
    assert runs_only_torch(model)


class Sub(nn.Linear):
    pass


class Scale(nn.Module):
    def forward(self, w):
        return 2 * w


def users_parameter(model):
    class Mine(nn.Parameter):
        pass

    model[1].weight = Mine(torch.zeros(3, 4))


def forward_of_an_instance(model):
    model[2].forward = lambda x: x


def attribute_of_the_users(model):
    model[2].seen = object()


def a_list_that_a_hook_could_fill(model):
    model[2].register_forward_hook(lambda *_: None)


def hook_of_a_parameter(model):
    model[1].weight.register_hook(lambda g: g)


def users_parametrization(model):
    parametrize.register_parametrization(model[1], "weight", Scale())


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.append(Sub(2, 2)),
        lambda model: model.append(Scale()),
        users_parameter,
        forward_of_an_instance,
        attribute_of_the_users,
        a_list_that_a_hook_could_fill,
        hook_of_a_parameter,
        users_parametrization,
        lambda model: model.register_full_backward_hook(lambda *_: None),
        lambda model: model.register_forward_pre_hook(lambda *_: None),
        lambda model: model.register_state_dict_pre_hook(lambda *_: None),
    ],
)
def test_of_somebody_elses(change):
    model = plain()
    assert runs_only_torch(model)
    change(model)
    assert not runs_only_torch(model)


def test_torchs_parametrizations_are_torchs():
    assert runs_only_torch(nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))) in (
        True,
        False,
    )  # never an error


@pytest.mark.parametrize(
    "place, name",
    [(torch, "tanh"), (functional, "linear"), (nn.Tanh, "forward"), (nn.Module, "__call__"), (nn.Linear, "forward")],
)
def test_what_is_put_into_torch(monkeypatch, place, name):
    before = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *args, **kwargs: before(*args, **kwargs))
    assert not runs_only_torch(plain())


def test_hooks_of_all_modules():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not runs_only_torch(plain())
    finally:
        handle.remove()
    assert runs_only_torch(plain())
