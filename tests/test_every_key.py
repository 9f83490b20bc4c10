"""Every key of every schema, with values of many kinds: a refusal names the key, the value and the law, in one line.

Which values are wrong is what types and laws say: those that they let pass are not looked at. The keys are those of
the composed configs, so that a new one is covered by itself. Values are set as Hydra sets them (`OmegaConf.update`),
and laws are checked where the app checks them; composing each anew would take fifty times as long. `test_explain.py`
shows that commands say the same.
"""

import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from flgo_hydra import compose
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.explain import explain, of_plugin, refuse_early
from flgo_hydra.help import group_choices

VALUES = {
    "text": "abc",
    "empty": "''",
    "escape": "'a\x1b[31m'",
    "list": "[1,2]",
    "texts": "[a]",
    "negative in a list": "[-1]",
    "list in a list": "[3,[2]]",
    "null in a list": "[null]",
    "dict": "{a:1}",
    "null": "null",
    "true": "true",
    "negative": "-1",
    "zero": "0",
    "fraction": "0.5",
    "whole fraction": "1.0",
    "huge": str(10**18),
    "beyond 64 bits": str(10**30),
    "1e400": "1e400",
    "nan": "nan",
    "minus infinity": "-inf",
}
_HYDRAS = "hydra"
_PARSER = OverridesParser.create()
_OURS = re.compile(r"hydra\.(sweeper|launcher)\b")
_LAW = re.compile(r" must | needs? |There is no |has no effect|cannot be ")


def _choices() -> list[str]:
    groups = ("task", "task/partition", "model", "algorithm")
    return ["", _HYDRAS, *(f"{group}={choice}" for group in groups for choice in group_choices(group))]


def _nodes(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in config:
        node: Any = config._get_node(key)
        yield f"{prefix}{key!s}", node
        if OmegaConf.is_dict(node) and not node._is_none() and not node._is_missing():
            yield from _nodes(node, f"{prefix}{key!s}.")


def _lines(key: str, node: Any) -> Iterator[tuple[str, str]]:
    """Overrides of a key, each with its kind."""
    yield from ((kind, f"{key}={value}") for kind, value in VALUES.items())
    if not isinstance(node, DictConfig):
        yield "below", f"{key}.no_such_key=1"
    else:
        yield "below", f"+{key}.no_such_key=1"
    if isinstance(node, DictConfig | ListConfig) or node is None:
        return
    value = node._value()
    if isinstance(value, str) and value.isidentifier():  # of an enum, if a law says so
        yield "typo", f"{key}={value[:-1]}"


@pytest.fixture
def composed() -> dict[str, bytes]:
    """Configs by the choice that they make."""
    compose.prepare()
    GlobalHydra.instance().clear()
    base = {k: v for k, v in compose.hydra_main_arguments().items() if k == "version_base"}
    found = {}
    with initialize_config_dir(config_dir=str(conf_dir()), **base):
        for choice in _choices():
            overrides, is_hydras = [choice] if "=" in choice else [], choice == _HYDRAS
            config = hydra_compose("config", overrides=overrides, return_hydra_config=is_hydras)
            with open_dict(config):
                for key in list(config) if is_hydras else ():  # to be copied a thousand times
                    if key != "hydra":
                        del config[key]
            for key, node in _nodes(config):
                if node._is_missing() and not key.startswith("hydra"):  # what a choice leaves to be given
                    OmegaConf.update(config, key, "my.own")
            found[choice] = pickle.dumps(config)
    return found


def _try(content: bytes, line: str) -> None:
    """What a command does with an override, up to where data are read."""
    refuse_early([line])
    override = _PARSER.parse_override(line)
    config = pickle.loads(content)
    try:
        if override.is_add():
            with open_dict(config):
                OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
        else:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigCompositionException(f"Error merging override {line}") from error
    part = _OURS.match(override.key_or_group)
    if part:
        Plugins.instance()._instantiate(config.hydra[part[1]])
        return
    if not line.startswith("hydra"):
        compose.to_conf(config)


@pytest.mark.slow
def test_every_refusal_names_key_value_and_law(composed: dict[str, bytes]) -> None:
    seen: set[tuple[str, str, bool]] = set()
    wrong: list[str] = []
    refused = 0
    for choice, content in composed.items():
        for key, node in _nodes(pickle.loads(content)):
            identity = (key, str(node._metadata.ref_type), node._metadata.optional)
            is_hydras_own = choice == _HYDRAS and not _OURS.match(key)
            if is_hydras_own or identity in seen or ("." not in key and isinstance(node, DictConfig)):
                continue
            seen.add(identity)
            for kind, line in _lines(key, node):
                try:
                    _try(content, line)
                except Exception as error:
                    refused += 1
                    said = of_plugin(error, [line]) or explain(error, [choice, line] if "=" in choice else [line])
                    wrong += [f"{choice} {line!r}: {said}  ({fault})" for fault in _faults(kind, key, line, said)]
    assert not wrong, f"{len(wrong)} of {refused} refusals:\n" + "\n".join(wrong)
    assert refused > 10 * len(seen) > 800  # of fifteen or so kinds


def _faults(kind: str, key: str, line: str, said: str) -> Iterator[str]:
    """What a refusal lacks."""
    typed = line.partition("=")[2]
    if key not in said:
        yield "no key"
    if "\n" in said or "Traceback" in said or "Error" in said:
        yield "more than a sentence"
    if not _LAW.search(said):
        yield "no law"
    value: Any = _PARSER.parse_override(line).value()
    items = value if isinstance(value, list) else [value]
    forms = [typed, repr(value), *map(str, items), *map(repr, items)]
    forms += ["null"] if None in items else [repr(float(value))] if type(value) is int else []
    if kind not in ("below", "dict") and not any(form in said for form in forms):
        yield "no value"
