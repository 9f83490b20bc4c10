"""Federated-learning experiments as a grid: Hydra composes it, every point runs, Optuna's study says which won.

From Python, through the code that `python -m flgo_hydra` runs:

    from flgo_hydra import run, sweep

    print(run("lr=0.05", "num_rounds=5").best)
    print(sweep("lr=0.1,0.01", "algorithm=fedavg,fedprox").best)

and with FLGo's functions and option names:

    import flgo_hydra as flgo

    best = flgo.tune("digits", "fedavg", {"learning_rate": [0.1, 0.01], "num_rounds": 5})

A script needs no `if __name__ == "__main__":`; classes that it defines are sent to the workers.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flgo_hydra.api.calls import run, sweep
    from flgo_hydra.api.flgo import Optimum, Runner, init, multi_init_and_run, tune
    from flgo_hydra.api.results import Run, Sweep
    from flgo_hydra.api.schedulers import AutoScheduler, BasicScheduler, RandomScheduler
    from flgo_hydra.federated.algorithm.base import Algorithm

_PLACES = {
    "run": "api.calls",
    "sweep": "api.calls",
    "init": "api.flgo",
    "multi_init_and_run": "api.flgo",
    "tune": "api.flgo",
    "Runner": "api.flgo",
    "Optimum": "api.flgo",
    "Run": "api.results",
    "Sweep": "api.results",
    "AutoScheduler": "api.schedulers",
    "BasicScheduler": "api.schedulers",
    "RandomScheduler": "api.schedulers",
    "Algorithm": "federated.algorithm.base",
}
"""Imported when they are asked for: workers and `--help` import this package too."""

__all__ = [
    "Algorithm",
    "AutoScheduler",
    "BasicScheduler",
    "Optimum",
    "RandomScheduler",
    "Run",
    "Runner",
    "Sweep",
    "init",
    "multi_init_and_run",
    "run",
    "sweep",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
