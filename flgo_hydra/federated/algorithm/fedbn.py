"""FedBN: normalisation layers are each client's own; all others are averaged.

Li et al., FedBN: Federated Learning on Non-IID Features via Local Batch Normalization, ICLR 2021, Algorithm 1.
https://arxiv.org/abs/2102.07623

The paper is about batch normalisation. Here a layer counts by its type, whatever its name, group and layer
normalisation too.
"""

from torch import nn

from flgo_hydra.federated.algorithm.private import Partly
from flgo_hydra.federated.refused import Refused

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)


class FedBN(Partly):
    """Scales, shifts and batch statistics stay with the clients."""

    def kept(self, model: nn.Module) -> list[str]:
        found = state_of(model, NORMS)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        if trained.isdisjoint(found):
            raise Refused("FedBN keeps the normalisation layers with the clients, but the model has none to train.")
        return found


def state_of(model: nn.Module, types: tuple[type[nn.Module], ...]) -> list[str]:
    """Names of the trained parameters and of the buffers of modules of these types."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, types)
        for name in (
            *(name for name, p in module.named_parameters(recurse=False) if p.requires_grad),
            *(name for name, _ in module.named_buffers(recurse=False)),
        )
    ]
