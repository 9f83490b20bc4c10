"""Several runs in lockstep: each round of all of them is trained, and evaluated, as one program."""

import contextlib
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from flgo_hydra.federated.evaluation import Metrics
from flgo_hydra.federated.rounds import Evaluation, RoundWork, Run, Status, go_on
from flgo_hydra.federated.training import ServerState
from flgo_hydra.federated.users_code import no_silent_end

Key = TypeVar("Key", bound=Hashable)


def run_together(
    runs: Mapping[Key, Run],
    train: Callable[[Mapping[Key, RoundWork]], Mapping[Key, ServerState]],
    evaluate: Callable[[Mapping[Key, Evaluation]], Mapping[Key, Metrics]],
    ended: Callable[[Key, Status | Exception], None],
    current: Callable[[Key], AbstractContextManager[None]] = lambda key: contextlib.nullcontext(),
) -> None:
    """Runs all to their ends. Each keeps its own rounds, patience and end; one that ends or fails leaves the others.

    Args:
        runs: of `rounds`, none begun.
        train: the next server states of the runs that still go, for their next rounds; may be of different numbers.
            What it raises is raised here: no run has lost more than the round under way.
        evaluate: the metrics of runs' models.
        ended: told of each run how it ended, or what it raised.
        current: opened around whatever a run does by itself, such as computing metrics of the user's.
    """
    live = dict(runs)
    works: dict[Key, RoundWork] = {}
    evaluations: dict[Key, Evaluation] = {}

    def give(key: Key, answer: Any) -> None:
        try:
            with current(key):
                asked: RoundWork | Evaluation | Status | Exception = go_on(live[key], answer)
        except Exception as error:
            asked = error
        if isinstance(asked, Status | Exception):
            del live[key]
            ended(key, asked)
        elif isinstance(asked, Evaluation):
            evaluations[key] = asked
        else:
            works[key] = asked

    for key in list(live):
        give(key, None)
    while live:
        # All that are to be evaluated are, before any goes on: so they stay in step.
        while evaluations:
            asked = dict(evaluations)
            evaluations.clear()
            with no_silent_end():
                evaluated = evaluate(asked)
            for key, metrics in evaluated.items():
                give(key, metrics)
        if works:
            with no_silent_end():
                trained = train(works)
            works.clear()
            for key, server in trained.items():
                give(key, server)
