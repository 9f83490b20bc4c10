"""Composes and checks every point of a grid before the first one runs, and says which points are the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from flgo_hydra import app, compose, mistakes
from flgo_hydra.config import Conf
from flgo_hydra.help import GROUPS, keys_by_choice
from flgo_hydra.launch.composing import SweepComposer
from flgo_hydra.study.grid import Grid
from flgo_hydra.study.objective import Common
from flgo_hydra.study.typed_points import TypedPoints


@dataclass(frozen=True)
class Point:
    """One job to run."""

    overrides: tuple[str, ...]
    """its swept overrides"""
    identity: str
    """the same for the same point, however it is written: `lr=0.1` and `lr=1e-1` are one"""
    group: str = ""
    """shared by points whose curves may be compared; empty: of another Hydra app"""
    num_rounds: int = 0
    written: list[tuple[str, ...]] = field(default_factory=list, compare=False)
    """its overrides in all forms in which the grid has it"""


def check_points(
    composer: SweepComposer,
    sweep_config: DictConfig,
    grid: Grid,
    when_first_is_lawful: Callable[[], None] = lambda: None,
    common: Common | None = None,
) -> list[Point]:
    """Composes and checks every point of the grid; points written twice in other words count once.

    Args:
        sweep_config: the sweep's own config, with Hydra's node.
        common: takes in every point's settings.
        when_first_is_lawful: called when the first point composes and keeps the laws: most mistakes are out then.
    Raises:
        ValueError: the first point that breaks a law, with what it is.
        HydraException: a point does not compose (a wrong key, choice or type).
    """
    points: dict[str, Point] = {}
    confs: list[tuple[Conf, str]] = []
    typed = TypedPoints(composer)
    for overrides in grid.points():
        where = f" (at the point {' '.join(overrides)})" if overrides else ""
        everything = [*grid.fixed, *overrides]
        if not points:
            unknown = composer.find_unknown_key(everything)
            if unknown is not None:
                key, cfg = unknown
                raise ValueError(mistakes.unknown_key(key, [*GROUPS, *mistakes.keys_of(cfg)], keys_by_choice()))
        conf = typed.make(everything)
        if conf is None:
            cfg = _compose(composer, sweep_config, everything, overrides)
            if compose.is_ours(cfg):
                try:
                    conf = compose.to_conf(cfg, has_known_keys=not any(text[0] in "+~" for text in everything))
                except ValueError as error:
                    raise ValueError(f"{error}{where}") from error
                typed.learn(everything, cfg, conf)
        if conf is not None:
            confs.append((conf, where))
            parts = compose.deciding(conf)
            settings = {**parts["option"], **{key: value for key, value in parts.items() if key != "option"}}
            group, num_rounds = compose.group(conf), conf.num_rounds
        else:
            parts = settings = _plain(cfg)
            group, num_rounds = "", 0
        identity = compose.hash_of(parts)
        if common is not None and identity not in points:
            common.add(settings)
        if not points:
            when_first_is_lawful()
        point = points.setdefault(identity, Point(overrides, identity, group, num_rounds))
        point.written.append(overrides)
    for conf, where in confs:  # laws first: what they refer to takes longer to look at
        try:
            app.check(conf)
        except ValueError as error:
            raise ValueError(f"{error}{where}") from error
    return list(points.values())


def _compose(
    composer: SweepComposer, sweep_config: DictConfig, everything: Sequence[str], overrides: Sequence[str]
) -> DictConfig:
    """A point's config without Hydra's node."""
    try:
        cfg = composer.compose(everything)
    except HydraException as error:
        if "changed it" in str(error):  # Hydra 1.4 refuses by itself what 1.3 would ignore
            raise ValueError(_nested_grid(overrides)) from error
        raise
    own, outer = cfg.hydra.sweeper.get("params"), sweep_config.hydra.sweeper.get("params")
    if own and own != outer:
        raise ValueError(_nested_grid(overrides))
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def _plain(cfg: DictConfig) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(cfg, resolve=False)
    return dict(content)


def _nested_grid(overrides: Sequence[str]) -> str:
    """A preset that is a grid, swept itself, would silently run as a single point."""
    return (
        f"`{' '.join(overrides)}` changes the sweep itself, so it cannot be one of its points. "
        "Run presets that are grids one after another."
    )
