"""Composes the jobs of a sweep as Hydra would, in a tenth of the time where only values vary; each of them once.

Hydra reads and merges all of a config's files for every job, about 45 ms. Plain values (`lr=0.1`) do not change which
files are read: what the others make (choices of groups, lists, dicts, `+x`, `~x`) is composed once and kept pickled,
and the values are set in a copy of it. Values that lie in one of the others (`more.a=2` beside `+more={a: 1}`), Hydra's
own keys, and any error, go Hydra's way.

Who checks a point mostly needs its typed config only, which `templates.py` makes without composing. What was made to be
checked is kept for who starts the point, but of few points: each takes 150 KiB, and a sweep may have ten thousand.
"""

import contextlib
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as Parsed
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict

from flgo_hydra import compose
from flgo_hydra.config.conf import Conf
from flgo_hydra.overrides import Override
from flgo_hydra.templates import Scalar, Templates

MOST_KEPT = 64
"""Points whose configs are kept until they start."""
_MOST_BASES = 256
_MOST_PARSED = 10_000
_PLAIN_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Composed:
    """A point's config, in the forms that were made of it."""

    conf: Conf | None
    """typed, lawful; None: of another app"""
    parts: Mapping[str, Any]
    """what decides the run's numbers, as plain values; of another app everything"""
    cfg: DictConfig | None = None
    """with Hydra's node; None where nobody has needed it yet"""

    @property
    def identity(self) -> str:
        """The same for the same point, however it is written."""
        return compose.hash_of(self.parts)


class Composer:
    """Composes job after job of one sweep."""

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        """Args:
        config: the sweep's own config; what `${now:}` has answered in it, it answers in every job.
        """
        self.loader = loader
        self.config = config
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Parsed] = {}
        self._group_options: dict[str, list[str]] = {}
        self._bases: dict[tuple[str, ...], bytes] = {}
        self._templates = Templates()
        self._kept: dict[tuple[str, ...], Composed] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Returns the job's config, Hydra's node included."""
        with contextlib.suppress(Exception):  # Hydra's way says what is wrong
            config = self._set_values(overrides)
            if config is not None:
                return config
        return self.loader.load_sweep_config(self.config, list(overrides))

    def typed_quickly(self, overrides: Sequence[str]) -> Composed | None:
        """The point as its typed config, where one that differs in plain values only was `typed` before."""
        split = self._split(overrides)
        conf = None if split is None else self._templates.make(*split)
        return None if conf is None else Composed(conf, compose.deciding(conf))

    def typed(self, overrides: Sequence[str], cfg: DictConfig) -> Composed:
        """The point that was composed, with its typed config.

        Raises:
            ValueError: it breaks a law.
        """
        with without_hydra(cfg):
            if not compose.is_ours(cfg):
                return Composed(None, _plain(cfg), cfg)
            conf = compose.to_conf(cfg, has_known_keys=not any(Override.read(line).sign for line in overrides))
            split = self._split(overrides)
            if split is not None:
                self._templates.learn(*split, cfg, conf)
        return Composed(conf, compose.deciding(conf), cfg)

    def point(self, overrides: Sequence[str]) -> Composed:
        """The point, typed one way or the other.

        Raises:
            ValueError: it breaks a law.
            HydraException: it does not compose (a wrong key, choice or type).
        """
        return self.typed_quickly(overrides) or self.typed(overrides, self.compose(overrides))

    def keep(self, overrides: Sequence[str], point: Composed) -> None:
        """Keeps a point for who will `take` it. Where too many are kept, the first ones are forgotten."""
        self._kept[tuple(overrides)] = point
        _forget_oldest(self._kept, MOST_KEPT)

    def take(self, overrides: Sequence[str]) -> tuple[DictConfig, Conf | None]:
        """The job's config, which is the caller's to change, and its typed one, where that was kept."""
        kept = self._kept.pop(tuple(overrides), None)
        if kept is None:
            return self.compose(overrides), None
        return self.compose(overrides) if kept.cfg is None else kept.cfg, kept.conf

    def find_unknown_key(self, lines: Sequence[str]) -> tuple[str, DictConfig] | None:
        """Returns the first plain key that the config does not have, with that config; None where Hydra must say."""
        with contextlib.suppress(Exception):
            parts = self._parts(lines)
            if parts is not None:
                config = self._base(parts[0])
                for override in parts[1]:
                    if not _has(config, override.key_or_group):
                        return override.key_or_group, config
        return None

    def group_options(self, key: str) -> list[str]:
        """Returns the choices of a config group; none where the key is not a group."""
        if key not in self._group_options:
            self._group_options[key] = self.loader.get_group_options(key)
        return self._group_options[key]

    # inside

    def _split(self, lines: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Scalar]] | None:
        """Returns plain values by key, and all other overrides as they are written; None where Hydra must say."""
        parts = self._parts(lines)
        if parts is None:
            return None
        others, values = parts
        return tuple(str(o.input_line) for o in others), {o.key_or_group: o.value() for o in values}  # type: ignore[misc]

    def _parts(self, lines: Sequence[str]) -> tuple[list[Parsed], list[Parsed]] | None:
        """What is composed once, and the plain values to be set in it; None where Hydra must compose them together."""
        overrides = [self._parse(line) for line in lines]
        if any(override.is_sweep_override() or override.is_hydra_override() for override in overrides):
            return None
        values = [override for override in overrides if _is_plain(override) and not self._chooses(override)]
        others = [override for override in overrides if not any(override is value for value in values)]
        own = [override.key_or_group.replace("/", ".") for override in others if not self._chooses(override)]
        if any(_is_part(a, b) for a in own for b in (value.key_or_group for value in values)):
            return None
        return others, values

    def _base(self, others: Sequence[Parsed]) -> DictConfig:
        """A copy of the config with these overrides."""
        key = tuple(str(override.input_line) for override in others)
        if key not in self._bases:
            _forget_oldest(self._bases, _MOST_BASES - 1)
            self._bases[key] = pickle.dumps(self.loader.load_sweep_config(self.config, list(key)))
        config: DictConfig = pickle.loads(self._bases[key])
        return config

    def _set_values(self, lines: Sequence[str]) -> DictConfig | None:
        parts = self._parts(lines)
        if parts is None:
            return None
        config = self._base(parts[0])
        for override in parts[1]:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        overrides = [self._parse(line) for line in lines]
        with open_dict(config):
            config.hydra.overrides.task = [str(override.input_line) for override in overrides]
            self._set_dirname(config, overrides)
        return config

    def _parse(self, line: str) -> Parsed:
        if line not in self._parsed:
            _forget_oldest(self._parsed, _MOST_PARSED - 1)
            self._parsed[line] = self._parser.parse_overrides([line])[0]
        return self._parsed[line]

    def _chooses(self, override: Parsed) -> bool:
        """True for `group=choice`."""
        return bool(self.group_options(override.key_or_group))

    @staticmethod
    def _set_dirname(config: DictConfig, overrides: Sequence[Parsed]) -> None:
        """Hydra 1.3 writes `hydra.job.override_dirname` when it composes; in 1.4 it is an interpolation."""
        job = config.hydra.job
        if OmegaConf.is_interpolation(job, "override_dirname"):
            return
        how = job.config.override_dirname
        lines = sorted(str(o.input_line) for o in overrides if o.key_or_group not in how.exclude_keys)
        job.override_dirname = how.item_sep.join(line.replace("=", how.kv_sep) for line in lines)


@contextlib.contextmanager
def without_hydra(config: DictConfig) -> Iterator[None]:
    """While open, a composed config has no node of Hydra's."""
    with flag_override(config, ["struct", "no_deepcopy_set_nodes"], [False, True]):
        node = config.pop("hydra")
        node._set_parent(None)  # else it would be copied when it comes back
        try:
            yield
        finally:
            config.hydra = node


def _forget_oldest(kept: dict[Any, Any], most: int) -> None:
    while len(kept) > most:
        del kept[next(iter(kept))]


def number_config(config: DictConfig, num: int) -> DictConfig:
    """Gives a composed job its number, as Hydra's launchers do."""
    with open_dict(config):
        config.hydra.job.id = f"{config.hydra.job.name}_{num}"
        config.hydra.job.num = num
        config.hydra.sweep.dir = str(config.hydra.sweep.dir)  # answers ${now:} before the config travels
    return config


def run_folder(config: DictConfig) -> Path:
    """Where Hydra runs a composed and numbered job."""
    # hydra.sweep.subdir may ask for ${hydra:…}, which only a job's own HydraConfig answers.
    from hydra.core.hydra_config import HydraConfig

    before = HydraConfig.instance().cfg
    HydraConfig.instance().cfg = config  # type: ignore[assignment]  # not set_config, which copies it
    try:
        sweep_dir = str(OmegaConf.select(config, "hydra.sweep.dir"))
        return Path(sweep_dir, str(OmegaConf.select(config, "hydra.sweep.subdir"))).absolute()
    finally:
        HydraConfig.instance().cfg = before


def _plain(cfg: DictConfig) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(cfg, resolve=False)
    return dict(content)


def _is_part(a: str, b: str) -> bool:
    """One of two dotted keys lies in the other."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")


def _has(config: DictConfig, key: str) -> bool:
    *parents, last = key.split(".")
    node = OmegaConf.select(config, ".".join(parents)) if parents else config
    return OmegaConf.is_dict(node) and last in node.keys()  # noqa: SIM118  # `in` is false for a missing value


def _is_plain(override: Parsed) -> bool:
    key = override.key_or_group
    is_change = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
    is_ours = not override.is_hydra_override() and _PLAIN_KEY.fullmatch(key.replace("/", ".")) is not None
    # Of a list or dict Hydra decides how it merges; a sweep is not one job's value.
    is_scalar = not override.is_sweep_override() and isinstance(override.value(), str | int | float | bool | None)
    return is_change and is_ours and is_scalar
