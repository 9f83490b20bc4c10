"""The page that `python -m flgo_hydra --help` prints: groups with their choices, keys with default and meaning.

It is made from conf/ and from the comments in config.py, so it says what is true. It imports neither Hydra nor torch.
"""

import ast
import shutil
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from flgo_hydra import config
from flgo_hydra.compose import conf_dir

GROUPS = {
    "task": "data, and how it is split into training, validation and test samples",
    "task/partition": "how the training samples are split over the clients",
    "model": "what is trained",
    "algorithm": "how clients and server train it",
    "option": "a named set of the options below",
    "experiment": "a named grid or setting, which works on any task",
}
_PARTS = {
    "Options (at the root)": ("", "OptionConf"),
    "Task": ("task.", "TaskConf"),
    "Task source": ("task.source.", "SyntheticConf"),
    "Task partition": (
        "task.partition.",
        ("PartitionConf", "DirichletConf", "ShardsConf", "ClassesConf", "QuantityConf"),
    ),
    "Model": ("model.", ("MlpConf", "CnnConf", "ResNetConf")),
    "Algorithm": ("algorithm.", ("FedProxConf", "ScaffoldConf")),
    "Sweep": ("hydra.sweeper.", "SweeperConf"),
}
_EXAMPLES = """\
  python -m flgo_hydra lr=0.05 num_rounds=50
      one run, on scikit-learn's digits
  python -m flgo_hydra -m algorithm=fedavg,fedprox lr=0.1,0.01 seed=0,1,2
      a grid: every combination, and which one is best
  python -m flgo_hydra -m experiment=tune task=mnist5k task/partition=dirichlet task.partition.alpha=0.1
      a named grid, on other data"""


def help_page(extra_folders: Sequence[str] = (), width: int | None = None) -> str:
    """Returns the page.

    Args:
        extra_folders: a user's own config folders (`--config-dir`), whose choices are listed too.
    """
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = [
        "usage: python -m flgo_hydra [-m] [group=choice …] [key=value …]",
        "",
        "Runs federated learning. With -m, values separated by commas make a grid: every combination runs, an Optuna",
        "study records it, and the best valid_loss and its round are printed.",
        "",
        "Groups (group=choice)",
    ]
    for group, meaning in GROUPS.items():
        choices = ", ".join(group_choices(group, extra_folders))
        lines += _entry(group, f"{choices}", meaning, width)
    for title, (prefix, names) in _PARTS.items():
        lines += ["", title]
        for name in (names,) if isinstance(names, str) else names:
            for field in field_docs(name):
                if not field.name.startswith("_") and field.name not in ("name", "source", "partition"):
                    note = f" ({name.removesuffix('Conf').lower()})" if isinstance(names, tuple) else ""
                    lines += _entry(prefix + field.name, field.default, field.meaning + note, width)
    lines += [
        "",
        "Flags",
        "  -m                            run a grid",
        "  --cfg job                     print the composed config and stop",
        "  --config-dir FOLDER           add your own choices: FOLDER/algorithm/mine.yaml is algorithm=mine",
        "  --hydra-help                  all of Hydra's flags",
        "",
        "Examples",
        _EXAMPLES,
    ]
    return "\n".join(lines)


def group_choices(group: str, extra_folders: Sequence[str] = ()) -> list[str]:
    """Names of the YAML files that a group offers."""
    folders = [conf_dir(), *map(Path, extra_folders)]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


class FieldDoc:
    """A schema's field as its source says it."""

    def __init__(self, name: str, default: str, meaning: str) -> None:
        self.name = name
        self.default = default
        self.meaning = meaning


@cache
def _source() -> tuple[list[str], dict[str, ast.ClassDef]]:
    text = Path(config.__file__).read_text(encoding="utf-8")
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    return text.splitlines(), classes


def field_docs(schema: str) -> list[FieldDoc]:
    """The fields of a schema in config.py with their defaults and the comments above them."""
    lines, classes = _source()
    docs = []
    for node in classes[schema].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comment: list[str] = []
            number = node.lineno - 2
            while lines[number].strip().startswith("#"):
                comment.insert(0, lines[number].strip().lstrip("# "))
                number -= 1
            docs.append(FieldDoc(node.target.id, _default(schema, node.target.id), " ".join(comment)))
    return docs


def _default(schema: str, name: str) -> str:
    from dataclasses import MISSING

    field = getattr(config, schema).__dataclass_fields__[name]
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _entry(key: str, value: str, meaning: str, width: int) -> list[str]:
    """`  key = default      meaning`, wrapped under the meaning."""
    head = f"  {key}={value}" if value else f"  {key}"
    column = 38
    wrapped = textwrap.wrap(meaning, max(30, width - column)) or [""]
    if len(head) >= column:
        head_lines = textwrap.wrap(head, width, subsequent_indent=" " * 6, initial_indent="", drop_whitespace=False)
        return [head_lines[0], *head_lines[1:], *(" " * column + line for line in wrapped)]
    return [f"{head:<{column}}{wrapped[0]}", *(" " * column + line for line in wrapped[1:])]
