"""A run leaves the modules of the user's own as it found them.

What a model or an algorithm keeps outside its objects (a counter in a global, a list of a class) belongs to the run
that keeps it. A process runs many jobs, and which ones depends on slots, order and restarts: so each finds such things
as they were after the import, and its numbers do not depend on who ran before.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from flgo_hydra.job.imports import load

if TYPE_CHECKING:  # torch is imported when a run starts, not for --help and typing mistakes
    from flgo_hydra.federated.backend.python_state import PythonState

_log = logging.getLogger("flgo_hydra")


@contextlib.contextmanager
def modules_kept(targets: Mapping[str, str]) -> Iterator[None]:
    """Puts back what the code behind a config's model, algorithm and metrics changes outside its objects.

    What cannot be looked at or put back stays as it is.

    Args:
        targets: of that code, by the config's keys.
    """
    kept = None
    # What is wrong with a target, whoever needs it will say.
    with contextlib.suppress(Exception):
        kept = _state_of_code(targets)
    try:
        yield
    finally:
        if kept is not None:
            try:
                kept.put_back_outside()
                now = _state_of_code(targets)
                if now is not None and (name := kept.changed(now)):
                    _log.warning("`%s`, which other runs of this process find so, has changed and stays so", name)
            except Exception as error:
                _log.warning("what this run has changed outside itself stays so: %s", error)


def _state_of_code(targets: Mapping[str, str]) -> "PythonState | None":
    own = {key: target for key, target in targets.items() if not target.startswith("flgo_hydra.")}
    if not own:
        return None
    from flgo_hydra.federated.backend.python_state import PythonState, TooMuch

    roots: dict[str, Any] = {key: load(target, key) for key, target in own.items()}
    try:
        return PythonState(**roots)
    except TooMuch as error:
        _log.warning("other runs of this process may find what this one changes in its modules: %s", error)
        return None
