"""Hydra's composed config and our typed one: what is registered, and the step between the two."""

import hashlib
import importlib.metadata
import json
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, MissingMandatoryValue, OmegaConf, ValidationError, flag_override

from flgo_hydra import mistakes, reference
from flgo_hydra.config.conf import Conf
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.config.schemas import SCHEMAS
from flgo_hydra.config.task import TaskConf
from flgo_hydra.help import keys_by_choice
from flgo_hydra.overrides import line_of
from flgo_hydra.record.secrets import masked


def prepare() -> None:
    """Lets Hydra find our schemas and plugins, and Python the modules of the current folder. May be called again."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    is_registered = "config.yaml" in store.repo.get("schema", {})
    for path, schema in () if is_registered else SCHEMAS.items():  # Hydra 1.4 warns of a second time
        group, _, name = f"schema/{path}".rpartition("/")
        store.store(group=group, name=name, node=schema, provider="flgo_hydra")
    _offer_plugins()
    # Hydra 1.4 warns of every class that a config names, of its own callbacks too; this one is ours.
    warnings.filterwarnings("ignore", r"(?s).*_target_='flgo_hydra\.launch\.owner\.RunOwner'", UserWarning)
    reference.import_folder(os.getcwd())


def _offer_plugins() -> None:
    """Puts our `hydra_plugins` folder on the path, unless a wheel has installed it as a folder Hydra already sees.

    Hydra 1.3 refuses launchers and sweepers outside a package of that name; a namespace package may lie in many
    places. (An editable install's import hook does not count: Hydra lists folders.)
    """
    seen = any((Path(folder) / "hydra_plugins" / "flgo_hydra").is_dir() for folder in sys.path if folder)
    if not seen:
        sys.path.append(str(Path(__file__).resolve().parent / "plugins"))


def hydra_main_arguments() -> dict[str, Any]:
    """Arguments of `hydra.main` on the installed Hydra: 1.3 warns without a version_base, 1.4 with one."""
    version = importlib.metadata.version("hydra-core")
    base = {"version_base": "1.3"} if version.startswith("1.3") else {}
    return {"config_path": str(conf_dir()), "config_name": "config", **base}


def change_hydra(config: DictConfig, values: Mapping[str, Any]) -> None:
    """Sets values in Hydra's node, which Hydra may have closed, by their keys there: `run.dir`."""
    for key, value in values.items():
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(config.hydra, parent)
        with flag_override(node, ["readonly", "struct"], [False, False]):
            node[name] = value


def hide_passwords(config: DictConfig) -> None:
    """Takes the password of the study's storage out of Hydra's node, which Hydra writes down and people print.

    One that stands there as `${oc.env:…}` stays as it was typed.
    """
    node: Any = OmegaConf.to_container(config.hydra, resolve=False)
    storage, given = node["sweeper"].get("storage"), node["overrides"]["hydra"]
    hidden = [masked(text) for text in given]
    if hidden != given:
        change_hydra(config, {"overrides.hydra": hidden})
    if isinstance(storage, str) and masked(storage) != storage:
        change_hydra(config, {"sweeper.storage": masked(storage)})


def choices_alone(hydra: Any, chosen: Mapping[str, str]) -> DictConfig | None:
    """The config that these choices make with nothing else written; None where they do not go with our own `config`.

    Args:
        hydra: Hydra's node of a composed config, which says where choices lie.
        chosen: a choice by group.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
    from hydra.errors import HydraException
    from hydra.types import RunMode

    path = ConfigSearchPathImpl()
    for source in hydra.runtime.config_sources:
        path.append(source.provider, f"{source.schema}://{source.path}")
    overrides = [line_of(group, choice) for group, choice in chosen.items()]
    try:
        return ConfigLoaderImpl(path).load_configuration("config", overrides, RunMode.RUN)
    except HydraException:
        return None


def is_ours(cfg: DictConfig) -> bool:
    """Whether a composed config is one of flgo_hydra, and not of another Hydra app that uses our plugins."""
    kind = OmegaConf.get_type(cfg)
    return isinstance(kind, type) and issubclass(kind, Conf)


def to_conf(cfg: DictConfig, has_known_keys: bool = False) -> Conf:
    """Turns a composed config (without Hydra's own node) into its dataclass, and checks every law.

    Args:
        has_known_keys: no `+key` or `~key` went into it, so that its keys need not be looked through.
    Raises:
        ValueError: a law does not hold, a value is missing, or there is a key that nobody reads.
    """
    try:
        if not has_known_keys:
            _refuse_unknown_keys(cfg, cfg)
        conf = OmegaConf.to_object(cfg)
    except MissingMandatoryValue as error:
        key = str(error.full_key or error).removeprefix("Missing mandatory value: ")
        raise ValueError(f"`{key}` must be given: `{key}=…`.") from error
    except ValidationError as error:
        raise ValueError(f"`{error.full_key}`: {mistakes.first_line(error)}") from error
    assert isinstance(conf, Conf)
    if not isinstance(conf.task, TaskConf):
        raise ValueError(
            "`task` must be a choice of the group task, with `/schema/task@_here_` first in its defaults, "
            f"but got {conf.task!r}."
        )
    references = {"task.source": conf.task.source, "task.partition": conf.task.partition}
    composed = {f"parts.{name}": part for name, part in conf.parts.items()}
    for key, part in {**references, "model": conf.model, "algorithm": conf.algorithm, **composed}.items():
        target = part.get("_target_") if isinstance(part, dict) else getattr(part, "_target_", None)
        if not isinstance(target, str):
            raise ValueError(f"`{key}._target_` must name a function or a class, but `{key}` is {part!r}.")
    own = parameters(conf.algorithm)
    if "lr" in own:
        raise ValueError(
            f"`algorithm.lr={own['lr']}`: an algorithm cannot have a number of that name, since it is given the run's "
            "own `lr` of each round under it. Rename it, say to `algorithm.server_lr`."
        )
    return conf


def _refuse_unknown_keys(root: DictConfig, node: DictConfig) -> None:
    """`+key=…` adds keys that no schema has: they would be read by nobody.

    A choice without a schema (a user's own, `custom`) takes whatever parameters its function has.
    """
    kind = OmegaConf.get_type(node)
    if isinstance(kind, type) and is_dataclass(kind):
        known = {field.name for field in fields(kind)}
        for key in node:
            if key not in known:
                full = node._get_full_key(str(key))
                raise ValueError(mistakes.unknown_key(full, mistakes.keys_of(root, without=full), keys_by_choice()))
        for key in sorted(known.difference(node)):  # `~lr`: the dataclass would take its own default in silence
            raise ValueError(f"`{node._get_full_key(key)}` was deleted, but a job needs it. Set it instead.")
    for key in node:
        if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node._get_node(key)):
            child = node[key]
            if child is not None:
                _refuse_unknown_keys(root, child)


_DECIDES_NOTHING = ("device", "num_threads", "checkpoint_interval", "save_best", "engine")
_TASK_DECIDES_NOTHING = ("cache", "cache_dir", "data_dir")


def parts(conf: Conf) -> dict[str, Any]:
    """The config as plain values: task, model, algorithm, and the rest as option."""
    values = asdict(conf)
    named = {key: values.pop(key) for key in ("task", "model", "algorithm", "parts")}
    if not named["parts"]:  # so are configs from before there were any
        del named["parts"]
    return {**named, "option": values}


def deciding(conf: Conf) -> dict[str, Any]:
    """What decides a run's numbers, in parts: all of the config but where files lie and how it is run."""
    values = parts(conf)
    values["option"] = {key: value for key, value in values["option"].items() if key not in _DECIDES_NOTHING}
    values["task"] = {key: value for key, value in values["task"].items() if key not in _TASK_DECIDES_NOTHING}
    if not values["task"]["local_test"]:  # so are configs from before there was such a key
        del values["task"]["local_test"]
    return values


def decides_otherwise(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two plain configs differ in what decides a run's numbers, in keys that both have."""
    for key in before.keys() & now.keys():
        one, other = before[key], now[key]
        if key in (*_DECIDES_NOTHING, "hydra"):
            continue
        if key == "task" and isinstance(one, dict) and isinstance(other, dict):
            one, other = ({k: v for k, v in part.items() if k not in _TASK_DECIDES_NOTHING} for part in (one, other))
        if isinstance(one, dict) and isinstance(other, dict) and one.get("_target_") == other.get("_target_"):
            if any(one[name] != other[name] for name in one.keys() & other.keys()):
                return True
        elif one != other:
            return True
    return False


def not_deciding(conf: Conf) -> dict[str, Any]:
    """The rest of the config, by the keys that people type: where files lie and how a run is computed.

    A run that goes on may change it. Points of a sweep that differ in nothing else are points of their own all the
    same, since somebody has asked for both (`study/space/points.py`).
    """
    values = {key: getattr(conf, key) for key in _DECIDES_NOTHING if key != "engine"}
    values |= {f"engine.{key}": value for key, value in asdict(conf.engine).items()}
    return values | {f"task.{key}": getattr(conf.task, key) for key in _TASK_DECIDES_NOTHING}


def settings(conf: Conf) -> dict[str, Any]:
    """What decides a run's numbers, with the keys that people type: `num_rounds`, `task.num_clients`."""
    values = deciding(conf)
    return {**values.pop("option"), **values}


def fingerprint(conf: Conf) -> str:
    """A hash of what decides a run's numbers."""
    return hash_of(deciding(conf))


def group(conf: Conf) -> str:
    """A hash that runs share whose losses may be compared round by round: of the same task, task.seed and seed."""
    return group_of(deciding(conf))


def group_of(values: Mapping[str, Any]) -> str:
    """The same, given what decides the run's numbers."""
    return hash_of({"task": values["task"], "seed": values["option"]["seed"]})


def hash_of(values: Mapping[str, Any]) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def parameters(part: Any) -> dict[str, Any]:
    """A group's choice (a dataclass of ours or a user's untyped dict) as a dict with `_target_` and `name`."""
    values: dict[str, Any] = dict(part) if isinstance(part, dict) else asdict(part)
    values.setdefault("name", str(values.get("_target_", "")).rpartition(".")[2].lower())
    return values
