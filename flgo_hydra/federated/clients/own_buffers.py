"""Whose a model's buffers are, such as batch statistics: one rule for each, whoever trains.

By default the mean over clients of what they make of a buffer is the server's next. One that `Algorithm.private` names
stays with the clients: each goes on with its own, at first the untrained model's, which the server keeps. One that
`Algorithm.fixed_buffers` names is the server's alone: clients start from it, and what they make of it is dropped.
"""

from torch import nn

from flgo_hydra.federated.algorithm.base import Algorithm, State, Tensors
from flgo_hydra.federated.refused import Refused

ENTRY = "buffers"
"""of what a client keeps, where its own ones travel; algorithms do not see it"""


class OwnBuffers:
    """Those of a model under an algorithm that is bound to it.

    Raises:
        Refused: the algorithm names what the model has not.
    """

    def __init__(self, algorithm: Algorithm, model: nn.Module) -> None:
        self._algorithm = type(algorithm).__name__
        buffers = dict(model.named_buffers())
        known = buffers.keys() | dict(model.named_parameters()).keys()
        for what, names, among in (
            ("private", algorithm.private, known),
            ("fixed_buffers", algorithm.fixed_buffers, buffers.keys()),
        ):
            for name in sorted(names - among):
                kind = "parameter or buffer" if among is known else "buffer"
                raise Refused(
                    f"`{what}` of {type(algorithm).__name__} names `{name}`, which is no {kind} of the model."
                )
        self.names = algorithm.private & buffers.keys()
        """of those that stay with the clients"""
        self._elsewhere = self.names | algorithm.fixed_buffers

    def first(self, state: State, buffers: Tensors) -> State:
        """What a client keeps at first.

        Args:
            state: what the algorithm says.
            buffers: the untrained model's.
        """
        if not self.names:
            return state
        if ENTRY in state:
            raise Refused(
                f"`init_client` of {self._algorithm} has an entry `{ENTRY}`, by which a client's own buffers go, "
                "which `private` names: call it something else."
            )
        return self.joined(state, buffers)

    def joined(self, state: State, buffers: Tensors) -> State:
        """What a client keeps next, of the algorithm's and of what its steps have made of the buffers."""
        return {**state, ENTRY: {name: buffers[name] for name in sorted(self.names)}} if self.names else state

    def apart(self, kept: State) -> tuple[State, Tensors]:
        """What a client keeps: for the algorithm, and its own buffers."""
        if not self.names:
            return kept, {}
        return {entry: tensors for entry, tensors in kept.items() if entry != ENTRY}, kept.get(ENTRY, {})

    def averaged(self, buffers: Tensors) -> Tensors:
        """Those whose changes the server takes the mean of."""
        return {name: b for name, b in buffers.items() if name not in self._elsewhere} if self._elsewhere else buffers
