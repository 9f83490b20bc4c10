"""Several runs in lockstep: each round of all of them is trained as one program."""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from flgo_hydra.federated.rounds import RoundWork, Run, Status
from flgo_hydra.federated.training import ServerState

Key = TypeVar("Key", bound=Hashable)


def run_together(
    runs: Mapping[Key, Run],
    train: Callable[[Mapping[Key, RoundWork]], Mapping[Key, ServerState]],
    ended: Callable[[Key, Status | Exception], None],
) -> None:
    """Runs all to their ends. Each keeps its own rounds, patience and end; one that ends or fails leaves the others.

    Args:
        runs: of `rounds`, none begun.
        train: the next server states of the runs that still go, for their next rounds; may be of different numbers.
            What it raises is raised here: no run has lost more than the round under way.
        ended: told of each run how it ended, or what it raised.
    """
    live = dict(runs)
    works: dict[Key, RoundWork] = {}

    def go_on(key: Key, server: ServerState | None) -> None:
        try:
            works[key] = next(live[key]) if server is None else live[key].send(server)
        except StopIteration as end:
            del live[key]
            ended(key, end.value)
        except Exception as error:
            del live[key]
            ended(key, error)

    for key in list(live):
        go_on(key, None)
    while live:
        servers = train(works)
        works.clear()
        for key, server in servers.items():
            go_on(key, server)
