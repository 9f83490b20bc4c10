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
    for e in _chain(error):
        # A law of a sweeper or launcher, which Hydra makes: it tells of the call, ours of the key.
        if type(e).__name__ == "InstantiationException" and isinstance(e.__cause__, ValueError):
            return str(e.__cause__)
    key = _NOT_IN.search(text)
    if key:
        name = _as_typed(next(part for part in key.groups() if part), arguments)
        known = _known_keys(arguments)
        having = [choices for choices, keys in known if choices and name in keys]
        lacking = [choices for choices, keys in known if choices and name not in keys]
        if having and lacking:
            return mistakes.of_other_points(name, lacking[0], having[0])
        if having:  # Hydra composes what is fixed with the defaults, before it looks at points
            text = next(text for text in arguments if text.lstrip("+").startswith(f"{name}="))
            swept = f"{name}=choice({text.partition('=')[2]})"
            return f"`{text}` is a key of the choices that vary: give it as one that varies, `{swept}`."
        every = dict.fromkeys(key for _, keys in known for key in keys)
        return mistakes.unknown_key(name, [*GROUPS, *_HYDRA_GROUPS, *every], keys_by_choice())
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


def _known_keys(arguments: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Group choices that were typed, each with the keys of their config, Hydra's own among them, where they compose."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    folders = [f"file://{Path(folder).absolute()}" for folder in config_dirs(arguments)]
    searched = [f"hydra.searchpath=[{','.join(folders)}]"] if folders else []
    base = {name: value for name, value in hydra_main_arguments().items() if name == "version_base"}
    GlobalHydra.instance().clear()
    found: list[tuple[list[str], list[str]]] = []
    with initialize_config_dir(config_dir=str(conf_dir()), **base):
        for choices in [*_picked(arguments), []]:
            if not choices and found:
                break  # the defaults are for when nothing that was typed composes
            try:
                cfg: DictConfig = compose("config", overrides=[*searched, *choices], return_hydra_config=True)
            except HydraException:
                continue
            found.append((choices, mistakes.keys_of(cfg)))
    return found


def _picked(arguments: Sequence[str], most: int = 8) -> list[list[str]]:
    """The group choices that were typed, each value of a swept group in turn."""
    typed = [a.partition("=") for a in arguments if a.partition("=")[0] in GROUPS]
    choices = [[f"{group}={name}" for name in names.split(",")] for group, _, names in typed]
    longest = max((len(values) for values in choices), default=0)
    return [[values[i % len(values)] for values in choices] for i in range(min(longest, most))]
