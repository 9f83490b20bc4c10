"""The whole config of one job."""

from dataclasses import dataclass, field, is_dataclass
from typing import Any

from flgo_hydra.config.laws import MISSING, hold_representable, hold_whole_numbers
from flgo_hydra.config.option import OptionConf


@dataclass
class Conf(OptionConf):
    """The whole config of one job."""

    # what is learned from which data, split over which clients (group task)
    task: Any = MISSING
    # what is trained (group model)
    model: Any = MISSING
    # how it is trained (group algorithm)
    algorithm: Any = MISSING
    # what composes with every algorithm, by names of your own: attacks, defences, compression, selection of clients,
    # each {_target_: …} with its numbers (federated/parts/base.py)
    parts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        hold_whole_numbers(self)
        own = vars(self.algorithm) if is_dataclass(self.algorithm) else self.algorithm
        own = own if isinstance(own, dict) else {}  # `compose.to_conf` says what it must be
        numbers = {key: getattr(self, key) for key in ("lr", "weight_decay", "clip_grad")}
        numbers |= {f"algorithm.{key}": value for key, value in own.items()}
        for name, part in self.parts.items():
            numbers |= {f"parts.{name}.{key}": value for key, value in part.items()} if isinstance(part, dict) else {}
        hold_representable(numbers, self.dtype)
