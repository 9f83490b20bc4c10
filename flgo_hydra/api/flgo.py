"""FLGo's functions with FLGo's arguments: `init`, `multi_init_and_run`, `tune`.

Each translates its arguments into overrides and hands them to the code that the command line runs (`calls.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flgo_hydra.api import calls
from flgo_hydra.api.options import Settings, read_option
from flgo_hydra.api.parts import Objects, algorithm_overrides, is_flgo, model_overrides, name_of, task_overrides
from flgo_hydra.api.results import Run, Sweep
from flgo_hydra.api.schedulers import Devices, as_scheduler, device_list, devices_override
from flgo_hydra.api.shipped import check_unchanged, target_of
from flgo_hydra.overrides import override, varied
from flgo_hydra.study.space.grid import parse_point

_RUNNER_KEYS = ("task", "algorithm", "option", "model", "Logger", "Simulator", "scene", "metrics")


@dataclass
class _Request:
    """What is asked of one runner, or of a grid of them."""

    overrides: list[str]
    """of task, algorithm, model and metrics"""
    settings: Settings
    objects: Objects
    names: dict[str, str]
    option: dict[str, Any] = field(default_factory=dict)
    """as the caller wrote it"""

    def fixed(self) -> list[str]:
        """Overrides of a runner whose options have one value each."""
        return [*self.overrides, *(override(key, values[0]) for key, values in self.settings.overrides.items())]


class Runner:
    """One run, checked and ready. `flgo_hydra.init` makes it."""

    def __init__(self, request: _Request, folder: str | None) -> None:
        gpus = device_list(request.settings.gpus or [])
        if len(gpus) > 1:
            raise ValueError(f"A run takes one device, but `gpu` is {gpus}. `multi_init_and_run` and `tune` take many.")
        device = [] if request.settings.gpus is None else [override("device", _torch_device(gpus))]
        self.overrides = [*request.fixed(), *device]
        self.config = calls.check(self.overrides)
        self._request = request
        self._folder = folder

    def run(self) -> Run:
        """Trains, and returns the run: `.rounds`, `.best`, and `.output()`, FLGo's dict of lists."""
        for target, value in self._request.objects.items():
            check_unchanged(target, value)
        folder = [override("hydra.run.dir", self._folder)] if self._folder is not None else []
        return calls.run_job([*self.overrides, *folder], is_quiet=self._request.settings.is_quiet)


class Optimum(dict[str, Any]):
    """The optimal option, as `tune` returns it: FLGo's dict of option names and values, and what it is optimal in."""

    def __init__(self, option: Mapping[str, Any], sweep: Sweep) -> None:
        super().__init__(option)
        self.sweep = sweep
        """all runs"""

    @property
    def run(self) -> Run:
        return self.sweep.best

    @property
    def value(self) -> float:
        """The best valid_loss, or what `monitor` names."""
        return self.run.value

    @property
    def round(self) -> int | None:
        """The round at which it occurs."""
        return self.run.round

    @property
    def study(self) -> Any:
        """The Optuna study (`optuna.Study`)."""
        return self.sweep.study


def init(
    task: Any,
    algorithm: Any,
    option: Mapping[str, Any] | str | None = None,
    model: Any = None,
    Logger: Any = None,
    Simulator: Any = None,
    scene: str = "horizontal",
    *,
    metrics: Any = None,
    folder: str | None = None,
) -> Runner:
    """Returns a runner, checked: a wrong task, algorithm or option is an error here.

        import flgo_hydra as flgo
        from flgo_hydra.federated.algorithm import fedavg

        runner = flgo.init("digits", fedavg, {"learning_rate": 0.05, "num_rounds": 5})
        result = runner.run()
        print(result.best["test_accuracy"], result.output()["val_loss"])

    Args:
        task: a name (`python -m flgo_hydra --help` lists them), FLGo's task folder, or a dict
            {"name": "mnist5k", "partition": "dirichlet", "partition.alpha": 0.1}.
        algorithm: a name, a module or class of ours, your own subclass of `Algorithm`, a module of FLGo's; with its
            hyper-parameters as (MyAlgorithm, {"beta": 0.9}).
        option: FLGo's options and ours, or a YAML file of them. Keys with dots reach anywhere (`task.num_clients`).
        model: a name, or a class or function that builds a torch.nn.Module.
        metrics: your own metrics, a function or class (`federated/metrics.py`); FLGo's `Logger` is not called.
        folder: where the run's files go, and whether it goes on with what lies there; None: outputs/<date>/<time>.
    Raises:
        ValueError: something cannot be; nothing has trained.
    """
    return Runner(_request(task, algorithm, option, model, Logger, Simulator, scene, metrics, is_grid=False), folder)


def multi_init_and_run(
    runner_args: Sequence[Any],
    devices: Devices = (),
    scheduler: Any = None,
    *,
    folder: str | None = None,
) -> list[dict[str, Any]]:
    """Runs many runners side by side and returns their records in the same order.

        import flgo_hydra as flgo
        from flgo_hydra.federated.algorithm import fedavg, fedprox

        runners = [{"task": "digits", "algorithm": a, "option": {"num_rounds": 5}} for a in (fedavg, fedprox)]
        for record in flgo.multi_init_and_run(runners):
            print(record["option"]["algorithm"], record["test_loss"])

    Args:
        runner_args: dicts with `task`, `algorithm` and, if wanted, `option`, `model` and `metrics`, or tuples of them
            in this order, as for `init`.
        devices: indices or UUIDs of GPUs; none: all there are, or the CPU's cores; -1: the CPU.
        scheduler: AutoScheduler(...), BasicScheduler(...), RandomScheduler(...), or your own.
        folder: where the files go, and whether the call goes on with what lies there; None: multirun/<date>/<time>.
    Returns:
        dicts with a list for each metric (index 0 before training), `option` (with `task` and `algorithm`), `status`
        and `folder`. A runner that failed for good has status "failed" and `error`.
    Raises:
        ValueError: something cannot be, in any of the runners; nothing has trained.
    """
    if isinstance(runner_args, Mapping | str) or not isinstance(runner_args, Sequence) or not runner_args:
        raise ValueError(f"`runner_args` must be a list with at least one runner, but got {runner_args!r}.")
    requests = []
    for i, arguments in enumerate(runner_args):
        try:
            requests.append(_request(**_runner_keywords(arguments), is_grid=False))
        except ValueError as error:
            raise ValueError(f"runner_args[{i}]: {error}") from error
    points = [tuple(request.fixed()) for request in requests]
    common = [text for text in points[0] if all(text in point for point in points)]
    own = [tuple(text for text in point if text not in common) for point in points]
    gpus = [gpu for request in requests for gpu in device_list(request.settings.gpus or [])]
    # A text of one override would be split at its spaces: points travel as lists.
    listed = [override("hydra.sweeper.points", [list(point) for point in own])] if any(own) else []
    sweep = _sweep([*common, *listed], requests, device_list(devices) or gpus, scheduler, folder)
    return [
        sweep.by_point[point].output(request.option, **request.names)
        for point, request in zip(own, requests, strict=True)
    ]


def tune(
    task: Any,
    algorithm: Any,
    option: Mapping[str, Any] | str | None = None,
    model: Any = None,
    Logger: Any = None,
    Simulator: Any = None,
    scene: str = "horizontal",
    scheduler: Any = None,
    *,
    metrics: Any = None,
    folder: str | None = None,
) -> Optimum:
    """Runs every combination of the options that are lists, prints the optimal one, and returns it.

        import flgo_hydra as flgo

        best = flgo.tune("digits", "fedavg", {"learning_rate": [0.1, 0.01], "num_steps": [1, 5], "num_rounds": 5})
        print(best["learning_rate"], best.value, best.round, best.study.best_trial.number)

    Args:
        option: as for `init`, where a value may be a list; `gpu` lists the devices.
        scheduler: as for `multi_init_and_run`.
    Returns:
        the optimal option, a dict with FLGo's names, which also has `value`, `round`, `run`, `sweep` and `study`.
    Raises:
        ValueError: something cannot be (nothing has trained), or no combination has a finite valid_loss.
    """
    request = _request(task, algorithm, option, model, Logger, Simulator, scene, metrics, is_grid=True)
    settings = request.settings
    axes = [varied(key, values) for key, values in settings.overrides.items()]
    devices = device_list(settings.gpus or [])
    sweep = _sweep([*request.overrides, *axes], [request], devices, scheduler, folder)
    best = sweep.best
    found = parse_point(best.overrides)
    optimal = {settings.names[key]: _as_written(settings, key, found) for key in settings.overrides}
    if settings.algo_para:
        optimal["algo_para"] = settings.algo_para
    optimum = Optimum(optimal, sweep)
    _print_optimum(optimal, optimum)
    return optimum


def _request(
    task: Any,
    algorithm: Any,
    option: Any,
    model: Any,
    Logger: Any,
    Simulator: Any,
    scene: str | None,
    metrics: Any,
    is_grid: bool,
) -> _Request:
    if Logger is not None:
        raise ValueError(
            f"`Logger={_called(Logger)}` cannot be had: every run records its rounds by itself. For values of your own "
            "give `metrics`, a function (model, task, record) that returns them by name."
        )
    if Simulator is not None:
        raise ValueError(f"`Simulator={_called(Simulator)}` cannot be had: clients are always there, and finish.")
    if scene not in (None, "horizontal"):
        raise ValueError(f"`scene` must be 'horizontal', but got {scene!r}.")
    settings = read_option(option, is_grid, is_flgo(algorithm))
    objects: Objects = {}
    overrides = [*task_overrides(task), *algorithm_overrides(algorithm, settings.algo_para, objects)]
    overrides += model_overrides(model, objects)
    overrides += [override(f"+algorithm.option.{name}", value) for name, value in settings.flgo.items()]
    if metrics is not None:
        overrides.append(override("metrics", metrics if isinstance(metrics, str) else target_of(metrics, objects)))
    names = {"task": name_of(task, "task"), "algorithm": name_of(algorithm, "algorithm")}
    if model is not None:
        names["model"] = name_of(model, "model")
    written = {settings.names[key]: values[0] for key, values in settings.written.items()}
    return _Request(overrides, settings, objects, names, written)


def _runner_keywords(arguments: Any) -> dict[str, Any]:
    """A runner's arguments by name, from a dict or a tuple."""
    if isinstance(arguments, Mapping):
        unknown = [key for key in arguments if key not in _RUNNER_KEYS]
        if unknown:
            raise ValueError(f"a runner has no {unknown[0]!r}; it has {', '.join(_RUNNER_KEYS)}.")
        given = dict(arguments)
    elif isinstance(arguments, tuple | list):
        if len(arguments) > len(_RUNNER_KEYS):
            raise ValueError(f"a runner has {len(_RUNNER_KEYS)} parts at most, but got {len(arguments)}.")
        given = dict(zip(_RUNNER_KEYS, arguments, strict=False))
    else:
        raise ValueError(f"a runner is a dict or a tuple, but got {arguments!r}.")
    missing = [key for key in ("task", "algorithm") if given.get(key) is None]
    if missing:
        raise ValueError(f"a runner needs {' and '.join(f'`{key}`' for key in missing)}, but got {arguments!r}.")
    return {key: given.get(key) for key in _RUNNER_KEYS}


def _sweep(
    overrides: list[str], requests: list[_Request], devices: Sequence[int | str], scheduler: Any, folder: str | None
) -> Sweep:
    scheduler = as_scheduler(scheduler)
    chosen = devices_override(list(devices) or getattr(scheduler, "devices", []))
    more = [] if chosen is None else [f"hydra.launcher.devices={chosen}"]
    if folder is not None:
        more.append(override("hydra.sweep.dir", str(Path(folder))))
    is_quiet = all(request.settings.is_quiet for request in requests)
    if is_quiet:
        more.append("hydra.launcher.view=none")
    objects = {target: value for request in requests for target, value in request.objects.items()}
    return calls.run_sweep([*overrides, *more], objects, scheduler, is_quiet)


def _as_written(settings: Settings, key: str, found: Mapping[str, Any]) -> Any:
    """The optimal value as the caller wrote it: -1 where our config has null."""
    values = settings.overrides[key]
    if key not in found:
        return settings.written[key][0]
    same = [i for i, value in enumerate(values) if parse_point([override(key, value)])[key] == found[key]]
    return settings.written[key][same[0]]


def _print_optimum(optimal: Mapping[str, Any], optimum: Optimum) -> None:
    width = max([len(name) for name in optimal], default=0)
    lines = [f"{name:{width}} |{value}" for name, value in optimal.items()]
    rule = "-" * max([len(line) for line in lines], default=0)
    print("\nThe optimal combination of hyper-parameters is:")
    print("\n".join([rule, *lines, rule]))
    result = optimum.run.result
    assert result is not None
    least = "maximal" if result.monitor.is_maximized else "minimal"
    what = "validation loss" if result.monitor.metric == "valid_loss" else result.monitor.metric
    print(f"The {least} {what} {optimum.value:.6g} occurs at the round {optimum.round}", flush=True)


def _torch_device(gpus: Sequence[int | str]) -> str:
    """The `device` that FLGo's `gpu` means."""
    if not gpus or gpus[0] in (-1, "-1", "cpu"):
        return "cpu"
    if isinstance(gpus[0], bool) or not str(gpus[0]).isdecimal():
        raise ValueError(f"`gpu` must be the index of a GPU, or [] for the CPU, but got {gpus[0]!r}.")
    return f"cuda:{gpus[0]}"


def _called(given: Any) -> str:
    return str(getattr(given, "__name__", given))
