"""What becomes of a sweep's grid where its command is given again with other values: it grows, unless told otherwise.

`resume folder seed=2` in place of `seed=0,1` would abandon the points of seeds 0 and 1 that have not run yet. So a
value is added to those that were swept. A key that was set once, or left to its default, is another matter: a study
refuses another value of it (`objective.check_same`).
"""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as Parsed
from omegaconf import DictConfig, ListConfig, OmegaConf

from flgo_hydra.overrides import Override, line_of
from flgo_hydra.study.hydra_records import read_config
from flgo_hydra.study.space.grid import write_axis

KEEP_RECORD = "FLGO_HYDRA_KEEP_RECORD"
"""environment variable of a command that is a part of the sweep: what its folder records stays"""


def grow_recorded(record: Path, recorded: Sequence[str], given: Sequence[str]) -> tuple[list[str], list[str]]:
    """`grow`, of the sweep that Hydra has recorded in a file."""
    return grow(read_config(record), recorded, given)


def grow(config: DictConfig | ListConfig, recorded: Sequence[str], given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Joins the values of a command's overrides with those that are given now.

    Args:
        config: what Hydra recorded of the sweep, with its own node.
        recorded: the command's overrides of the task.
    Returns:
        What stands in place of `given`, and a line on each key that keeps its values.
    """
    parser = OverridesParser.create()
    params = OmegaConf.to_container(
        OmegaConf.select(config, "hydra.sweeper.params") or OmegaConf.create(), resolve=True
    )
    assert isinstance(params, dict)
    lines = [*(write_axis(str(key), values) for key, values in params.items()), *recorded]  # of two the last counts
    parsed = {Override.read(line).key: parser.parse_override(line) for line in lines}
    swept = {key: one for key, one in parsed.items() if one.is_sweep_override()}
    texts, told = [], []
    for text in given:
        one = Override.read(text)
        old = swept.get(one.key) if one.sign != "~" else None
        if old is None:
            texts.append(text)
            continue
        values, new = _values(old), _values(parser.parse_override(text))
        if values is None or new is None:
            texts.append(text)
            told.append(f"`{text}` takes the place of `{old.input_line}`: points of that alone are not run any more.")
            continue
        both = ",".join(dict.fromkeys([*values, *new]))
        texts.append(line_of(Override.read(str(old.input_line)).name, both))
        told.append(f"`{texts[-1]}`: what the sweep had is kept (with --only, `{text}` alone is run).")
    return texts, told


def _values(override: Parsed) -> list[str] | None:
    """The values as they are written; None of an interval, and where only Hydra's search path knows them."""
    if not override.is_sweep_override():
        return [Override.read(str(override.input_line)).text or ""]
    if override.is_interval_sweep():
        return None
    try:
        return list(override.sweep_string_iterator())
    except Exception:  # a glob over the choices of a group
        return None
