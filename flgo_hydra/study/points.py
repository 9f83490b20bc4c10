"""Composes and checks every point of a grid before the first one runs, and says which points are the same.

Hydra composes a config in about 45 ms. Values do not change which files are read, so that is done once for each
combination of group choices; values are then set in a copy of it.
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from flgo_hydra import app, compose, mistakes
from flgo_hydra.help import keys_by_choice
from flgo_hydra.study.grid import Grid


@dataclass(frozen=True)
class Point:
    """One job to run."""

    overrides: tuple[str, ...]
    """its swept overrides"""
    identity: str
    """the same for the same point, however it is written: `lr=0.1` and `lr=1e-1` are one"""


class PointComposer:
    """Composes points of a grid as Hydra would."""

    def __init__(self, config_loader: ConfigLoader, config_name: str, fixed: Sequence[str]) -> None:
        self._loader = config_loader
        self._config_name = config_name
        self._fixed = list(fixed)
        self._parser = OverridesParser.create(config_loader=config_loader)
        self._by_choices: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[str, bool] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The point's config, with Hydra's own node removed."""
        parsed = self._parser.parse_overrides(list(overrides))
        set_later = [o for o in parsed if self._is_plain_value(o)]
        first = [o for o in parsed if not self._is_plain_value(o)]
        key = tuple(o.input_line or "" for o in first)
        if key not in self._by_choices:
            self._by_choices[key] = self._compose_choices(key)
        cfg = copy.deepcopy(self._by_choices[key])
        for override in set_later:
            name = override.get_key_element()
            try:
                # As Hydra does it: no new keys, and a list or dict replaces the old one.
                OmegaConf.update(cfg, name, override.value(), merge=not isinstance(override.value(), dict | list))
            except OmegaConfBaseException as error:
                raise self._explain(cfg, override, error) from error
        return cfg

    def _is_plain_value(self, override: Override) -> bool:
        return not (override.is_add() or override.is_delete() or override.package) and not self._is_group(override)

    def _is_group(self, override: Override) -> bool:
        key = override.key_or_group
        if key not in self._groups:
            self._groups[key] = bool(self._loader.get_group_options(key))
        return self._groups[key]

    def _compose_choices(self, choices: Sequence[str]) -> DictConfig:
        try:
            cfg = self._loader.load_configuration(
                config_name=self._config_name,
                overrides=[*self._fixed, *choices],
                run_mode=RunMode.MULTIRUN,
                from_shell=False,
            )
        except HydraException as error:
            raise error from None
        params = cfg.hydra.sweeper.get("params") if "sweeper" in cfg.hydra else None
        if params and any(choice.startswith("experiment=") for choice in choices):
            raise ValueError(
                f"`{' '.join(choices)}` defines a grid of its own ({dict(params)}), so it cannot be swept itself. "
                "Run such presets one after another."
            )
        with open_dict(cfg):
            del cfg["hydra"]
        return cfg

    def _explain(self, cfg: DictConfig, override: Override, error: OmegaConfBaseException) -> ValueError:
        name = override.key_or_group
        known = mistakes.keys_of(cfg)
        if name not in known:
            return ValueError(mistakes.unknown_key(name, known, keys_by_choice()))
        return ValueError(f"`{override.input_line}`: {mistakes.first_line(error)}")


def check_points(composer: PointComposer, grid: Grid) -> list[Point]:
    """Composes and checks every point of the grid; points written twice in other words count once.

    Raises:
        ValueError: the first point that breaks a law, with what it is.
    """
    points: dict[str, Point] = {}
    for overrides in grid.points():
        cfg = composer.compose(overrides)
        try:
            point = Point(overrides, _identity(cfg, overrides))
        except ValueError as error:
            where = f" (at the point {' '.join(overrides)})" if overrides else ""
            raise ValueError(f"{error}{where}") from error
        points.setdefault(point.identity, point)
    return list(points.values())


def _identity(cfg: DictConfig, overrides: Sequence[str]) -> str:
    if compose.is_ours(cfg):
        conf = compose.to_conf(cfg)
        app.check(conf)
        return compose.fingerprint(conf)
    content: Any = OmegaConf.to_container(cfg, resolve=False)
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
