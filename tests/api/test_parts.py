"""Tasks, algorithms and models in every form in which a program may give them."""

import json
import types

import pytest
from torch import nn

from flgo_hydra import reference
from flgo_hydra.api.parts import algorithm_overrides, is_flgo, model_overrides, name_of, task_overrides
from flgo_hydra.federated.algorithm import fedprox
from flgo_hydra.federated.algorithm.base import Algorithm
from flgo_hydra.federated.algorithm.fedavg import FedAvg
from flgo_hydra.federated.algorithm.fedprox import FedProx


def local_algorithm():
    """No import leads to it."""

    class Mine(Algorithm):
        pass

    return Mine


def test_tasks(empty_folder):
    assert task_overrides("digits") == ["task=digits"]
    chosen = {"name": "digits", "partition": "dirichlet", "partition.alpha": 0.1, "num_clients": 10}
    assert task_overrides(chosen) == [
        "task=digits", "task/partition=dirichlet", "task.partition.alpha=0.1", "task.num_clients=10",
    ]  # fmt: skip
    (empty_folder / "mnist_iid").mkdir()
    for name in ("info", "data.json"):
        (empty_folder / "mnist_iid" / name).write_text(json.dumps({}))
    assert task_overrides("./mnist_iid") == ["task=flgo", "task.path='./mnist_iid'"]


@pytest.mark.parametrize(
    "given, expected",
    [
        ("fedprox", ["algorithm=fedprox"]),
        (fedprox, ["algorithm=fedprox"]),
        (FedProx, ["algorithm=fedprox"]),
        (FedProx(), ["algorithm=fedprox"]),
        (FedAvg, ["algorithm=fedavg"]),
        (("fedprox", {"mu": 0.5}), ["algorithm=fedprox", "algorithm.mu=0.5"]),
        ({"algorithm": FedProx, "mu": 0.5}, ["algorithm=fedprox", "algorithm.mu=0.5"]),
    ],
)
def test_algorithms(given, expected):
    assert algorithm_overrides(given, None, {}) == expected


def test_a_module_of_flgos_is_run_by_flgo():
    module = types.ModuleType("flgo.algorithm.moon")
    module.Server = module.Client = object
    assert is_flgo(module) and is_flgo("flgo") and not is_flgo(fedprox) and not is_flgo("fedavg")
    assert algorithm_overrides(module, [0.1, 0.5], {}) == [
        "algorithm=flgo", "algorithm.module=flgo.algorithm.moon", "algorithm.para=[0.1,0.5]",
    ]  # fmt: skip
    assert name_of(module, "algorithm") == "moon"


def test_algo_para_goes_by_the_order_of_the_hyper_parameters():
    assert algorithm_overrides("fedprox", [0.3], {}) == ["algorithm=fedprox", "algorithm.mu=0.3"]
    with pytest.raises(ValueError, match=r"has 2 values, but fedprox has mu\."):
        algorithm_overrides("fedprox", [0.3, 1], {})
    with pytest.raises(ValueError, match="fedavg has no hyper-parameters"):
        algorithm_overrides("fedavg", [0.3], {})


def test_a_class_that_no_import_leads_to_gets_a_name():
    objects, kind = {}, local_algorithm()
    overrides = algorithm_overrides((kind, {"beta": 0.5}), None, objects)
    (target,) = objects
    assert overrides == [
        "algorithm=custom", f"algorithm._target_={target}", "algorithm.name=mine", "+algorithm.beta=0.5",
    ]  # fmt: skip
    assert reference.load(target, "algorithm._target_") is kind
    again: dict = {}
    algorithm_overrides(local_algorithm(), None, again)
    assert list(again) == [target], "the same source is the same algorithm"


def test_models():
    objects: dict = {}
    assert model_overrides(None, objects) == [] and model_overrides("cnn", objects) == ["model=cnn"]
    assert model_overrides({"name": "mlp", "hidden": [64]}, objects) == ["model=mlp", "model.hidden=[64]"]
    assert model_overrides((nn.Linear, {"out_features": 3}), objects) == [
        "model=custom", "model._target_=torch.nn.modules.linear.Linear", "model.name=linear", "+model.out_features=3",
    ]  # fmt: skip
    assert objects == {}


def test_a_class_of_ones_own_is_not_called_as_a_choice_of_ours():
    own = [type(name, (Algorithm,), {"__module__": __name__}) for name in ("FedAvgM", "Mine")]
    names = [algorithm_overrides(kind, None, {})[2] for kind in own]
    assert names == ["algorithm.name=own_fedavgm", "algorithm.name=mine"]
    assert model_overrides(type("MLP", (nn.Module,), {"__module__": __name__}), {})[2] == "model.name=own_mlp"


def test_names_for_records():
    assert name_of(fedprox, "algorithm") == "fedprox" and name_of((FedProx, {"mu": 1}), "algorithm") == "FedProx"
    assert (
        name_of({"name": "digits", "seed": 1}, "task") == "digits" and name_of("./mnist_iid", "task") == "./mnist_iid"
    )


@pytest.mark.parametrize(
    "function, given, says",
    [
        (task_overrides, 3, "`task` must be a name, the path of FLGo's task folder, or a dict, but got 3"),
        (
            task_overrides,
            "./nowhere",
            "or a folder that FLGo has written, with data.json and info, but got './nowhere'",
        ),
        (task_overrides, {"seed": 1}, 'must have a "name"'),
        (lambda a: algorithm_overrides(a, None, {}), 3, "`algorithm` must be one of"),
        (lambda a: algorithm_overrides(a, None, {}), pytest, "must define one algorithm"),
        (lambda a: algorithm_overrides(a, None, {}), "custom", "has no class"),
        (lambda m: model_overrides(m, {}), nn.Linear(1, 1), "of an object its class"),
    ],
)
def test_what_cannot_be_is_said(function, given, says):
    with pytest.raises(ValueError, match=says):
        function(given)
