"""FLGo's own algorithms and benchmarks, run by FLGo inside our job.

FLGo trains: its task folder, its benchmark's data and model, its algorithm's Server and Client. Ours are the config,
the records, early stop, divergence, requests to stop, and all around the job. A logger of ours stands where FLGo's
SimpleLogger would: it evaluates in the same order (which FLGo's random numbers depend on), weighs the clients'
validation metrics by their training samples (leaving out clients without validation samples), and tells a `Watcher`.

FLGo's state cannot be taken up again: a run that is stopped or killed starts from round 0. One process runs one job:
FLGo changes its classes each time it is initialised.
"""

import contextlib
import importlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.utils.data import Subset

from flgo_hydra import reference
from flgo_hydra.config.algorithm import FlgoConf
from flgo_hydra.config.option import OptionConf
from flgo_hydra.config.task import TaskConf
from flgo_hydra.federated.flgo_task import is_task_folder, task_sha256
from flgo_hydra.federated.rounds import RunState, Status, Watcher
from flgo_hydra.federated.training import ServerState

INSTALL = "pip install 'flgo_hydra[flgo]'"
_OPTIMIZERS = {
    "sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "adagrad": "Adagrad", "adadelta": "Adadelta",
}  # fmt: skip
_SCHEDULES = {"constant": "-1", "step": "0", "divide_by_round": "1"}
_ALL_NAN = "parameters of nan value"


def run_flgo(*_: Any, **__: Any) -> None:
    """What `algorithm=flgo` names; the job is run by `run_rounds` below."""
    raise AssertionError("job/flgo.py runs it")


def benchmark_model() -> nn.Module:
    """What `model=flgo` names: the model of the benchmark, which FLGo builds."""
    raise ValueError("`model=flgo` is the model of FLGo's benchmark, for `algorithm=flgo` only. Choose another model.")


def check(option: OptionConf, task: TaskConf, algorithm: FlgoConf, model: Mapping[str, Any]) -> None:
    """Raises ValueError for what FLGo could not run, without starting it."""
    if importlib.util.find_spec("flgo") is None:
        raise ValueError(f"`algorithm=flgo` needs the package flgo, which is not installed: {INSTALL}")
    if task.path is None or not is_task_folder(task.path):
        raise ValueError(
            "`algorithm=flgo` needs a task folder that FLGo's gen_task has written: `task=flgo task.path=./mnist_iid`, "
            f"but `task.path` is {task.path}{'' if task.path is None else f', seen from {Path.cwd()}'}."
        )
    without = {"metrics": None, "initial_weights": None, "dtype": "float32"}
    for key, value in without.items():
        if getattr(option, key) != value:
            raise ValueError(f"`{key}` has no effect with algorithm=flgo, but got {getattr(option, key)!r}.")
    if option.optimizer not in _OPTIMIZERS:
        raise ValueError(f"`optimizer` must be one of {', '.join(_OPTIMIZERS)} with algorithm=flgo.")
    if option.lr_schedule == "cosine":
        raise ValueError("`lr_schedule=cosine` is not among FLGo's schedules.")
    if model["_target_"].startswith("flgo_hydra.") and not model["_target_"].endswith(".benchmark_model"):
        raise ValueError(
            f"`algorithm=flgo` trains the benchmark's model (`model=flgo`) or your own (`model=custom "
            f"model._target_=my_models.Net`), but got model={model['name']}."
        )
    _import_algorithm(algorithm.module)


def data_sha256(task: TaskConf) -> str:
    """A hash of the task's content as a run of ours has it; where the samples are not among ours, of FLGo's folder."""
    from flgo_hydra.federated.data.task import build_task

    try:
        return build_task(task).data_sha256
    except ValueError:
        return task_sha256(task.path)


def flgo_option(option: OptionConf, task: TaskConf, algorithm: FlgoConf, device: str) -> dict[str, Any]:
    """Our options by FLGo's names. Early stop and evaluation of the last round are not FLGo's matter."""
    schedule = option.lr_schedule
    return {
        "num_rounds": option.num_rounds,
        "proportion": option.proportion,
        "sample": option.sample,
        "aggregate": option.aggregate,
        "num_epochs": option.num_epochs,
        "num_steps": -1 if option.num_steps is None else option.num_steps,
        "batch_size": option.batch_size,
        "learning_rate": option.lr,
        "lr_scheduler": _SCHEDULES.get(schedule, schedule),
        "learning_rate_decay": option.lr_decay,
        "optimizer": _OPTIMIZERS[option.optimizer],
        "momentum": option.momentum,
        "weight_decay": option.weight_decay,
        "clip_grad": option.clip_grad,
        "eval_interval": option.eval_interval,
        "train_holdout": task.train_holdout,
        **({"local_test": True, "local_test_ratio": task.local_test} if task.local_test else {}),
        "seed": option.seed,
        "dataseed": task.seed,
        "gpu": [] if device == "cpu" else [-1] if device == "mps" else [int(device.partition(":")[2] or 0)],
        "torch_num_threads": option.num_threads or 1,
        "algo_para": list(algorithm.para),
        "early_stop": -1,
        "no_log_console": True,
        "no_tqdm": True,
        **algorithm.option,
    }


def run_rounds(
    option: OptionConf,
    task: TaskConf,
    algorithm: FlgoConf,
    model: Mapping[str, Any],
    device: str,
    state: RunState,
    watcher: Watcher,
    clock: Callable[[], float] = time.perf_counter,
) -> Status:
    """Has FLGo train from round 0, changing `state`, until the run ends."""
    flgo = importlib.import_module("flgo")
    wanted = flgo_option(option, task, algorithm, device)
    with _arguments_hidden():
        known = importlib.import_module("flgo.utils.fflow").read_option_from_command()
        unknown = [name for name in algorithm.option if name not in known]
        if unknown:
            raise ValueError(f"`algorithm.option` has {unknown[0]!r}, which FLGo does not know: {sorted(known)}.")
        _mend_datasets(task)
        kind = _make_logger(option, state, watcher, clock)
        runner = flgo.init(task.path, _import_algorithm(algorithm.module), wanted, model=_model(model), Logger=kind)
        logger = runner.gv.logger
        try:
            runner.run()
        except ValueError as error:
            if _ALL_NAN not in str(error):
                raise
            state.round_num = runner.current_round
            return Status.DIVERGED
    return logger.status or Status.COMPLETED


def _make_logger(option: OptionConf, state: RunState, watcher: Watcher, clock: Callable[[], float]) -> type:
    base = importlib.import_module("flgo.experiment.logger").BasicLogger
    started = clock()

    class WatchingLogger(base):  # type: ignore[misc,valid-type]
        """Tells the watcher of each evaluated round, and FLGo when to end."""

        status: Status | None = None

        def check_if_log(self, round_num: int, eval_interval: int = -1) -> bool:
            due = super().check_if_log(round_num, eval_interval)
            return bool(due or round_num == option.num_rounds)

        def log_once(self, *args: Any, **kwargs: Any) -> None:
            state.round_num = 0 if self.current_round < 0 else self.current_round
            state.last = self._evaluate()
            state.seconds = clock() - started
            is_best = state.judge()
            if is_best and option.save_best:
                state.server = ServerState(dict(self.coordinator.model.state_dict()), {})
            watcher.evaluated(state, is_best)
            losses = [state.last[name] for name in ("valid_loss", "test_loss") if name in state.last]
            if not all(math.isfinite(loss) for loss in losses):
                self.status = Status.DIVERGED
            elif state.patience.is_over(state.round_num, option.early_stop):
                self.status = Status.EARLY_STOPPED

        def early_stop(self) -> bool:
            """FLGo asks after each round."""
            state.round_num = self.coordinator.current_round
            state.seconds = clock() - started
            if self.status is None and state.round_num < option.num_rounds:
                self.status = watcher.finished_round(state)
            return self.status is not None

        def save_output_as_json(self, *args: Any, **kwargs: Any) -> None:
            """The record is ours; FLGo's would lie in the task folder, under a name that runs share."""

        def _evaluate(self) -> dict[str, float]:
            # In SimpleLogger's order: evaluation draws from the random numbers that training draws from.
            test = {f"test_{name}": float(value) for name, value in self.coordinator.test().items()}
            by_client = self.coordinator.global_test(flag="val")
            sizes = [c.datavol for c in self.participants if getattr(c, "val_data", None) is not None]
            valid = {f"valid_{name}": _weighted(values, sizes) for name, values in by_client.items()}
            first = [name for name in ("valid_loss", "valid_accuracy") if name in valid]
            return {**{name: valid[name] for name in first}, **valid, **test}

    return WatchingLogger


def _weighted(values: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean over clients, weighted by their training samples."""
    return sum(n * float(value) for n, value in zip(sizes, values, strict=True)) / sum(sizes)


def _import_algorithm(module: str) -> ModuleType:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module + ".").startswith(error.name + "."):
            raise ValueError(f"`algorithm.module={module}`: there is no module {error.name!r}.") from error
        raise
    if not (hasattr(found, "Server") and hasattr(found, "Client")):
        raise ValueError(f"`algorithm.module={module}` must define Server and Client, as FLGo's algorithms do.")
    return found


def _model(parameters: Mapping[str, Any]) -> Any:
    """None for the benchmark's; a user's own as FLGo wants it."""
    target = str(parameters["_target_"])
    if target.endswith(".benchmark_model"):
        return None
    function = reference.load(target, "model._target_")
    given = {key: value for key, value in parameters.items() if key not in ("_target_", "name")}
    convert = importlib.import_module("flgo").convert_model

    def build() -> nn.Module:
        model = reference.call(function, given, {}, "model")
        if not isinstance(model, nn.Module):
            raise ValueError(f"`model._target_={target}` must return a torch.nn.Module, but got {model!r}.")
        return model

    return convert(build, str(parameters["name"]))


def _mend_datasets(task: TaskConf) -> None:
    """Recent torch refuses subsets that read one sample in their own way and many in torch's; FLGo's do that."""
    from flgo_hydra.federated.flgo_task import read_benchmark

    assert task.path is not None
    benchmark = read_benchmark(task.path)
    try:
        core = importlib.import_module(f"{benchmark}.core")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"The task {task.path} was made with the benchmark {benchmark!r}, which cannot be imported from "
            f"{Path.cwd()}: {error}."
        ) from error
    dataset = getattr(core.TaskPipe, "TaskDataset", None)
    if isinstance(dataset, type) and issubclass(dataset, Subset) and "__getitems__" not in vars(dataset):
        dataset.__getitems__ = lambda self, indices: [self[i] for i in indices]  # type: ignore[method-assign]


@contextlib.contextmanager
def _arguments_hidden() -> Iterator[None]:
    """FLGo reads options from the command line, which is ours."""
    before = sys.argv
    sys.argv = sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = before
