"""Federated-learning experiments as a grid: Hydra composes it, every point runs, Optuna's study says which won.

From Python, through the code that `python -m flgo_hydra` runs:

    from flgo_hydra import run, sweep

    print(run("lr=0.05", "num_rounds=5").best)
    print(sweep("lr=0.1,0.01", "algorithm=fedavg,fedprox").best)

and with FLGo's functions and option names:

    import flgo_hydra as flgo

    best = flgo.tune("digits", "fedavg", {"learning_rate": [0.1, 0.01], "num_rounds": 5})

A script needs no `if __name__ == "__main__":`; classes that it defines are sent to the workers.

How a value travels, in `python -m flgo_hydra -m lr=0.1,0.01`, from the shell to the weight:

    1   __main__._run                     text; Hydra's main calls the sweeper
    2   study.sweeper.StudySweeper.sweep  text
    3   study.space.grid.read_grid        `Override` -> an axis: `lr` and the texts of its values
    4   study.space.grid.Grid.points      a point: `("lr=0.1",)`
    5   study.space.points.PointChecker   asks the composer, and checks what the config refers to
    6   composer.Composer                 `Composed`: the config, typed, and its identity; kept for the launcher
    7   study.search.GridSource           a job of the study, whose parameters are typed by Optuna's kinds
    8   launch.launcher                   `submit` takes the composed config, and pickles it
    9   launch.queue, launch.processes.pool   bytes that wait for a device
    10  launch.processes.forkserver       forks; the bytes are an unnamed file
    11  launch.processes.worker.run_job   the config again; Hydra's `run_job` makes the folder
    12  app.job                           typed: `Conf.lr`
    13  job.native.train, job.preparation the option of the run
    14  federated.rounds.rounds           `schedule.lr_at`: the float of a round, `hyper["lr"]`
    15  federated.backend.choice          who trains
    16  federated.backend.vmap            `Numbers(hyper)`
    17  federated.backend.lane_tensors    `set_numbers`: a float beside the lanes
    18  recorder.writer.Program           `run`, the one number of a call: `w.addmm_(x, g, alpha=-lr)`

and of `valid_loss` back: `federated.evaluation` computes it, `federated.rounds` puts it into `state.last` and asks the
`objective` whether it is the best; `job.watcher` appends it to rounds.jsonl, and reports it up the pipe
(`launch.processes.channel`, `launch.processes.pool`, `launch.queue`, `launch.launcher`) to `study.stored.live`, which
tells the study. At the end `record.result` has the best; from there `study.trials` makes the row (`report.rows.Row`)
that study, tables and summary are told of.
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
