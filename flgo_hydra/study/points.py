"""Composes and checks every point of a grid before the first one runs, and says which points are the same."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf, open_dict

from flgo_hydra import app, compose
from flgo_hydra.launch.composing import SweepComposer
from flgo_hydra.study.grid import Grid


@dataclass(frozen=True)
class Point:
    """One job to run."""

    overrides: tuple[str, ...]
    """its swept overrides"""
    identity: str
    """the same for the same point, however it is written: `lr=0.1` and `lr=1e-1` are one"""


def check_points(loader: ConfigLoader, sweep_config: DictConfig, grid: Grid) -> list[Point]:
    """Composes and checks every point of the grid; points written twice in other words count once.

    Args:
        sweep_config: the sweep's own config, with Hydra's node.
    Raises:
        ValueError: the first point that breaks a law, with what it is.
        HydraException: a point does not compose (a wrong key, choice or type).
    """
    composer = SweepComposer(loader, sweep_config)
    points: dict[str, Point] = {}
    for overrides in grid.points():
        cfg = composer.compose([*grid.fixed, *overrides])
        _refuse_nested_grid(sweep_config, cfg, overrides)
        try:
            point = Point(overrides, _identity(cfg))
        except ValueError as error:
            where = f" (at the point {' '.join(overrides)})" if overrides else ""
            raise ValueError(f"{error}{where}") from error
        points.setdefault(point.identity, point)
    return list(points.values())


def _identity(cfg: DictConfig) -> str:
    with open_dict(cfg):
        del cfg["hydra"]
    if compose.is_ours(cfg):
        conf = compose.to_conf(cfg)
        app.check(conf)
        return compose.fingerprint(conf)
    content: Any = OmegaConf.to_container(cfg, resolve=False)
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _refuse_nested_grid(sweep_config: DictConfig, cfg: DictConfig, overrides: Sequence[str]) -> None:
    """A preset that is a grid, swept itself, would silently run as a single point."""
    own, outer = cfg.hydra.sweeper.get("params"), sweep_config.hydra.sweeper.get("params")
    if own and own != outer:
        raise ValueError(
            f"`{' '.join(overrides)}` defines a grid of its own ({dict(own)}), so it cannot be swept itself. "
            "Run such presets one after another."
        )
