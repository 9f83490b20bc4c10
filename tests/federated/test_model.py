import pytest
import torch
from torch import nn

from flgo_hydra import reference
from flgo_hydra.federated.model import build_model
from flgo_hydra.federated.refused import Refused

MLP = {"_target_": "flgo_hydra.federated.model.mlp", "name": "mlp", "hidden": [200]}
CNN = {"_target_": "flgo_hydra.federated.model.cnn", "name": "cnn", "channels": [32, 64], "hidden": 512}
RESNET = {
    "_target_": "flgo_hydra.federated.model.resnet",
    "name": "resnet",
    "channels": [8, 16],
    "num_blocks": 2,
    "num_groups": 4,
}
LOGISTIC = {"_target_": "flgo_hydra.federated.model.logistic", "name": "logistic"}


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "parameters, input_shape, num_outputs, num_parameters",
    [
        (LOGISTIC, (60,), 10, 610),
        (MLP, (1, 28, 28), 10, 784 * 200 + 200 + 2000 + 10),
        ({**MLP, "hidden": [200, 200]}, (784,), 10, 199_210),  # the FedAvg paper's 2NN
        (CNN, (1, 28, 28), 10, 1_663_370),  # the FedAvg paper's CNN
        (CNN, (3, 8, 8), 4, None),
        (RESNET, (3, 32, 32), 100, None),
        (RESNET, (1, 8, 8), 10, None),
    ],
)
def test_shapes_follow_the_task(parameters, input_shape, num_outputs, num_parameters):
    model = build_model(parameters, input_shape, num_outputs, seed=0)
    assert model(torch.zeros(3, *input_shape)).shape == (3, num_outputs)
    assert num_parameters is None or size(model) == num_parameters


def test_the_seed_decides_the_weights_and_leaves_torchs_own_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (build_model(MLP, (4,), 2, seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["hidden0.weight"], other["hidden0.weight"])


def test_both_dtypes_start_from_the_same_model():
    single = build_model(MLP, (4,), 2, seed=0).state_dict()
    double = build_model(MLP, (4,), 2, seed=0, dtype=torch.float64).state_dict()
    assert double["output.bias"].dtype == torch.float64
    assert all(torch.equal(single[name].double(), double[name]) for name in single)


@pytest.mark.parametrize("dtype, complex_dtype", [("float32", torch.complex64), ("float64", torch.complex128)])
def test_complex_numbers_keep_their_imaginary_parts(dtype, complex_dtype):
    class Turning(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)
            self.register_buffer("turns", torch.tensor([1 + 2j, 3j]))
            self.phase = nn.Parameter(torch.tensor([4j]), requires_grad=False)
            self.register_buffer("calls", torch.tensor(0))

    reference.give("given_in_python.turning", Turning)
    model = build_model({"_target_": "given_in_python.turning"}, (4,), 2, seed=0, dtype=getattr(torch, dtype))
    assert model.turns.tolist() == [1 + 2j, 3j] and model.turns.dtype == complex_dtype
    assert model.phase.tolist() == [4j] and isinstance(model.phase, nn.Parameter)
    assert model.calls.dtype == torch.int64 and model.weight.dtype == getattr(torch, dtype)


class Sharing(nn.Module):
    def __init__(self):
        super().__init__()
        self.line, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.share()

    def forward(self, x):
        return self.other(self.line(x))


class TwoParameters(Sharing):
    def share(self):
        self.other.weight = nn.Parameter(self.line.weight.data)


class BufferIsParameter(Sharing):
    def share(self):
        self.register_buffer("seen", self.line.weight)


class ViewOfRow(Sharing):
    def share(self):
        self.register_buffer("row", self.line.weight.data[1])


class FrozenView(Sharing):
    def share(self):
        self.other.weight = nn.Parameter(self.line.weight.data.T, requires_grad=False)


class OtherDtype(Sharing):
    def share(self):
        self.register_buffer("bits", self.line.weight.data.view(torch.float64))


class ComplexView(Sharing):
    def share(self):
        self.register_buffer("pairs", torch.view_as_complex(self.line.weight.data.view(4, 2, 2)))


class OneParameter(Sharing):
    def share(self):
        self.other.weight = self.line.weight


class Halves(Sharing):
    """Of one storage, which nothing of both holds: as cuDNN lays a recurrent layer's weights out."""

    def share(self):
        both = torch.randn(4, 8)
        self.line.weight, self.other.weight = nn.Parameter(both[:, :4]), nn.Parameter(both[:, 4:])


class FrozenTwice(Sharing):
    def share(self):
        table = torch.arange(4.0)
        self.register_buffer("table", table)
        self.other.register_buffer("table", table.view(2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [TwoParameters, BufferIsParameter, ViewOfRow, FrozenView, OtherDtype, ComplexView])
def test_a_trained_parameter_has_its_memory_to_itself(kind, dtype):
    reference.give("given_in_python.sharing", kind)
    with pytest.raises(Refused, match=r"`line.weight` and `.*` lie in the same one: assign the same `nn.Parameter`"):
        build_model({"_target_": "given_in_python.sharing"}, (4,), 4, seed=0, dtype=dtype)


@pytest.mark.parametrize("kind", [OneParameter, Halves, FrozenTwice])
def test_one_parameter_of_two_names_and_neighbours_in_a_storage_are_welcome(kind):
    reference.give("given_in_python.sharing", kind)
    build_model({"_target_": "given_in_python.sharing"}, (4,), 4, seed=0)


@pytest.mark.parametrize("make", [lambda: torch.zeros(2, dtype=torch.complex64), lambda: torch.tensor(1j)])
def test_complex_parameters_are_not_trained(make):
    class Turns(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)
            self.turn = nn.Parameter(make())

    reference.give("given_in_python.turns", Turns)
    with pytest.raises(Refused, match="`turn` is complex: hold it as `torch.view_as_real`"):
        build_model({"_target_": "given_in_python.turns"}, (4,), 2, seed=0)


@pytest.mark.parametrize("parameters", [CNN, RESNET])
def test_models_of_images_say_so_when_there_are_none(parameters):
    with pytest.raises(ValueError, match=r"images of shape .* \(60,\)"):
        build_model(parameters, (60,), 10, seed=0)


def test_a_model_must_be_a_module_with_something_to_train():
    with pytest.raises(ValueError, match="torch.nn.Module, but got Counter"):
        build_model({"_target_": "collections.Counter"}, (4,), 2, seed=0)
    with pytest.raises(ValueError, match="trainable parameters"):
        build_model({"_target_": "torch.nn.Flatten"}, (4,), 2, seed=0)


def test_the_example_of_the_docstring_runs(tmp_path, monkeypatch):
    import textwrap

    from flgo_hydra.federated import model as module

    code = textwrap.dedent(module.__doc__.split("+model.width=32`:")[1])
    (tmp_path / "my_models.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = build_model({"_target_": "my_models.TwoLayers", "width": 32}, (1, 8, 8), 10, seed=0)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert size(model) == 64 * 32 + 32 + 320 + 10
