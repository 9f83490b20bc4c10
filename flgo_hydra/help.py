"""The page that `python -m flgo_hydra --help` prints: groups with their choices, keys with default and meaning.

It is made from conf/ and from the comments in config/, so it says what is true. It imports neither Hydra nor torch:
where overrides stand beside `--help`, the caller composes them (`explain.composed`), and the page shows their values.
"""

import ast
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from flgo_hydra import flags
from flgo_hydra.config.folder import conf_dir
from flgo_hydra.config.launcher import LauncherConf
from flgo_hydra.config.option import EngineConf, OptionConf
from flgo_hydra.config.schemas import SCHEMAS
from flgo_hydra.config.sweeper import SweeperConf
from flgo_hydra.config.task import TaskConf
from flgo_hydra.overrides import Override

GROUPS = {
    "task": "data, and how it is split into training, validation and test samples",
    "task/partition": "how the training samples are split over the clients",
    "model": "what is trained",
    "algorithm": "how clients and server train it",
    "option": "a named set of the options below",
    "experiment": "a named grid or setting, which works on any task",
}


def _with_choices(group: str, choice: str) -> dict[type, str]:
    """The schemas of a group whose choices have keys of their own, each with its choice."""
    return {
        schema: "" if name == "plain" else f"{choice}={name}"
        for room, _, name in (path.partition("/") for path in SCHEMAS)
        if room == group
        for schema in [SCHEMAS[f"{room}/{name}"]]
    }


_PARTS: dict[str, tuple[str, dict[type, str]]] = {
    "Options (at the root)": ("", {OptionConf: ""}),
    "Engine": ("engine.", {EngineConf: ""}),
    "Task": ("task.", {TaskConf: ""}),
    "Task source": ("task.source.", _with_choices("source", "task")),
    "Task partition": ("task.partition.", _with_choices("partition", "task/partition")),
    "Model": ("model.", _with_choices("model", "model")),
    "Algorithm": ("algorithm.", _with_choices("algorithm", "algorithm")),
    "Sweep": ("hydra.sweeper.", {SweeperConf: ""}),
    "Launcher": ("hydra.launcher.", {LauncherConf: ""}),
}
"""The page's sections: the prefix of the keys, and each schema with the choice that has it."""
_PURPOSE = (
    "Runs federated learning. With -m, values separated by commas make a grid: every combination runs, an Optuna study "
    "records it, and the best valid_loss and its round are printed."
)
_FLAGS = {
    "-m": "run a grid",
    "--cfg job": "print the composed config and stop",
    "--config-dir FOLDER": "add your own choices: FOLDER/algorithm/mine.yaml is algorithm=mine",
    "--hydra-help": "all of Hydra's flags",
}
_EXAMPLES = """\
  python -m flgo_hydra lr=0.05 num_rounds=50
      one run, on scikit-learn's digits
  python -m flgo_hydra -m algorithm=fedavg,fedprox lr=0.1,0.01 seed=0,1,2
      a grid: every combination, and which one is best
  python -m flgo_hydra -m experiment=tune task=mnist5k task/partition=dirichlet
      a named grid, on other data"""


def help_page(extra_folders: Sequence[str] = (), width: int | None = None, composed: "Overridden | None" = None) -> str:
    """Returns the page.

    Args:
        extra_folders: a user's own config folders (`--config-dir`), whose choices are listed too.
        composed: the config that the rest of the command makes, whose values are shown; None: the schemas' defaults.
    """
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = [
        "usage: python -m flgo_hydra [-m] [group=choice …] [key=value …]",
        "",
        *textwrap.wrap(_PURPOSE, width),
        "",
        "Groups (group=choice)",
    ]
    if composed is not None:
        lines[4:4] = [*textwrap.wrap(f"The values below are those of {' '.join(composed.overrides)}.", width), ""]
    for group, meaning in GROUPS.items():
        choices = ", ".join(group_choices(group, extra_folders))
        lines += _entry(group, f"{choices}", meaning, width)
    for title, (prefix, schemas) in _PARTS.items():
        lines += ["", title]
        for schema, choice in schemas.items():
            if choice:
                lines.append(f"  with {choice}")
            for field in _shown_fields(schema):
                key = prefix + field.name
                value = field.default if composed is None else composed.value(key, choice, field.default)
                lines += _entry(key, value, field.meaning, width)
    lines += ["", "Flags"]
    for flag, meaning in _FLAGS.items():
        lines += _entry(flag, "", meaning, width)
    return "\n".join([*lines, "", "Examples", _EXAMPLES])


@dataclass(frozen=True)
class Overridden:
    """What the overrides of a command make."""

    overrides: tuple[str, ...]
    choices: Mapping[str, str]
    """by group"""
    values: Mapping[str, Any]
    """by key; null, true and lists as Python has them"""

    def value(self, key: str, choice: str, default: str) -> str:
        """What is set of a key that comes with a choice; the default where another one is chosen."""
        one = Override.read(choice)
        if key not in self.values or (choice and self.choices.get(one.key) != one.text):
            return default
        return _as_written(self.values[key])


def keys_by_choice() -> dict[str, str]:
    """Every key that needs a certain choice, with the choices that have it: `{"algorithm.mu": "algorithm=fedprox"}`."""
    found: dict[str, list[str]] = {}
    for prefix, schemas in _PARTS.values():
        for schema, choice in schemas.items():
            for field in _shown_fields(schema) if choice else ():
                found.setdefault(prefix + field.name, []).append(choice)
    return {key: " or ".join(choices) for key, choices in found.items()}


def typed_keys() -> list[str]:
    """Every key that the page explains, whatever is chosen, and the groups."""
    shown = (prefix + field.name for prefix, of in _PARTS.values() for schema in of for field in _shown_fields(schema))
    return list(dict.fromkeys([*GROUPS, *shown]))


def meaning_of(key: str) -> str:
    """What a key means; empty where that is not known or depends on the choice."""
    meanings = {
        field.meaning
        for prefix, schemas in _PARTS.values()
        for schema in schemas
        for field in _shown_fields(schema)
        if prefix + field.name == key
    }
    return meanings.pop() if len(meanings) == 1 else ""


def _shown_fields(schema: type) -> list["FieldDoc"]:
    hidden = ("name", "source", "partition", "engine")
    return [field for field in field_docs(schema) if not field.name.startswith("_") and field.name not in hidden]


def group_choices(group: str, extra_folders: Sequence[str] = ()) -> list[str]:
    """Names of the YAML files that a group offers."""
    folders = [conf_dir(), *map(Path, extra_folders)]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def config_dirs(arguments: Sequence[str]) -> list[str]:
    """The folders given with Hydra's `--config-dir X`, `--config-dir=X`, `-cd X` or `-cd=X`."""
    folders: list[str] = []
    for i, argument in enumerate(arguments):
        flag, folder = flags.name_and_value(argument)
        if flag in ("--config-dir", "-cd"):
            folders += arguments[i + 1 : i + 2] if folder is None else [folder]
    return folders


class FieldDoc:
    """A schema's field as its source says it."""

    def __init__(self, name: str, default: str, meaning: str) -> None:
        self.name = name
        self.default = default
        self.meaning = meaning


@cache
def _source(module: str) -> tuple[list[str], dict[str, ast.ClassDef]]:
    text = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    return text.splitlines(), classes


def field_docs(schema: type) -> list[FieldDoc]:
    """A schema's own fields with their defaults and the comments above them."""
    lines, classes = _source(schema.__module__)
    docs = []
    for node in classes[schema.__name__].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comment: list[str] = []
            number = node.lineno - 2
            while lines[number].strip().startswith("#"):
                comment.insert(0, lines[number].strip().lstrip("# "))
                number -= 1
            docs.append(FieldDoc(node.target.id, _default(schema, node.target.id), " ".join(comment)))
    return docs


def _default(schema: type, name: str) -> str:
    field = {one.name: one for one in fields(schema)}[name]
    value = field.default if field.default_factory is MISSING else field.default_factory()
    return _as_written(value)


def _as_written(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _entry(key: str, value: str, meaning: str, width: int) -> list[str]:
    """`  key = default      meaning`, wrapped under the meaning."""
    head = f"  {key}={value}" if value else f"  {key}"
    column = 38
    wrapped = textwrap.wrap(meaning, max(30, width - column)) or [""]
    if len(head) >= column:
        head_lines = textwrap.wrap(head, width, subsequent_indent=" " * 6)
        return [*head_lines, *(" " * column + line for line in wrapped)]
    return [f"{head:<{column}}{wrapped[0]}", *(" " * column + line for line in wrapped[1:])]
