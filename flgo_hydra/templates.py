"""Typed configs of a grid's points, without composing each: 0.1 ms a point in place of 7.

Points that make the same group choices differ in plain values only. The first of them is composed; of the others, each
value is converted once by the composed config's types, and set in a copy of the first one's dataclasses, whose laws
(`__post_init__`) are then checked again. Whatever is not that simple returns None: the caller composes it.
"""

import copy
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flgo_hydra.config.conf import Conf

Scalar = str | int | float | bool | None

_MOST = 256


class _Template:
    """The first point with its group choices."""

    def __init__(self, config: DictConfig, conf: Conf, values: Mapping[str, Scalar]) -> None:
        self.conf = conf
        self.values = values
        self._config = config
        self._converted: dict[tuple[str, str], Any] = {}

    def convert(self, key: str, value: Scalar) -> Any:
        """The value as the config's type for the key has it: 1 is 1.0 for a float."""
        text = f"{type(value).__name__} {value!r}"
        if (key, text) not in self._converted:
            OmegaConf.update(self._config, key, value, merge=True)
            self._converted[key, text] = OmegaConf.select(self._config, key)
        return self._converted[key, text]


class Templates:
    """Makes typed configs from those that were composed."""

    def __init__(self) -> None:
        self._templates: dict[tuple[tuple[str, ...], tuple[str, ...]], _Template | None] = {}

    def learn(self, choices: tuple[str, ...], values: Mapping[str, Scalar], config: DictConfig, conf: Conf) -> None:
        """Takes a copy of a composed point (without Hydra's node), for others with its group choices.

        Args:
            choices: its overrides that are no plain values.
            values: its plain values by key.
        """
        key = (choices, tuple(values))
        if key not in self._templates:
            if len(self._templates) >= _MOST:
                del self._templates[next(iter(self._templates))]
            is_plain = "${" not in OmegaConf.to_yaml(config)  # else one value may decide another
            self._templates[key] = _Template(config.copy(), conf, values) if is_plain else None

    def make(self, choices: tuple[str, ...], values: Mapping[str, Scalar]) -> Conf | None:
        """The typed config of a point, lawful, or None where it has to be composed."""
        template = self._templates.get((choices, tuple(values)))
        if template is None or any(isinstance(value, str) and "${" in value for value in values.values()):
            return None
        before = template.values
        changed = {k: v for k, v in values.items() if v != before[k] or type(v) is not type(before[k])}
        try:
            return _replaced(template.conf, {key: template.convert(key, value) for key, value in changed.items()})
        except Exception:  # composing says what is wrong
            return None


def _replaced(conf: Conf, values: Mapping[str, Any]) -> Conf:
    """A copy with these values, by dotted key; what does not change is shared."""
    copies: dict[tuple[str, ...], Any] = {(): copy.copy(conf)}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = copies[()]
        for depth, name in enumerate(parents, start=1):
            path = tuple(parents[:depth])
            if path not in copies:
                copies[path] = copy.copy(_get(node, name))
                _set(node, name, copies[path])
            node = copies[path]
        _get(node, last)
        _set(node, last, value)
    for path in sorted(copies, key=len, reverse=True):
        check = getattr(copies[path], "__post_init__", None)
        if check is not None:
            check()
    made: Conf = copies[()]
    return made


def _get(node: Any, name: str) -> Any:
    return getattr(node, name) if is_dataclass(node) else node[name]


def _set(node: Any, name: str, value: Any) -> None:
    if is_dataclass(node):
        setattr(node, name, value)
    else:
        node[name] = value
