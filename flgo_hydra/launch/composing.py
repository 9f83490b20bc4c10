"""Composes the jobs of a sweep as Hydra would, in a tenth of the time where only values vary.

Hydra reads and merges all of a config's files for every job, about 45 ms. Plain values (`lr=0.1`) do not change which
files are read: what the others choose is composed once and kept pickled, and the values are set in a copy of it.
Whatever is not plain (groups aside: `+x`, `~x`, lists, dicts, Hydra's own keys), and any error, goes Hydra's way.
"""

import contextlib
import pickle
import re
from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

_PLAIN_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


class SweepComposer:
    """Composes job after job of one sweep."""

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        """Args:
        config: the sweep's own config; what `${now:}` has answered in it, it answers in every job.
        """
        self._loader = loader
        self._config = config
        self._parser = OverridesParser.create(config_loader=loader)
        self._parsed: dict[str, Override] = {}
        self._group_options: dict[str, list[str]] = {}
        self._bases: dict[tuple[str, ...], bytes] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Returns the job's config, Hydra's node included."""
        with contextlib.suppress(Exception):  # Hydra's way says what is wrong
            config = self._set_values(overrides)
            if config is not None:
                return config
        return self._loader.load_sweep_config(self._config, list(overrides))

    def find_unknown_key(self, lines: Sequence[str]) -> tuple[str, DictConfig] | None:
        """Returns the first plain key that the config does not have, with that config; None where Hydra must say."""
        with contextlib.suppress(Exception):
            overrides = [self._parse(line) for line in lines]
            config = self._base([override for override in overrides if self._chooses(override)])
            for override in overrides:
                key = override.key_or_group
                if _is_plain(override) and not self._chooses(override) and not _has(config, key):
                    return key, config
        return None

    def group_options(self, key: str) -> list[str]:
        """Returns the choices of a config group; none where the key is not a group."""
        if key not in self._group_options:
            self._group_options[key] = self._loader.get_group_options(key)
        return self._group_options[key]

    def split(self, lines: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str | int | float | bool | None]] | None:
        """Returns group choices as they are written, and values by key; None where not all of them are plain."""
        overrides = [self._parse(line) for line in lines]
        if not all(map(_is_plain, overrides)):
            return None
        choices = tuple(line for line, override in zip(lines, overrides, strict=True) if self._chooses(override))
        values = {o.key_or_group: o.value() for o in overrides if not self._chooses(o)}
        return choices, values  # type: ignore[return-value]

    def _base(self, choices: Sequence[Override]) -> DictConfig:
        """A copy of the config with these group choices."""
        key = tuple(str(override.input_line) for override in choices)
        if key not in self._bases:
            self._bases[key] = pickle.dumps(self._loader.load_sweep_config(self._config, list(key)))
        config: DictConfig = pickle.loads(self._bases[key])
        return config

    def _set_values(self, lines: Sequence[str]) -> DictConfig | None:
        overrides = [self._parse(line) for line in lines]
        choices = [override for override in overrides if self._chooses(override)]
        values = [override for override in overrides if not self._chooses(override)]
        if not all(map(_is_plain, overrides)):
            return None
        config = self._base(choices)
        for override in values:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
        with open_dict(config):
            config.hydra.overrides.task = [str(override.input_line) for override in overrides]
            self._set_dirname(config, overrides)
        return config

    def _parse(self, line: str) -> Override:
        if line not in self._parsed:
            self._parsed[line] = self._parser.parse_overrides([line])[0]
        return self._parsed[line]

    def _chooses(self, override: Override) -> bool:
        """True for `group=choice`."""
        return bool(self.group_options(override.key_or_group))

    @staticmethod
    def _set_dirname(config: DictConfig, overrides: Sequence[Override]) -> None:
        """Hydra 1.3 writes `hydra.job.override_dirname` when it composes; in 1.4 it is an interpolation."""
        job = config.hydra.job
        if OmegaConf.is_interpolation(job, "override_dirname"):
            return
        how = job.config.override_dirname
        lines = sorted(str(o.input_line) for o in overrides if o.key_or_group not in how.exclude_keys)
        job.override_dirname = how.item_sep.join(line.replace("=", how.kv_sep) for line in lines)


def _has(config: DictConfig, key: str) -> bool:
    *parents, last = key.split(".")
    node = OmegaConf.select(config, ".".join(parents)) if parents else config
    return OmegaConf.is_dict(node) and last in node.keys()  # noqa: SIM118  # `in` is false for a missing value


def _is_plain(override: Override) -> bool:
    key = override.key_or_group
    is_change = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
    is_ours = not override.is_hydra_override() and _PLAIN_KEY.fullmatch(key.replace("/", ".")) is not None
    # Of a list or dict Hydra decides how it merges; a sweep is not one job's value.
    is_scalar = not override.is_sweep_override() and isinstance(override.value(), str | int | float | bool | None)
    return is_change and is_ours and is_scalar
