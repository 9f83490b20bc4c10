"""Where a run computes: its device, and how many threads of a CPU."""

import os
from typing import TYPE_CHECKING

from flgo_hydra.config.conf import Conf
from flgo_hydra.launch.reporter import THREADS

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    import torch


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


def count_threads(conf: Conf) -> int:
    """`num_threads`, else `hydra.launcher.threads`, else one.

    A sum that two threads share is rounded in another way than one thread's: gradients of the smallest layer differ so,
    and of every convolution (measured with 1 to 4 threads). So the number follows from the config: neither cores,
    slots nor `OMP_NUM_THREADS` change a run's numbers. One is what fills a machine that trains many runs; a single run
    of a large model may want more.
    """
    return conf.num_threads or int(os.environ.get(THREADS, 1))
