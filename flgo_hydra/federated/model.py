"""Models, by name or by a user's own reference.

A model is whatever `model._target_` returns when it is called with the choice's parameters, plus `input_shape`
(a sample's shape: `(channels, height, width)` or `(features,)`) and `num_outputs` (classes, or regression outputs)
where its signature takes them. Its forward maps `(batch, *input_shape)` to `(batch, num_outputs)`, floating point;
`fit.py` tries that before a run begins. Where the task's inputs are integers and the model takes integers, as one does
that begins with an `nn.Embedding`, it is given int64; else floats.

A user's own, in `my_models.py` of the current folder, run by
`model=custom model._target_=my_models.TwoLayers +model.width=32`:

    import math
    from torch import nn

    class TwoLayers(nn.Sequential):
        def __init__(self, input_shape, num_outputs, width=64):
            inputs = math.prod(input_shape)
            super().__init__(nn.Flatten(), nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, num_outputs))
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flgo_hydra import reference
from flgo_hydra.federated.randomness import Purpose, generators_kept, seed_all, torch_seed
from flgo_hydra.federated.refused import Refused


def build_model(
    parameters: Mapping[str, Any],
    input_shape: Sequence[int],
    num_outputs: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Builds the model with initial weights that `seed` alone decides, on the CPU.

    Args:
        parameters: `_target_` and its arguments; `name` is not passed on.
    Raises:
        ValueError: the reference is wrong, or the model does not fit the task's shapes.
    """
    model = make_model(parameters, input_shape, num_outputs, seed, dtype)
    require_weights(model, parameters)
    return model


def make_model(
    parameters: Mapping[str, Any],
    input_shape: Sequence[int],
    num_outputs: int,
    seed: int,
    dtype: torch.dtype,
    first_batch: Tensor | None = None,
) -> nn.Module:
    """The same, with whatever parameters the model has.

    Args:
        first_batch: given to the model once, for parts that it makes in its first forward pass (`nn.LazyLinear`): they
            are initial weights too.
    """
    target = str(parameters["_target_"])
    function = reference.load(target, "model._target_")
    given = {key: value for key, value in parameters.items() if key not in ("_target_", "name")}
    offered = {"input_shape": tuple(input_shape), "num_outputs": num_outputs}
    # Weights are drawn in float32 and then widened, so that both dtypes start from the same model.
    with generators_kept():
        seed_all(torch_seed(seed, Purpose.INITIAL_WEIGHTS))
        torch.cuda.manual_seed_all(torch.initial_seed())  # a model may be made where it will be trained
        model = reference.call(function, given, offered, "model", {"num_classes": num_outputs})
        if not isinstance(model, nn.Module):
            kind = type(model).__name__
            raise ValueError(f"`model._target_={target}` must return a torch.nn.Module, but got {kind}.")
        if first_batch is not None:
            was_training = model.training
            model.eval()
            with torch.no_grad():
                model(first_batch.clone())
            model.train(was_training)
    _refuse_what_cannot_train(model)
    return to_dtype(model, dtype)


def _refuse_what_cannot_train(model: nn.Module) -> None:
    """Raises Refused where a trained parameter is complex, or lies in memory that has another name too.

    Before a cast, which would tell names apart in one dtype and not in the other. The server averages each name on its
    own, so what the names of one memory hold would depend on which is written last. The same `Parameter` under several
    names is one parameter, and the weights of a recurrent layer, side by side in one storage, overlap nowhere.
    """
    by_storage: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided:
            continue
        if tensor.requires_grad and tensor.is_complex():
            raise Refused(
                f"The model's parameters must be real numbers, which optimizers and clipping take steps of, but "
                f"`{name}` is complex: hold it as `torch.view_as_real` gives it, and call `torch.view_as_complex` in "
                "forward."
            )
        if tensor.numel():
            by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))
    for named in by_storage.values():
        for (first, one), (second, other) in itertools.combinations(named, 2):
            if (one.requires_grad or other.requires_grad) and _overlap(one, other):
                raise Refused(
                    f"A trained parameter must have its memory to itself, but `{first}` and `{second}` lie in the same "
                    "one: assign the same `nn.Parameter` to share it between layers, or register a copy (`.clone()`)."
                )


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors in one storage have an element in common."""
    if a.itemsize != b.itemsize:
        return True
    cells = torch.arange(a.untyped_storage().nbytes() // a.itemsize)
    of_a, of_b = (cells.as_strided(t.shape, t.stride(), t.storage_offset()) for t in (a, b))
    return bool(torch.isin(of_a, of_b).any())


def to_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model in a run's dtype, float32 or float64. Complex numbers stay complex, of that precision: `Module.to`
    would drop their imaginary parts."""
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64

    def convert(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(complex_dtype)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    model._apply(convert)  # type: ignore[no-untyped-call]
    return model


def require_weights(model: nn.Module, parameters: Mapping[str, Any]) -> None:
    """Raises ValueError unless the model has something to train."""
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"`model._target_={parameters['_target_']}` must have trainable parameters, but has none.")


def arrange_for_cpu(model: nn.Module) -> None:
    """Lays the weights of 2-d convolutions out with channels last, which the activations then follow.

    Measured on the CPU with one thread, a step of the FedAvg paper's CNN takes 0.88 to 0.95 times as long so, one of
    the small ResNet 0.91. Dense models stay as they are.
    """
    if any(isinstance(layer, nn.Conv2d) for layer in model.modules()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def logistic(input_shape: Sequence[int], num_outputs: int) -> nn.Module:
    """Multinomial logistic regression: one linear layer."""
    return mlp(input_shape, num_outputs, hidden=[])


def mlp(input_shape: Sequence[int], num_outputs: int, hidden: Sequence[int]) -> nn.Module:
    """Fully connected layers of the given widths with ReLU between them.

    `hidden=[200, 200]` is the FedAvg paper's "2NN". McMahan et al. 2017, https://arxiv.org/abs/1602.05629
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    width = math.prod(input_shape)
    for i, next_width in enumerate(hidden):
        layers[f"hidden{i}"] = nn.Linear(width, next_width)
        layers[f"relu{i}"] = nn.ReLU()
        width = next_width
    layers["output"] = nn.Linear(width, num_outputs)
    return nn.Sequential(layers)


def cnn(input_shape: Sequence[int], num_outputs: int, channels: Sequence[int], hidden: int) -> nn.Module:
    """The FedAvg paper's CNN: 5x5 convolutions, each with 2x2 max pooling, then one hidden layer.

    1,663,370 parameters for 28x28 grey images and 10 classes. McMahan et al. 2017, https://arxiv.org/abs/1602.05629
    """
    depth, height, width = _image_shape(input_shape, "cnn", smallest=4)
    first, second = channels
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv0=nn.Conv2d(depth, first, 5, padding=2),
            relu0=nn.ReLU(),
            pool0=nn.MaxPool2d(2),
            conv1=nn.Conv2d(first, second, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(second * (height // 4) * (width // 4), hidden),
            relu2=nn.ReLU(),
            output=nn.Linear(hidden, num_outputs),
        )
    )


def resnet(
    input_shape: Sequence[int], num_outputs: int, channels: Sequence[int], num_blocks: int, num_groups: int
) -> nn.Module:
    """A small residual network with group normalisation, which needs no batch statistics.

    He et al. 2016, https://arxiv.org/abs/1512.03385; group in place of batch normalisation for federated learning:
    Hsieh et al. 2020, https://arxiv.org/abs/1910.00189
    """
    depth, _, _ = _image_shape(input_shape, "resnet", smallest=2 ** (len(channels) - 1))
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(depth, channels[0], 3, padding=1, bias=False),
        norm=nn.GroupNorm(num_groups, channels[0]),
        relu=nn.ReLU(),
    )
    width = channels[0]
    for stage, next_width in enumerate(channels):
        for block in range(num_blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers[f"stage{stage}_block{block}"] = ResidualBlock(width, next_width, stride, num_groups)
            width = next_width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(width, num_outputs)
    return nn.Sequential(layers)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, width: int, next_width: int, stride: int, num_groups: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(width, next_width, 3, stride=stride, padding=1, bias=False)
        self.norm0 = nn.GroupNorm(num_groups, next_width)
        self.conv1 = nn.Conv2d(next_width, next_width, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(num_groups, next_width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width != next_width:
            self.shortcut = nn.Conv2d(width, next_width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, width, height, width) to (batch, next_width, height / stride, width / stride)."""
        y = torch.relu(self.norm0(self.conv0(x)))
        return torch.relu(self.norm1(self.conv1(y)) + self.shortcut(x))


def _image_shape(input_shape: Sequence[int], model: str, smallest: int) -> tuple[int, int, int]:
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ValueError(
            f"`model={model}` needs images of shape (channels, height, width) of at least {smallest}x{smallest}, "
            f"but the task's samples have shape {tuple(input_shape)}. Choose `model=mlp` or `model=logistic`."
        )
    depth, height, width = input_shape
    return depth, height, width
