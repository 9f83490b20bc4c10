"""Task, algorithm and model as a Python program gives them: names, dicts, classes, functions, FLGo's modules."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import ModuleType
from typing import Any

from flgo_hydra.api.shipped import target_of
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.config.schemas import SCHEMAS
from flgo_hydra.federated import flgo_task
from flgo_hydra.help import group_choices
from flgo_hydra.overrides import override

Objects = dict[str, Callable[..., Any]]


def task_overrides(task: Any) -> list[str]:
    """Overrides for a task: a name, FLGo's task folder, or {"name": "mnist5k", "partition": "dirichlet", …}.

    A dict's other keys stand below `task`: {"name": "digits", "num_clients": 10, "partition.alpha": 0.1}.
    """
    if isinstance(task, str):
        if task not in group_choices("task") and flgo_task.is_task_folder(task):
            return ["task=flgo", override("task.path", task)]
        if "/" in task and task not in group_choices("task"):
            raise ValueError(
                f"`task` must be one of {', '.join(group_choices('task'))}, or a folder that FLGo has written, with "
                f"data.json and info, but got {task!r}."
            )
        return [override("task", task)]
    if isinstance(task, Mapping):
        rest = dict(task)
        name, partition = rest.pop("name", None), rest.pop("partition", None)
        if not isinstance(name, str):
            raise ValueError(f'`task` as a dict must have a "name", but got {task!r}.')
        chosen = task_overrides(name) + ([override("task/partition", partition)] if partition is not None else [])
        return chosen + [override(f"task.{key}", value) for key, value in rest.items()]
    raise ValueError(f"`task` must be a name, the path of FLGo's task folder, or a dict, but got {task!r}.")


def algorithm_overrides(algorithm: Any, algo_para: list[Any] | None, objects: Objects) -> list[str]:
    """Overrides for an algorithm.

    Args:
        algorithm: a name; a module or class of ours, or the user's own subclass of `Algorithm`; a module of FLGo's; or
            one of these with hyper-parameters, (MyAlgorithm, {"beta": 0.9}) or {"algorithm": MyAlgorithm, "beta": 0.9}.
        algo_para: FLGo's list of hyper-parameters, in the order in which the algorithm has them.
        objects: gets what workers cannot import.
    """
    algorithm, numbers = _with_parameters("algorithm", algorithm)
    if isinstance(algorithm, ModuleType) and _is_flgo(algorithm):
        para = [override("algorithm.para", algo_para)] if algo_para else []
        return ["algorithm=flgo", override("algorithm.module", algorithm.__name__), *para, *_values(numbers, "")]
    if isinstance(algorithm, str):
        name = algorithm
    else:
        kind = _algorithm_class(algorithm)
        named = {_target_of_choice(choice): choice for choice in group_choices("algorithm")}
        name = named.get(f"{kind.__module__}.{kind.__qualname__}", "custom")
    if name != "custom":
        numbers |= _positional(name, algo_para, list(_parameters_of(name)))
        return [override("algorithm", name), *_values(numbers, "")]
    if isinstance(algorithm, str):
        raise ValueError("`algorithm='custom'` has no class: give the class itself.")
    numbers |= _positional(kind.__name__, algo_para, list(numbers))
    own = [
        override("algorithm._target_", target_of(kind, objects)),
        override("algorithm.name", _own_name("algorithm", kind)),
    ]
    return ["algorithm=custom", *own, *_values(numbers, "+")]


def model_overrides(model: Any, objects: Objects) -> list[str]:
    """Overrides for a model: None (the default), a name, a class or a function that builds one; with parameters, a pair
    (TwoLayers, {"width": 32}) or a dict {"model": TwoLayers, "width": 32}."""
    if model is None:
        return []
    model, parameters = _with_parameters("model", model)
    if isinstance(model, str):
        return [override("model", model)] + [override(f"model.{key}", value) for key, value in parameters.items()]
    named = model.func if isinstance(model, functools.partial) else model
    if isinstance(model, ModuleType) or not callable(model) or not hasattr(named, "__qualname__"):
        raise ValueError(
            "`model` must be a name, or a class or function that returns a torch.nn.Module for `input_shape` and "
            f"`num_outputs`, but got {model!r}. Of an FLGo model give the nn.Module class, of an object its class."
        )
    own = [override("model._target_", target_of(model, objects)), override("model.name", _own_name("model", named))]
    return ["model=custom", *own, *(override(f"+model.{key}", value) for key, value in parameters.items())]


def _own_name(group: str, own: Any) -> str:
    """What results call a class of the user's own: never as a choice of ours is called."""
    name = str(own.__name__).lower()
    return f"own_{name}" if name in group_choices(group) else name


def name_of(part: Any, key: str) -> str:
    """What a part is called in an output's `option`."""
    part, _ = _with_parameters(key, part)
    if isinstance(part, Mapping):
        part = part.get("name")
    part = part.func if isinstance(part, functools.partial) else part
    name = part if isinstance(part, str) else getattr(part, "__name__", type(part).__name__)
    return name.rpartition(".")[2] if isinstance(part, ModuleType) else name


def is_flgo(algorithm: Any) -> bool:
    """Whether it is an algorithm of FLGo's, which FLGo itself runs."""
    algorithm, _ = _with_parameters("algorithm", algorithm)
    return algorithm == "flgo" or (isinstance(algorithm, ModuleType) and _is_flgo(algorithm))


def _is_flgo(module: ModuleType) -> bool:
    return hasattr(module, "Server") and hasattr(module, "Client")


def _with_parameters(key: str, given: Any) -> tuple[Any, dict[str, Any]]:
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping):
        return given[0], dict(given[1])
    if isinstance(given, Mapping) and (key in given or (key != "task" and "name" in given)):
        rest = dict(given)
        return rest.pop(key, rest.pop("name", None)), rest
    return given, {}


def _algorithm_class(algorithm: Any) -> type:
    """The one class of ours that a module, class or object stands for."""
    from flgo_hydra.federated.algorithm.base import Algorithm

    if isinstance(algorithm, Algorithm) and not vars(algorithm):
        algorithm = type(algorithm)
    if isinstance(algorithm, ModuleType):
        own = [value for value in vars(algorithm).values() if _is_algorithm(value, Algorithm)]
        own = [kind for kind in own if kind.__module__ == algorithm.__name__] or own
        if len(own) == 1:
            found: type = own[0]
            return found
        raise ValueError(
            f"The module {algorithm.__name__} must define one algorithm, a subclass of "
            f"flgo_hydra.federated.algorithm.base.Algorithm, but it defines {len(own)}. Give the class."
        )
    if _is_algorithm(algorithm, Algorithm):
        return algorithm  # type: ignore[no-any-return]
    raise ValueError(
        f"`algorithm` must be one of {', '.join(group_choices('algorithm'))}, a module or subclass of "
        f"flgo_hydra.federated.algorithm.base.Algorithm, or a module of FLGo's, but got {algorithm!r}."
    )


def _is_algorithm(value: Any, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base


def _target_of_choice(choice: str) -> str:
    return str(_read(choice).get("_target_", ""))


def _parameters_of(choice: str) -> dict[str, Any]:
    """The hyper-parameters of a choice of ours with their defaults, in the order of its schema."""
    found: dict[str, Any] = {}
    for item in _read(choice).get("defaults", []):
        name, _, package = str(item).removeprefix("/schema/").partition("@")
        if str(item).startswith("/schema/") and package == "_here_":
            found = asdict(SCHEMAS[name]())
    return {key: value for key, value in found.items() if key not in ("name", "_target_")}


def _read(choice: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    file = conf_dir() / "algorithm" / f"{choice}.yaml"
    content = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _positional(name: str, algo_para: list[Any] | None, known: list[str]) -> dict[str, Any]:
    if not algo_para:
        return {}
    if len(algo_para) > len(known):
        has = f"has {', '.join(known)}" if known else "has no hyper-parameters"
        raise ValueError(f"`algo_para={algo_para}` has {len(algo_para)} values, but {name} {has}.")
    return dict(zip(known, algo_para, strict=False))


def _values(numbers: Mapping[str, Any], prefix: str) -> list[str]:
    return [override(f"{prefix}algorithm.{key}", value) for key, value in numbers.items()]
