"""A model's weights and buffers as a safetensors file, by the names of its state dict.

A run's server holds each parameter once, and buffers that no state dict has. A state dict names a tied parameter, or
the parameters of a layer that stands in two places, by each of their names, and leaves those buffers out. So the file
is what `load_state_dict(strict=True)` takes.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from flgo_hydra.record.schema import Defect, open_plain


def names_of(model: torch.nn.Module) -> dict[str, str]:
    """By each name of the model's state dict, the one under which `named_parameters` or `named_buffers` has it."""
    own = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    entries = model.state_dict(keep_vars=True)
    return {name: own[id(value)] for name, value in entries.items() if id(value) in own}


def by_state_dict(tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Tensors by the names of a model's state dict.

    Args:
        tensors: by the names of its parameters and buffers.
        names: the model's, from `names_of`; of other models' (FLGo's) tensors there are none, and theirs are kept.
    """
    return {name: tensors[own] for name, own in names.items() if own in tensors} if names else dict(tensors)


def dump_weights(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Returns the content of a file that holds these tensors by name."""
    from safetensors.torch import save

    # the format has no two names for one memory
    seen: set[int] = set()
    own: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        alone = tensor.detach().cpu().contiguous()
        own[name] = alone.clone() if alone.untyped_storage().data_ptr() in seen else alone
        seen.add(alone.untyped_storage().data_ptr())
    return save(own)


def load_weights(model: torch.nn.Module, path: str) -> None:
    """Puts the weights and buffers of a file into the model.

    Raises:
        ValueError: it cannot be read, or is another model's.
    """
    names, own = names_of(model), model.state_dict()
    tensors = {name: value for name, value in own.items() if isinstance(value, torch.Tensor)}
    known = {**tensors, **dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = _read(path, known)
    for name in tensors:  # as this package wrote them before: each parameter under one of its names
        others = [other for other in names if name in names and names[other] == names[name] and other in weights]
        if name not in weights and others:
            weights[name] = weights[others[0]]
    wrong = [f"{name} is missing, not {tuple(tensor.shape)}" for name, tensor in tensors.items() if name not in weights]
    for name, first in names.items():
        if name in weights and first in weights and not _are_equal(weights[name], weights[first]):
            wrong.append(f"{name} and {first} are one parameter, and have two values")
    if wrong:
        raise ValueError(f"`initial_weights={path}` does not fit the model: {'; '.join(wrong[:5])}.")
    extra = {name: value for name, value in own.items() if name not in tensors}  # what a module calls extra state
    model.load_state_dict({**{name: weights[name] for name in tensors}, **extra})
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name in weights and name not in tensors:
                buffer.copy_(weights[name])


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


def _read(path: str, known: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a file, none of which is read before its shape is right: a header may say anything."""
    from safetensors import SafetensorError, safe_open

    try:
        file = open_plain(Path(path), most_bytes=None)
        if file is None:
            raise Defect(Path(path), "is not there")
        file.close()
        with safe_open(path, framework="pt") as opened:
            there = list(opened.keys())
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in there}
            wrong = [
                f"{name} {shapes[name]}, not {tuple(tensor.shape)}"
                for name, tensor in known.items()
                if name in shapes and shapes[name] != tuple(tensor.shape)
            ]
            if wrong or not shapes.keys() <= known.keys():
                wrong += [f"{name} is missing" for name in known if name not in shapes]
                wrong += [f"{name} is not in the model" for name in there if name not in known]
                raise ValueError(f"`initial_weights={path}` does not fit the model: {'; '.join(wrong[:5])}.")
            found = {name: opened.get_tensor(name) for name in there}
    except Defect as defect:
        raise ValueError(f"`initial_weights={path}` cannot be read as safetensors: it {defect.why}.") from None
    except (OSError, SafetensorError, MemoryError, OverflowError, RuntimeError, UnicodeError) as error:
        told = str(error).partition("\n")[0]
        raise ValueError(f"`initial_weights={path}` cannot be read as safetensors: {told}.") from error
    return found
