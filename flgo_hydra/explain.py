"""Hydra's errors in the words of the person who typed the command."""

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from flgo_hydra import mistakes
from flgo_hydra.compose import conf_dir, hydra_main_arguments
from flgo_hydra.help import GROUPS, config_dirs, group_choices, keys_by_choice, meaning_of

_HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
_NO_CHOICE = re.compile(r"Could not find '([^']+)'")
_NOT_IN = re.compile(r"Could not override '([^']+)'|Key '([^']+)' is not in struct|Key '([^']+)' not in ")


def explain(error: BaseException, arguments: Sequence[str]) -> str:
    """Returns what was wrong and what to do, from an error of Hydra, OmegaConf or ours."""
    text = "\n".join(str(e) for e in _chain(error))
    choice = _NO_CHOICE.search(text)
    if choice and "Available options" in text:
        group, _, name = choice[1].rpartition("/")
        options = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        return mistakes.unknown_choice(group, name, options or group_choices(group))
    if "Config group override must be" in text:  # model=null, model=3
        for argument in arguments:
            group, _, name = argument.partition("=")
            if group in GROUPS and name not in group_choices(group):
                return mistakes.unknown_choice(group, name, group_choices(group))
    if isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException):
        return str(error)
    key = _NOT_IN.search(text)
    if key:
        name = _as_typed(next(part for part in key.groups() if part), arguments)
        return mistakes.unknown_key(name, [*GROUPS, *_HYDRA_GROUPS, *_known_keys(arguments)], keys_by_choice())
    for e in _chain(error):
        if isinstance(e, OmegaConfBaseException) and e.full_key:
            meaning = meaning_of(str(e.full_key))
            what = f"`{e.full_key}`: {mistakes.first_line(e).rstrip('.')}."
            return what + (f"\n  {e.full_key}: {meaning}" if meaning else "")
    return str(error)


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    next_error: BaseException | None = error
    while next_error is not None and next_error not in found:
        found.append(next_error)
        next_error = next_error.__cause__ or next_error.__context__
    return found


def _as_typed(key: str, arguments: Sequence[str]) -> str:
    """The whole key of the argument that ends in `key`: Hydra may name its last part only."""
    for argument in arguments:
        typed = argument.partition("=")[0].lstrip("+~")
        if typed == key or typed.endswith("." + key):
            return typed
    return key


def _known_keys(arguments: Sequence[str]) -> list[str]:
    """Keys of the config with the group choices that were typed, as far as they compose, and Hydra's own."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    folders = [f"file://{Path(folder).absolute()}" for folder in config_dirs(arguments)]
    searched = [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []
    base = {name: value for name, value in hydra_main_arguments().items() if name == "version_base"}
    GlobalHydra.instance().clear()
    keys: dict[str, None] = {}
    with initialize_config_dir(config_dir=str(conf_dir()), **base):
        for choices in [*_picked(arguments), []]:
            if not choices and keys:
                break  # the defaults are for when nothing that was typed composes
            try:
                cfg: DictConfig = compose("config", overrides=[*searched, *choices], return_hydra_config=True)
            except HydraException:
                continue
            keys.update(dict.fromkeys(mistakes.keys_of(cfg)))
    return list(keys)


def _picked(arguments: Sequence[str], most: int = 8) -> list[list[str]]:
    """The group choices that were typed, each value of a swept group in turn."""
    typed = [a.partition("=") for a in arguments if a.partition("=")[0] in GROUPS]
    choices = [[f"{group}={name}" for name in names.split(",")] for group, _, names in typed]
    longest = max((len(values) for values in choices), default=0)
    return [[values[i % len(values)] for values in choices] for i in range(min(longest, most))]
