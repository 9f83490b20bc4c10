"""What Python keeps during a run, compared with what it kept before the first round.

A trial shows what a few steps do. A flag that is set in round 10, by `update_server` say, it cannot show, and recorded
steps, which repeat no Python, would go on as if it were not set; nor has a checkpoint it. So a run of the user's code
is looked at again before each round, after its clients' steps and before each checkpoint: what has become another
thing since is told, and from then on steps are plain.
"""

from typing import Any

from flgo_hydra.federated.backend.python_state import PythonState, TooMuch
from flgo_hydra.federated.refused import Refused


class ChangedLate(Refused):
    """Steps that have been taken may have missed a change: the run has to begin anew, by plain steps."""


class Watch:
    """Remembers what these objects keep now.

    Args:
        roots: a model, an algorithm, by name.
    """

    def __init__(self, **roots: Any) -> None:
        self._roots = roots
        self._before = _look(roots)

    def changed(self) -> str:
        """The name of something that is another one now, or nothing."""
        now = _look(self._roots) if self._before is not None else None
        return self._before.changed(now) if self._before is not None and now is not None else ""

    def require_unchanged(self, round_num: int) -> None:
        """After the clients' steps of a round.

        Raises:
            ChangedLate: something has changed that recorded steps on the way could not see.
        """
        if name := self.changed():
            raise ChangedLate(f"{late(name, round_num)}, and steps of this round may have missed it")

    def put_back(self) -> None:
        """Gives what other objects share with these (globals, attributes of classes) the values it had."""
        if self._before is not None:
            self._before.put_back_outside()


def late(name: str, round_num: int) -> str:
    """Says what has changed too late for a trial."""
    return f"`{name}` has changed by round {round_num}, and no trial before the first round had shown that it does"


def _look(roots: dict[str, Any]) -> PythonState | None:
    try:
        return PythonState(**roots)
    except (TooMuch, Refused):  # a trial has said so, and steps are plain
        return None
