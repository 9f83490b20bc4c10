"""FLGo's options as ours. None is ignored in silence: what has no meaning here is an error, or a named warning."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flgo_hydra import mistakes
from flgo_hydra.config.option import OptionConf

OWN = tuple(own.name for own in fields(OptionConf))
_OFF = (-1, None)


@dataclass
class Settings:
    """What an `option` asks for."""

    overrides: dict[str, list[Any]]
    """by our key, the values (one, unless a grid is asked for)"""
    names: dict[str, str]
    """FLGo's name (as the caller wrote it) by our key"""
    written: dict[str, list[Any]]
    """by our key, the values as the caller wrote them"""
    gpus: list[Any] | None = None
    """`gpu`; None: not given"""
    algo_para: list[Any] | None = None
    is_quiet: bool = False
    flgo: dict[str, Any] = field(default_factory=dict)
    """what only FLGo can do, for an algorithm that FLGo runs"""


def read_option(option: Mapping[str, Any] | str | Path | None, is_grid: bool, is_flgo: bool = False) -> Settings:
    """Turns FLGo's option names and ours into ours.

    Args:
        option: a dict, or the path of a YAML file with one. The caller's own is left as it is.
        is_grid: whether a value may be a list, to be varied.
        is_flgo: whether FLGo will run it, which knows its own options.
    Raises:
        ValueError: an option that does not exist, cannot be had, or has a value that cannot be.
    """
    settings = Settings({}, {}, {})
    for name, value in _load(option).items():
        if not isinstance(name, str):
            raise ValueError(f"An option's name must be a text, but got {name!r}.")
        if name == "gpu":
            settings.gpus = _as_list(value)
        elif name == "algo_para":
            settings.algo_para = _as_list(value)
        elif name == "no_log_console":
            settings.is_quiet = _as_bool(name, value)
        elif name in _WITHOUT_MEANING:
            if is_flgo and not _says_nothing(name, value):
                settings.flgo[name] = value
            else:
                _refuse_or_warn(name, value)
        else:
            _add(settings, name, value, is_grid)
    return settings


def _load(option: Mapping[str, Any] | str | Path | None) -> Mapping[str, Any]:
    if option is None:
        return {}
    if isinstance(option, str | Path):
        from omegaconf import OmegaConf

        if not Path(option).is_file():
            raise ValueError(f"`option` must be a dict or a YAML file, but there is no file {option}.")
        option = OmegaConf.to_container(OmegaConf.load(option))  # type: ignore[assignment]
    if not isinstance(option, Mapping):
        raise ValueError(f"`option` must be a dict of options, but got {option!r}.")
    return option


def _add(settings: Settings, name: str, value: Any, is_grid: bool) -> None:
    key, convert = _RENAMED.get(name, (name, _same))
    if key not in OWN and "." not in key and "/" not in key:
        raise ValueError(mistakes.unknown_key(name, [*OWN, *_RENAMED, *_WITHOUT_MEANING, "gpu", "no_log_console"]))
    # Keys like model.hidden hold lists themselves: a list of lists varies them.
    holds_a_list = key not in OWN and key not in ("task.seed", "task.train_holdout", "task.local_test") and "." in key
    values = [value]
    if isinstance(value, list | tuple | set | range) or hasattr(value, "tolist"):
        many = value.tolist() if hasattr(value, "tolist") else list(value)
        is_axis = isinstance(many, list) and (not holds_a_list or any(isinstance(item, list | tuple) for item in many))
        if is_axis and not is_grid:
            raise ValueError(f"`{name}` must be one value, but got the list {value!r}. `tune` and `sweep` take lists.")
        if is_axis and not many:
            raise ValueError(f"`{name}` must have at least one value, but got an empty list.")
        values = many if is_axis else [value]
    if key in settings.overrides:
        raise ValueError(f"`{name}` and `{settings.names[key]}` are the same option: give one of them.")
    settings.names[key] = name
    settings.written[key] = values
    settings.overrides[key] = [convert(name, item) for item in values]


def _same(name: str, value: Any) -> Any:
    return value


def _off_is_null(name: str, value: Any) -> Any:
    """FLGo's -1 is our null."""
    return None if value in _OFF else value


def _batch_size(name: str, value: Any) -> Any:
    """Below 0: all samples. FLGo's 64.0 is 64."""
    if isinstance(value, int | float) and value < 0:
        return -1
    return int(value) if isinstance(value, float) and value >= 1 and value.is_integer() else value


def _half(name: str, value: Any) -> Any:
    """FLGo's default ratio; else what is typed."""
    return 0.5 if value is True else 0.0 if value is False else value


def _optimizer(name: str, value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _lr_schedule(name: str, value: Any) -> Any:
    return {"-1": "constant", "0": "step", "1": "divide_by_round"}.get(str(value), value)


_RENAMED: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "learning_rate": ("lr", _same),
    "learning_rate_decay": ("lr_decay", _same),
    "lr_scheduler": ("lr_schedule", _lr_schedule),
    "num_steps": ("num_steps", _off_is_null),
    "early_stop": ("early_stop", _off_is_null),
    "batch_size": ("batch_size", _batch_size),
    "optimizer": ("optimizer", _optimizer),
    "train_holdout": ("task.train_holdout", _same),
    "local_test": ("task.local_test", _half),
    "dataseed": ("task.seed", _same),
    "save_optimal": ("save_best", _same),
    "torch_num_threads": ("num_threads", _same),
}
"""Our key for FLGo's name, and how its values translate."""

_CHECKPOINTS = (
    "A run writes checkpoints by itself, as often as costs under 1 % of its time (`checkpoint_interval` changes it), "
    "and goes on from them when it is retried or the call is repeated with the same `folder`."
)
_IN_MEMORY = "A task's samples are in memory once, shared by all runs."
_BATCHED = "How clients are computed is not FLGo's matter here: there is no DataLoader and no client process."
_WITHOUT_MEANING: dict[str, tuple[tuple[Any, ...], bool, str]] = {
    # name: (values that say nothing, whether others change the numbers, why)
    "log_file": ((True, False), False, ""),  # each attempt's output is kept whatever this says
    "log_level": (("INFO",), False, "Each attempt's output is in attempt-<n>.log of the run's folder."),
    "no_tqdm": ((True, False), False, ""),
    "no_overwrite": ((True, False), False, ""),  # nothing is ever overwritten
    "save_checkpoint": (("",), False, _CHECKPOINTS),
    "load_checkpoint": (("",), False, _CHECKPOINTS),
    "check_interval": ((1,), False, _CHECKPOINTS),
    "load_mode": (("", "mem", "mmap"), False, ""),  # what they are for is always so
    "use_cache": ((False,), False, _IN_MEMORY),
    "num_workers": ((0,), False, _BATCHED),
    "pin_memory": ((False,), False, _BATCHED),
    "num_parallels": ((1,), False, _BATCHED),
    "parallel_type": (("r", "t", "p"), False, ""),
    "test_parallel": ((False,), False, _BATCHED),
    "test_batch_size": ((512,), False, "Samples are evaluated as many at once as fit the device."),
    "server_with_cpu": ((False,), False, "The server's model is on the run's device."),
    "test_holdout": ((0, 0.0), True, "The test set stays whole; validation samples are the clients' (train_holdout)."),
    "local_test_ratio": ((0.5,), True, "The share itself is `task.local_test`."),
    "drop_last": ((False,), True, "An epoch's last batch is used."),
    "availability": (("IDL",), True, "FLGo's system simulator runs with algorithm=flgo only."),
    "connectivity": (("IDL",), True, "FLGo's system simulator runs with algorithm=flgo only."),
    "completeness": (("IDL",), True, "FLGo's system simulator runs with algorithm=flgo only."),
    "responsiveness": (("IDL",), True, "FLGo's system simulator runs with algorithm=flgo only."),
    "num_edge_rounds": ((5,), True, "There are no edge servers."),
}


def _says_nothing(name: str, value: Any) -> bool:
    values = value if isinstance(value, list | tuple) else [value]
    return all(item in _WITHOUT_MEANING[name][0] for item in values)


def _refuse_or_warn(name: str, value: Any) -> None:
    if _says_nothing(name, value):
        return
    _, changes_numbers, why = _WITHOUT_MEANING[name]
    if changes_numbers:
        raise ValueError(f"`{name}={value!r}` cannot be had: {why} Leave it out.")
    warnings.warn(f"`{name}={value!r}` has no effect: {why}", UserWarning, stacklevel=2)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple | range) else [value]


def _as_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, but got {value!r}.")
    return value
