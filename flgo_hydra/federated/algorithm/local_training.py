"""Local training: each client goes on with its own model in every visit, and nothing travels.

No method, but a row of every table about personalised ones, as in McMahan et al., Communication-Efficient Learning of
Deep Networks from Decentralized Data, AISTATS 2017 (https://arxiv.org/abs/1602.05629), whose local steps it takes.
"""

from torch import nn

from flgo_hydra.federated.algorithm.private import Partly, all_of


class LocalTraining(Partly):
    """All of the model stays with the clients; the server's is the untrained one for ever."""

    def kept(self, model: nn.Module) -> list[str]:
        return all_of(model)
