"""What is trained."""

from dataclasses import dataclass, field

from flgo_hydra.config.laws import MISSING, are_widths, hold


@dataclass
class ModelConf:
    """A function that returns a `torch.nn.Module`; it is given `input_shape` and `num_outputs` where it takes them."""

    # the function or class, as package.module.name
    _target_: str = MISSING
    # name in results
    name: str = MISSING


@dataclass
class MlpConf(ModelConf):
    """Fully connected layers with ReLU between them."""

    # widths of the hidden layers
    hidden: list[int] = field(default_factory=lambda: [200])

    def __post_init__(self) -> None:
        hold(are_widths(self.hidden), "every width in model.hidden >= 1", self.hidden)


@dataclass
class CnnConf(ModelConf):
    """The FedAvg paper's CNN: two 5x5 convolutions with max pooling, one hidden layer."""

    # channels of the two convolutions
    channels: list[int] = field(default_factory=lambda: [32, 64])
    # width of the hidden layer
    hidden: int = 512

    def __post_init__(self) -> None:
        two = are_widths(self.channels) and len(self.channels) == 2
        hold(two, "model.channels is two numbers >= 1", self.channels)
        hold(self.hidden >= 1, "model.hidden >= 1", self.hidden)


@dataclass
class ResNetConf(ModelConf):
    """A small residual network with group normalisation."""

    # channels of the stages; each stage after the first halves the image
    channels: list[int] = field(default_factory=lambda: [16, 32, 64])
    # residual blocks a stage
    num_blocks: int = 1
    # groups of the normalisation; must divide every entry of channels
    num_groups: int = 8

    def __post_init__(self) -> None:
        hold(self.num_blocks >= 1, "model.num_blocks >= 1", self.num_blocks)
        hold(self.num_groups >= 1, "model.num_groups >= 1", self.num_groups)
        is_list = bool(self.channels) and are_widths(self.channels)
        divides = is_list and all(c % self.num_groups == 0 for c in self.channels)
        hold(divides, f"model.num_groups={self.num_groups} divides every entry of model.channels", self.channels)
