"""Flags of the command line, wherever they stand: Hydra's parser wants them before the overrides, people do not."""

import argparse
import re
from collections.abc import Collection, Sequence

from flgo_hydra import mistakes

_NUMBER = re.compile(r"-\.?\d.*")


def in_order(arguments: Sequence[str], parser: argparse.ArgumentParser, keys: Collection[str]) -> list[str]:
    """The same command, its flags with their values before the overrides.

    Args:
        parser: which flags there are.
        keys: keys of the config, which are sometimes taken for flags.
    Raises:
        ValueError: there is no such flag, or it wants another value.
    """
    actions = {name: action for action in parser._actions for name in action.option_strings}
    flags: list[str] = []
    overrides: list[str] = []
    waiting = list(arguments)
    while waiting:
        text = waiting.pop(0)
        if text == "--":
            overrides += waiting
            break
        if not text.startswith("-") or text == "-" or _NUMBER.fullmatch(text):
            overrides.append(text)
            continue
        name, value = name_and_value(text)
        is_joined = value is not None
        action = actions.get(_whole(name, actions))
        if action is None:
            raise ValueError(_no_flag(name, _value(waiting) if value is None else value, actions, keys))
        flags.append(text)
        takes_value = action.nargs in (None, "?") and not is_joined
        if takes_value and (action.nargs is None or _value(waiting)):
            if not waiting:
                raise ValueError(f"`{name}` must be followed by a value: {action.help}.")
            flags.append(value := waiting.pop(0))
        if action.choices and value and value not in action.choices:
            raise ValueError(f"`{name}` must be one of {', '.join(map(str, action.choices))}, but got {value!r}.")
    return [*flags, *overrides]


def name_and_value(argument: str) -> tuple[str, str | None]:
    """A flag and the value that is joined to it: `--config-dir=mine`; None where none is."""
    name, is_joined, value = argument.partition("=")
    return name, value if is_joined else None


def _whole(name: str, known: Collection[str]) -> str:
    """A long flag may be cut short where only one begins so."""
    if name in known or not name.startswith("--"):
        return name
    longer = [flag for flag in known if flag.startswith(name)]
    return longer[0] if len(longer) == 1 else name


def _value(waiting: Sequence[str]) -> str:
    """What follows, if it is no override and no flag."""
    following = waiting[0] if waiting else ""
    is_value = name_and_value(following)[1] is None and (not following.startswith("-") or _NUMBER.fullmatch(following))
    return following if is_value else ""


def _no_flag(name: str, value: str, flags: Collection[str], keys: Collection[str]) -> str:
    key = name.lstrip("-").replace("-", "_")
    said = f"There is no flag `{name}`."
    if key in keys:
        return f"{said} Keys of the config are set without dashes: `{key}={value or '…'}`."
    words = [flag.lstrip("-") for flag in flags if flag.startswith("--")]
    near_flags = [] if key in mistakes.FLGO_NAMES else mistakes.nearest(name.lstrip("-"), words, 1)
    if near_flags:
        return f"{said} Did you mean `--{near_flags[0]}`?"
    for near in mistakes.nearest(key, keys, 1):
        return f"{said} Keys of the config are set without dashes. Did you mean `{near}={value or '…'}`?"
    return f"{said} `python -m flgo_hydra --help` lists keys and flags."
