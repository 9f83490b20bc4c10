"""Names and functions come with a group's choice: `algorithm=scaffold` is SCAFFOLD, and is called so.

`algorithm.name=scaffold` beside another choice would train that one and report SCAFFOLD in every table and curve;
`algorithm._target_=…` the other way round. So what was composed is compared with what the choices alone make, whoever
wrote it: the command line, a sweep, a preset, a Python program. A choice that leaves its function open (`custom`) lets
its name be given too, but for the names of other choices; a user's own YAML says by itself what it is.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from flgo_hydra import compose
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.overrides import Override

_NODES = {"task": "task", "task/partition": "task.partition", "model": "model", "algorithm": "algorithm"}
"""Each group that names something, with the key under which its choice stands."""
_TARGETS = {"task": "task.source._target_"}
_KEYS = {f"{node}.name" for node in _NODES.values()} | {
    _TARGETS.get(group, f"{node}._target_") for group, node in _NODES.items()
}
_OPEN = "???"


class _Identity(NamedTuple):
    """What a choice calls itself and the function that it stands for, as they are written; None: neither is."""

    name: Any
    target: Any


def writes_identity(overrides: Sequence[str]) -> bool:
    """Whether some override sets a name or a function that comes with a choice."""
    return any(Override.read(text).key in _KEYS for text in overrides)


def check_identities(cfg: DictConfig, hydra: Any) -> None:
    """Raises ValueError where a name or a function is not the choice's own.

    Args:
        cfg: a composed config of ours.
        hydra: Hydra's node of it, which says what was chosen and where the choices lie.
    """
    chosen = {group: str(hydra.runtime.choices[group]) for group in _NODES if hydra.runtime.choices.get(group)}
    folders = [source.path for source in hydra.runtime.config_sources if source.schema == "file"]
    if len(folders) > 1:
        _refuse_hidden(chosen, folders)
    unclear = []
    for group, choice in chosen.items():
        found, own = _identity(cfg, group), _written(group, choice, folders)
        if found == own or (own == (found.name, _OPEN)):
            continue
        if own is not None and own.target == _OPEN:
            _compare(group, choice, found, own, folders)
        else:  # mistaken, or a YAML that inherits from another
            unclear.append(group)
    if unclear:
        alone = compose.choices_alone(hydra, chosen)
        for group in unclear if alone is not None else ():
            _compare(group, chosen[group], _identity(cfg, group), _identity(alone, group), folders)


def _refuse_hidden(chosen: Mapping[str, str], folders: Sequence[str]) -> None:
    """Raises ValueError where a user's choice is called as one of ours, which Hydra finds first."""
    for group, choice in chosen.items():
        found = [file for folder in folders if (file := Path(folder, group, f"{choice}.yaml")).is_file()]
        if len(found) > 1 and conf_dir() in found[0].parents:
            other = next((file for file in found if conf_dir() not in file.parents), None)
            if other is not None:
                raise ValueError(
                    f"`{group}={choice}` is a choice of flgo_hydra's, which hides {other}: give yours another name."
                )


def _compare(group: str, choice: str, found: _Identity, own: _Identity, folders: Sequence[str]) -> None:
    from flgo_hydra.help import group_choices  # of mistakes only

    is_open = own.target in (None, _OPEN)
    others = set(group_choices(group, folders)) - {choice}
    if found.name != own.name and (not is_open or found.name in others):
        wanted = found.name if found.name in others else f"<{'|'.join(sorted(others))}>"
        raise ValueError(
            f"`{_NODES[group]}.name` comes with the choice, here `{group}={choice}`, and cannot be written, but got "
            f"{found.name!r}: results would carry another's name. Choose with `{group}={wanted}`."
        )
    if found.target != own.target and not is_open:
        key = _TARGETS.get(group, f"{_NODES[group]}._target_")
        raise ValueError(
            f"`{key}` comes with the choice, here `{group}={choice}`, and cannot be written, but got {found.target!r}: "
            f"results would call it {own.name}. For a function of your own choose `{group}=custom {key}=…`."
        )


def _identity(cfg: DictConfig | None, group: str) -> _Identity:
    """What stands in a config, `???` and interpolations unresolved."""
    node: Any = None if cfg is None else OmegaConf.select(cfg, _NODES[group], throw_on_missing=False)
    holder = node
    if group == "task" and OmegaConf.is_dict(node):
        holder = node._get_node("source", validate_access=False)
    return _Identity(_written_value(node, "name"), _written_value(holder, "_target_"))


def _written_value(node: Any, key: str) -> Any:
    is_there = OmegaConf.is_dict(node) and not node._is_missing()
    found = node._get_node(key, validate_access=False) if is_there else None
    return None if found is None else found._value()


def _written(group: str, choice: str, folders: Sequence[str]) -> _Identity | None:
    """What the choice's own file says, without composing it; None where there is no such file."""
    for file in (Path(folder, group, f"{choice}.yaml") for folder in folders):  # in the order in which Hydra looks
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            name, target = (re.search(rf"^\s*{key}: *(\S+)", text, re.MULTILINE) for key in ("name", "_target_"))
            return _Identity(name and name[1], target and target[1])
    return None
