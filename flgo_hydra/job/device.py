"""Where a run computes: its device, and how many threads of a CPU."""

from typing import TYPE_CHECKING

from flgo_hydra.config import Conf

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    import torch

_SMALL_STEP = 2e7  # multiplications of a forward pass
_allowed_threads: int | None = None


def resolve_device(name: str) -> "torch.device":
    """The device that `device` names; `auto` is a GPU where there is one.

    Raises:
        ValueError: there is no such device on this machine.
    """
    import torch

    num_gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if num_gpus else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise ValueError(f"`device={name}`: torch sees {num_gpus} GPUs here. Set `device=cpu` or `device=auto`.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("`device=mps`: torch has no Apple GPU here. Set `device=cpu` or `device=auto`.")
    return device


def count_threads(conf: Conf, model: "torch.nn.Module", input_shape: tuple[int, ...], dtype: "torch.dtype") -> int:
    """`num_threads`, or by the size of a local step: small ones gain nothing from a second thread, and lose all when
    something else runs on its core (measured: an MLP's round 1.1 times as fast on two idle cores, 6 times as slow on
    two busy ones). The choice depends on the config alone, so that a run's numbers do."""
    import torch

    from flgo_hydra.federated.model import count_multiplications

    global _allowed_threads
    if _allowed_threads is None:
        _allowed_threads = torch.get_num_threads()  # OMP_NUM_THREADS, or the cores
    if conf.num_threads is not None:
        return conf.num_threads
    samples = conf.batch_size if conf.batch_size >= 1 else 64
    per_step = samples * count_multiplications(model, input_shape, dtype)
    return 1 if per_step < _SMALL_STEP else _allowed_threads
