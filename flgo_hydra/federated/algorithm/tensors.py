"""How the tensors of a model, and of several, are named."""

from torch import Tensor

Tensors = dict[str, Tensor]
"""by parameter name"""
State = dict[str, Tensors]
"""by a name for each dict of them"""
