"""What becomes of a sweep's grid where its command is given again with other values: it grows, unless told otherwise.

`resume folder seed=2` in place of `seed=0,1` would abandon the points of seeds 0 and 1 that have not run yet. So a
value is added to those that its key had, whether the key was swept, set once, or left to its default.
"""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from flgo_hydra import compose
from flgo_hydra.overrides import as_text


def grow_recorded(record: Path, recorded: Sequence[str], given: Sequence[str]) -> tuple[list[str], list[str]]:
    """`grow`, of the sweep that Hydra has recorded in a file."""
    return grow(OmegaConf.load(record), recorded, given)


def grow(config: DictConfig | ListConfig, recorded: Sequence[str], given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Joins the values of a command's overrides with those that are given now.

    Args:
        config: what Hydra recorded of the sweep, with its own node.
        recorded: the command's overrides of the task.
    Returns:
        What stands in place of `given`, and a line on each key that keeps its values.
    """
    parser = OverridesParser.create()
    before = {text.partition("=")[0].lstrip("+~"): text for text in recorded}
    texts, told = [], []
    for text in given:
        key = text.partition("=")[0].lstrip("+~")
        if text.startswith("~") or not compose.decides(key):
            texts.append(text)
            continue
        old = before.get(key) or _default(config, key)
        values = None if old is None or old.startswith("~") else _values(parser.parse_override(old))
        new = _values(parser.parse_override(text))
        if values is None or new is None:
            texts.append(text)
            if old is not None and old != text:
                told.append(f"`{text}` takes the place of `{old}`: points of that alone are not run any more.")
            continue
        joined = list(dict.fromkeys([*values, *new]))
        texts.append(f"{(old or text).partition('=')[0]}={','.join(joined)}")
        if len(joined) > len(new):
            told.append(f"`{texts[-1]}`: what the sweep had is kept (with --only, `{text}` alone is run).")
    return texts, told


def _default(config: DictConfig | ListConfig, key: str) -> str | None:
    """A key that the command did not set, as an override."""
    choices = OmegaConf.select(config, "hydra.runtime.choices") or {}
    value = choices[key] if key in choices else OmegaConf.select(config, key)
    if value is None or OmegaConf.is_config(value):
        return None
    return f"{key}={as_text(value)}"


def _values(override: Override) -> list[str] | None:
    """The values as they are written; None of an interval, and where only Hydra's search path knows them."""
    line = str(override.input_line).partition("=")[2]
    if not override.is_sweep_override():
        return [line]
    if override.is_interval_sweep():
        return None
    try:
        return list(override.sweep_string_iterator())
    except Exception:  # a glob over the choices of a group
        return None
