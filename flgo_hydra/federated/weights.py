"""A model's weights and buffers as a safetensors file."""

from collections.abc import Mapping

import torch


def dump_weights(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Returns the content of a file that holds these tensors by name."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def load_weights(model: torch.nn.Module, path: str) -> None:
    """Puts the weights and buffers of a file into the model.

    Raises:
        ValueError: it cannot be read, or is another model's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"`initial_weights={path}` cannot be read as safetensors: {error}.") from error
    own = model.state_dict()
    wrong = [
        f"{name} {tuple(weights[name].shape) if name in weights else 'is missing'}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name not in weights or weights[name].shape != tensor.shape
    ] + [f"{name} is not in the model" for name in weights if name not in own]
    if wrong:
        raise ValueError(f"`initial_weights={path}` does not fit the model: {'; '.join(wrong[:5])}.")
    model.load_state_dict(weights)
